"""Similarity of images to their originals, by pairs and as a set: PSNR, SSIM, LPIPS, Frechet distance.

All images are uint8; the first three metrics are means over pairs."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from masc.runtime.errors import InputError
from metrics.frechet import Gaussian, Moments, frechet_distance
from metrics.perceptual import Lpips
from metrics.spaces import Space
from vq.quality import MAX_PSNR, peak_signal_to_noise

PSNR, SSIM, LPIPS = "PSNR (dB)", "SSIM", "LPIPS"
WANG = {"data_range": 255, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}  # Wang et al. 2004
# FoundationVision/LlamaGen, tokenizer/tokenizer_image/reconstruction_vq_ddp.py at 5a50452: a uniform 7 x 7 window, and
# a range of 2 for images in [0, 1]: the constants are four times Wang's and the values higher.
LLAMAGEN = {"data_range": 2.0}
WINDOW = 11  # pixels a side of Wang's


def structural_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """SSIM of each pair of uint8 images by scikit-image, Gaussian window: (B, H, W, 3), (B, H, W, 3) -> (B,)."""
    return _similarities(a, b, WANG)


def llamagen_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """SSIM as LlamaGen computes it, for comparison with its tables only: (B, H, W, 3), (B, H, W, 3) -> (B,)."""
    return _similarities(*(images.astype(np.float32) / 255 for images in (a, b)), LLAMAGEN)


def _similarities(a: np.ndarray, b: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    from skimage.metrics import structural_similarity as ssim

    if a.shape != b.shape or a.ndim != 4 or min(a.shape[1:3]) < WINDOW:
        raise InputError(f"SSIM needs pairs of images of {WINDOW} pixels a side or more, found {a.shape} and {b.shape}")

    def similarity(pair: tuple[np.ndarray, np.ndarray]) -> float:
        return float(ssim(*pair, channel_axis=-1, **options))

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # SciPy's filters let other threads run
        return np.array(list(pool.map(similarity, zip(a, b, strict=True))))


@dataclass(frozen=True)
class Judges:
    """The networks that compare images, in addition to PSNR and SSIM."""

    spaces: tuple[Space, ...]
    lpips: Lpips | None = None

    def compare(self, images: np.ndarray, originals: np.ndarray) -> dict[str, np.ndarray]:
        """Each metric of pairs of uint8 images: (B, H, W, 3), (B, H, W, 3) -> (B,)."""
        values = {
            PSNR: np.minimum(peak_signal_to_noise(images, originals), MAX_PSNR),
            SSIM: structural_similarity(images, originals),
        }
        return values if self.lpips is None else values | {LPIPS: self.lpips(images, originals)}

    def protocol(self, metric: str) -> dict[str, Any]:
        """Protocol keys of a metric."""
        if metric == PSNR:
            return {"pixels": "uint8", "at_most": MAX_PSNR}
        if metric == SSIM:
            return {"by": "scikit-image", **WANG}
        if metric == LPIPS:
            return self.lpips.protocol
        return next(space.protocol for space in self.spaces if space.frechet == metric)


class ImageSet:
    """Statistics of a set of images in each space, batch by batch; memory is constant."""

    def __init__(self, judges: Judges):
        self.spaces = judges.spaces
        self._moments = [Moments(space.dim, space.device) for space in judges.spaces]

    def add(self, images: np.ndarray) -> None:
        for space, moments in zip(self.spaces, self._moments, strict=True):
            moments.add(space.pool(images))

    def gaussians(self) -> dict[str, Gaussian]:
        """Statistics by the name of the space's Frechet distance."""
        return {space.frechet: found.gaussian() for space, found in zip(self.spaces, self._moments, strict=True)}


class Comparison:
    """Comparison of images with their originals, batch by batch."""

    def __init__(self, judges: Judges):
        self._judges, self._images = judges, ImageSet(judges)
        self._pairs: dict[str, list[np.ndarray]] = {}

    def add(self, images: np.ndarray, originals: np.ndarray) -> None:
        """Add images and their originals: uint8 (B, H, W, 3), (B, H, W, 3)."""
        for metric, values in self._judges.compare(images, originals).items():
            self._pairs.setdefault(metric, []).append(values)
        self._images.add(images)

    def values(self, originals: dict[str, Gaussian]) -> dict[str, float]:
        """The value of every metric, given the statistics of the originals in each space."""
        means = {metric: float(np.concatenate(values).mean()) for metric, values in self._pairs.items()}
        found = self._images.gaussians()
        return means | {name: frechet_distance(found[name], originals[name]) for name in found}
