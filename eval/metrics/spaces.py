"""Feature spaces in which two sets of images are compared, and the name of the Frechet distance in each."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metrics import inception, lite0
from metrics.evaluators import NAME, RESIZE, SHA256_PREFIX
from metrics.inception import Inception
from metrics.resize import RESIZES

EVALUATOR = "adm"  # LlamaGen's rFID is ADM's evaluator on reconstructions


@dataclass(frozen=True)
class Space:
    """The space of a network's pooled features."""

    frechet: str  # name of its distance: FID belongs to the Inception network only
    dim: int
    device: torch.device
    protocol: dict[str, Any]
    pool: Callable[[np.ndarray], Tensor]  # uint8 (B, H, W, 3) -> (B, D), on the device


def lite0_space(extractor: nn.Module) -> Space:
    device = next(extractor.parameters()).device
    return Space("FD-lite0", lite0.POOLED, device, lite0.PROTOCOL, lambda images: lite0.pool(extractor, images))


def inception_space(model: Inception) -> Space:
    device = model.fc.weight.device

    def pool(images: np.ndarray) -> Tensor:
        batch = torch.tensor(images, device=device).permute(0, 3, 1, 2)
        return model(RESIZES[RESIZE[EVALUATOR]](batch, inception.SIDE))[0]

    protocol = {
        "evaluator": EVALUATOR,
        "extractor": NAME,
        "extractor_sha256": model.sha256,
        "resize": RESIZE[EVALUATOR],
        "arithmetic": inception.ARITHMETIC,
    }
    return Space("FID", inception.POOLED, device, protocol, pool)


def inception_path(folder: Path) -> Path | None:
    """The Inception weights in the folder of `make weights`, by the file name of either source; None without them."""
    return next(iter(sorted(Path(folder).glob(f"*{NAME}-{SHA256_PREFIX}.pth"))), None)
