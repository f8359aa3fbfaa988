"""Quality of a tokenizer: PSNR of its reconstructions, usage and perplexity of its codebook."""

import numpy as np
import torch

from vq.images import ImageSource
from vq.interface import Tokenizer, device_of
from vq.pixels import encode_pixels, to_uint8

MAX_PSNR = 60.0  # dB: value of an exact copy in a mean, higher than any other that uint8 allows


@torch.no_grad()
def reconstruction_quality(model: Tokenizer, source: ImageSource, batch_size: int = 64) -> dict[str, float]:
    """PSNR (dB, mean over the uint8 images), codebook usage and perplexity on a source."""
    psnr, counts = [], np.zeros(model.num_tokens, np.int64)
    for start in range(0, len(source), batch_size):
        pixels = source.pixels[start : start + batch_size]
        tokens = encode_pixels(model, pixels)
        reconstruction = to_uint8(model.decode(torch.from_numpy(tokens).to(device_of(model))))
        psnr.append(np.minimum(peak_signal_to_noise(pixels, reconstruction), MAX_PSNR))
        counts += np.bincount(tokens.ravel(), minlength=model.num_tokens)
    usage, perplexity = usage_and_perplexity(counts)
    return {
        "num_images": len(source),
        "psnr_db": float(np.concatenate(psnr).mean()),
        "usage": usage,
        "perplexity": perplexity,
    }


def peak_signal_to_noise(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """PSNR in dB of each pair of uint8 images: (B, H, W, 3), (B, H, W, 3) -> (B,); inf where equal.

    LlamaGen's PSNR is equal: it takes scikit-image's, of images in [0, 1] (tokenizer/tokenizer_image/
    reconstruction_vq_ddp.py at 5a50452)."""
    error = np.square(a.astype(np.float64) - b.astype(np.float64)).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255.0**2 / error)


def usage_and_perplexity(counts: np.ndarray) -> tuple[float, float]:
    """Share of tokens that occur, and exp of the entropy of their frequencies, from their counts (N,)."""
    shares = counts[counts > 0] / counts.sum()
    return float((counts > 0).mean()), float(np.exp(-(shares * np.log(shares)).sum()))
