"""Conversions between pixels, tensors and tokens."""

import numpy as np
import torch
from torch import Tensor

from vq.interface import Tokenizer, device_of


def decode_pixels(model: Tokenizer, tokens: np.ndarray, batch_size: int = 100) -> np.ndarray:
    """Images of code grids: (M, T) -> (M, H, W, 3) uint8."""
    parts = torch.from_numpy(tokens.astype(np.int64)).to(device_of(model)).split(batch_size)
    with torch.inference_mode():
        return np.concatenate([to_uint8(model.decode(part)) for part in parts])


def to_tensor(pixels: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [-1, 1]."""
    images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float()
    return images / 127.5 - 1.0


def to_uint8(images: Tensor) -> np.ndarray:
    """(B, 3, H, W) float in [-1, 1] -> (B, H, W, 3) uint8, truncated as in LlamaGen.

    FoundationVision/LlamaGen, autoregressive/sample/sample_c2i_ddp.py: clamp(127.5 x + 128, 0, 255)."""
    images = (127.5 * images.float() + 128.0).clamp(0, 255)
    return images.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()


@torch.no_grad()
def encode_pixels(model: Tokenizer, pixels: np.ndarray) -> np.ndarray:
    """Code grids of uint8 images: (B, H, W, 3) -> (B, T) int64, on the tokenizer's device."""
    return model.encode(to_tensor(pixels).to(device_of(model))).cpu().numpy()


def image_grid(images: np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """Images in rows with white gaps: (M, H, W, 3) uint8 -> (rows (H + gap), columns (W + gap), 3)."""
    rows = -(-len(images) // columns)
    height, width = images.shape[1:3]
    canvas = np.full((rows * columns, height + gap, width + gap, 3), 255, np.uint8)
    canvas[: len(images), :height, :width] = images
    tiled = canvas.reshape(rows, columns, height + gap, width + gap, 3).swapaxes(1, 2)
    return tiled.reshape(rows * (height + gap), columns * (width + gap), 3)
