"""The three resizes to 299 x 299 pixels that FID's implementations use. They change FID by percents.

`tf1-bilinear`: TensorFlow 1's ResizeBilinear, without half-pixel centres or antialiasing: ADM's evaluator and
torch-fidelity. `half-pixel-bilinear`: torch's interpolate without antialiasing: pytorch-fid. `pil-bicubic`: Pillow's
antialiased bicubic, one channel at a time in float32, without rounding: clean-fid, and LlamaGen's text evaluation."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from metrics.evaluators import HALF_PIXEL_BILINEAR, PIL_BICUBIC, TF1_BILINEAR

# Shapes: images (B, 3, H, W) uint8 -> (B, 3, S, S) float32 as `Inception` takes them, on the images' device.


def tf1_bilinear(images: Tensor, side: int) -> Tensor:
    """TensorFlow 1's resize in float32: positions i * in / out, the fraction weights the right and lower neighbours."""
    x = images.float()
    for dim in (3, 2):  # columns first, as TensorFlow's kernel does
        size = x.shape[dim]
        place = torch.arange(side, device=x.device, dtype=torch.float32) * torch.tensor(size / side).float()
        low = place.long().clamp_max(size - 1)
        weight = place - low
        first, second = x.index_select(dim, low), x.index_select(dim, (low + 1).clamp_max(size - 1))
        x = first + (second - first) * (weight if dim == 3 else weight[:, None])
    return x


def half_pixel_bilinear(images: Tensor, side: int) -> Tensor:
    """torch's resize, on images in [0, 1] like pytorch-fid.

    pytorch-fid gives its network 2 x - 1, not (255 x - 128) / 128. The factor 256 in place of 255 has this effect."""
    small = images.float() / 255
    return F.interpolate(small, size=(side, side), mode="bilinear", align_corners=False) * 256


def pil_bicubic(images: Tensor, side: int) -> Tensor:
    """Pillow's resize on the CPU, clipped to [0, 255] like clean-fid."""
    planes = images.cpu().numpy().astype(np.float32).reshape(-1, *images.shape[2:])
    resized = [np.asarray(Image.fromarray(plane).resize((side, side), Image.Resampling.BICUBIC)) for plane in planes]
    stacked = torch.from_numpy(np.stack(resized)).reshape(*images.shape[:2], side, side)
    return stacked.clamp(0, 255).to(images.device)


RESIZES: dict[str, Callable[[Tensor, int], Tensor]] = {
    TF1_BILINEAR: tf1_bilinear,
    HALF_PIXEL_BILINEAR: half_pixel_bilinear,
    PIL_BICUBIC: pil_bicubic,
}
