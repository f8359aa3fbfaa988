"""One pass over a set of images: Inception features, and statistics of the pixels for `make doctor`.

Processes share the batches; the main process collects the pooled features in the order of the images. Memory holds the
pooled features (8 kB an image), the moments of the spatial features (32 MB) and a few batches."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm

from masc.runtime.errors import InputError
from metrics.frechet import Gaussian, Moments
from metrics.inception import POOLED, SIDE, SPATIAL, Inception, exact_arithmetic
from metrics.resize import RESIZES
from metrics.streams import Images, read_batches


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Inception features of M images."""

    pooled: np.ndarray  # (M, 2048) float32
    spatial: Gaussian  # of the 2023 spatial features
    size: tuple[int, int]  # height and width of the images
    pixels: dict[str, float] = field(default_factory=dict)  # `blockiness`, `sharpness`

    @cached_property
    def gaussian(self) -> Gaussian:
        return Gaussian.of(self.pooled, self.spatial.mean.device)


def inception_features(
    images: Images, model: Inception, resize: str, batch_size: int = 32, state: PartialState | None = None
) -> ImageFeatures | None:
    """Features of all images, computed in true float32 on the model's device; None outside the main process.

    About 14 images a second on two CPU cores, nearly all of it in the network (`make bench-eval`). Raises InputError
    for unreadable images, for images of different sizes, and for features that are not finite."""
    state = state or PartialState(cpu=not torch.cuda.is_available())
    device = model.fc.weight.device
    starts = range(0, len(images), batch_size)[state.process_index :: state.num_processes]
    pooled = np.empty((len(images), POOLED), np.float32)
    spatial, pixels = Moments(SPATIAL, device), PixelSums()
    mine = sum(min(batch_size, len(images) - start) for start in starts)
    with (
        exact_arithmetic(),
        tqdm(total=mine, desc="features", unit="image", disable=None if state.is_main_process else True) as bar,
    ):
        for start, batch in read_batches(images, starts, batch_size):
            part = torch.tensor(batch, device=device).permute(0, 3, 1, 2)
            found, rows = model(RESIZES[resize](part, SIDE))
            if not found.isfinite().all():
                bad = start + int((~found.isfinite()).any(1).nonzero()[0])
                raise InputError(f"the features of image {bad} of {images.name} are not finite")
            pooled[start : start + len(batch)] = found.cpu().numpy()
            spatial.add(rows)
            pixels.add(part)
            bar.update(len(batch))
    if state.num_processes > 1:
        own = {start: pooled[start : start + batch_size] for start in starts}, spatial.cpu(), pixels
        parts = [None] * state.num_processes if state.is_main_process else None
        torch.distributed.gather_object(own, parts)
        if parts is None:
            return None
        spatial, pixels = Moments(SPATIAL, device), PixelSums()
        for batches, moments, sums in parts:
            for start, batch in batches.items():
                pooled[start : start + batch_size] = batch
            spatial.merge([moments])
            pixels.merge(sums)
    return ImageFeatures(pooled, spatial.gaussian(), pixels.size, pixels.summary())


class PixelSums:
    """Running sums that reveal JPEG and resizing: steps across and off the 8-pixel grid, and the Laplacian."""

    def __init__(self) -> None:
        self.size = (0, 0)
        self._sums = np.zeros(3)  # steps across boundaries of blocks, other steps, Laplacian
        self._counts = np.zeros(3)

    def add(self, images: Tensor) -> None:
        """Add images (B, 3, H, W) uint8; InputError if their size differs from the size of the earlier ones."""
        size = (images.shape[2], images.shape[3])
        if self.size not in ((0, 0), size):
            raise InputError(f"images of one size are needed, found {self.size} and {size} pixels (height, width)")
        self.size = size
        grey = images.float().mean(1)
        steps = [(grey[:, 1:] - grey[:, :-1]).abs().mean((0, 2)), (grey[:, :, 1:] - grey[:, :, :-1]).abs().mean((0, 1))]
        for step in steps:
            across = torch.arange(1, len(step) + 1, device=step.device) % 8 == 0
            for index, part in enumerate((step[across], step[~across])):
                self._sums[index] += float(part.sum()) * len(images)
                self._counts[index] += len(part) * len(images)
        if min(size) > 2:
            kernel = grey.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
            self._sums[2] += float(F.conv2d(grey[:, None], kernel).abs().mean()) * len(images)
            self._counts[2] += len(images)

    def merge(self, other: "PixelSums") -> None:
        if (0, 0) not in (self.size, other.size) and self.size != other.size:
            raise InputError(f"images of one size are needed, found {self.size} and {other.size} pixels")
        self.size = max(self.size, other.size)
        self._sums += other._sums
        self._counts += other._counts

    def summary(self) -> dict[str, Any]:
        across, elsewhere, laplacian = self._sums / np.maximum(self._counts, 1)
        return {"blockiness": across / elsewhere if elsewhere else 1.0, "sharpness": laplacian}
