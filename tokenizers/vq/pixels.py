"""From tokens to pictures."""

import numpy as np
import torch

from vq.images import to_uint8
from vq.interface import Tokenizer, device_of


def decode_pixels(model: Tokenizer, tokens: np.ndarray, batch_size: int = 100) -> np.ndarray:
    """Pictures of code grids: (M, T) -> (M, H, W, 3) uint8."""
    parts = torch.from_numpy(tokens.astype(np.int64)).to(device_of(model)).split(batch_size)
    with torch.inference_mode():
        return np.concatenate([to_uint8(model.decode(part)) for part in parts])
