"""How good a tokenizer is: PSNR, codebook usage, perplexity."""

import numpy as np
import torch

from vq.images import ImageSource, to_tensor, to_uint8
from vq.interface import Tokenizer, device_of

MAX_PSNR = 60.0  # dB: what an exact copy counts as in a mean, beyond what uint8 can tell apart


@torch.no_grad()
def measure(model: Tokenizer, source: ImageSource, batch_size: int = 64) -> dict[str, float]:
    """PSNR (dB, mean over images, on the uint8 pictures), codebook usage and perplexity on a source."""
    device = device_of(model)
    psnr, tokens = [], []
    for start in range(0, len(source), batch_size):
        pixels = source.pixels[start : start + batch_size]
        codes = model.encode(to_tensor(pixels).to(device))
        psnr.append(np.minimum(peak_signal_to_noise(pixels, to_uint8(model.decode(codes))), MAX_PSNR))
        tokens.append(codes.cpu().numpy().ravel())
    counts = np.bincount(np.concatenate(tokens), minlength=model.num_tokens)
    shares = counts[counts > 0] / counts.sum()
    return {
        "num_images": len(source),
        "psnr_db": float(np.concatenate(psnr).mean()),
        "usage": float((counts > 0).mean()),
        "perplexity": float(np.exp(-(shares * np.log(shares)).sum())),
    }


def peak_signal_to_noise(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """PSNR in dB of each pair of uint8 pictures: (B, H, W, 3), (B, H, W, 3) -> (B,); inf where equal."""
    error = np.square(a.astype(np.float64) - b.astype(np.float64)).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255.0**2 / error)
