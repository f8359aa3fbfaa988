"""Improved precision and recall (Kynkaanniemi et al. 2019): k-nearest-neighbour balls in feature space."""

import numpy as np
import torch
from torch import Tensor

NEIGHBOUR = 3
BLOCK = 2048  # rows a block: memory is BLOCK x M, never M x M


def precision_recall(samples: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Share of samples inside a reference ball, and of reference points inside a sample ball.

    Features (M, D), (M', D); a ball reaches to its centre's third-nearest neighbour, itself not counted."""
    # float64: distances by matrix products are fast, and in float32 would lose half their digits.
    a, b = torch.from_numpy(samples).double(), torch.from_numpy(reference).double()
    return _share_inside(a, b, _radii(b)), _share_inside(b, a, _radii(a))


def _radii(points: Tensor) -> Tensor:
    """Distance of each point to its third-nearest neighbour: (M,)."""
    rows = []
    for block in points.split(BLOCK):
        nearest = torch.cdist(block, points)
        rows.append(nearest.topk(NEIGHBOUR + 1, largest=False).values[:, -1])  # the nearest is itself
    return torch.cat(rows)


def _share_inside(points: Tensor, centres: Tensor, radii: Tensor) -> float:
    inside = 0
    for block in points.split(BLOCK):
        distance = torch.cdist(block, centres)
        inside += int((distance <= radii).any(1).sum())
    return inside / len(points)
