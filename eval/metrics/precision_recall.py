"""Improved precision and recall (Kynkaanniemi et al. 2019): k-nearest-neighbour balls in feature space.

Squared distances are matrix products in float32, one block of rows at a time. The reference's mean is subtracted first,
so that few digits cancel. ADM's evaluator (openai/guided-diffusion, evaluations/evaluator.py, DistanceBlock) computes
them in half precision and falls back to float32 for a block that overflows. `half` follows it: norms, products and sums
are rounded one by one.

Shapes: (M, D) samples, (M', D) reference."""

import numpy as np
import torch
from torch import Tensor

from metrics.frechet import check_features

NEIGHBOUR = 3
BLOCK = 2048  # rows a block: memory is BLOCK x M, never M x M
HALF_BLOCK = 10_000  # rows and columns of ADM's blocks; a whole block falls back


def precision_recall(
    samples: np.ndarray | Tensor,
    reference: np.ndarray | Tensor,
    half: bool = False,
    device: torch.device | str = "cpu",
) -> tuple[float, float]:
    """Share of samples inside a reference ball, and of reference points inside a sample ball.

    The radius of a ball is the distance from its centre to the third-nearest other point. Costs (M + M')^2 D
    multiplications."""
    inside, covered = inside_balls(samples, reference, half, device)
    return float(inside.mean()), float(covered.mean())


def inside_balls(
    samples: np.ndarray | Tensor,
    reference: np.ndarray | Tensor,
    half: bool = False,
    device: torch.device | str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """Which samples lie inside a reference ball (M,), and which reference points inside a sample ball (M',).

    Raises InputError for features of different dimensions, for none, and for features that are not finite."""
    check_features(samples, "the samples")
    check_features(reference, "the reference", samples.shape[1])
    a, b = (torch.as_tensor(features).to(device, torch.float32) for features in (samples, reference))
    if not half:  # ADM rounds the features as they are
        centre = b.mean(0)
        a, b = a - centre, b - centre
    radii_a, radii_b = _radii(a, half), _radii(b, half)
    inside = torch.zeros(len(a), dtype=torch.bool, device=a.device)
    covered = torch.zeros(len(b), dtype=torch.bool, device=a.device)
    for rows, columns, distance in _blocks(a, b, half):
        inside[rows] |= (distance <= radii_b[columns]).any(1)
        covered[columns] |= (distance <= radii_a[rows][:, None]).any(0)
    return inside.cpu().numpy(), covered.cpu().numpy()


def _radii(points: Tensor, half: bool) -> Tensor:
    """Squared distance of each point to its third-nearest neighbour: (M,)."""
    count = min(NEIGHBOUR + 1, len(points))  # the nearest point is the point itself
    nearest = torch.full((len(points), count), torch.inf, device=points.device)
    for rows, _, distance in _blocks(points, points, half):
        both = torch.cat([nearest[rows], distance.topk(min(count, distance.shape[1]), largest=False).values], 1)
        nearest[rows] = both.topk(count, largest=False).values
    return nearest.max(1).values


def _blocks(a: Tensor, b: Tensor, half: bool):
    """Blocks of squared distances: slices of rows and columns, and the distances (rows, columns) float32."""
    height, width = (HALF_BLOCK, HALF_BLOCK) if half else (BLOCK, len(b))
    for top in range(0, len(a), height):
        rows = slice(top, min(top + height, len(a)))
        for left in range(0, len(b), width):
            columns = slice(left, min(left + width, len(b)))
            yield rows, columns, (_half_distances if half else _distances)(a[rows], b[columns])


def _distances(a: Tensor, b: Tensor) -> Tensor:
    norms = a.square().sum(1)[:, None], b.square().sum(1)
    return torch.addmm(norms[0] + norms[1], a, b.T, alpha=-2).clamp_min_(0)


def _half_distances(a: Tensor, b: Tensor) -> Tensor:
    half_a, half_b = a.half().float(), b.half().float()
    norms = [part.square().half().float().sum(1).half() for part in (half_a, half_b)]
    product = (half_a @ half_b.T).half()
    distance = (norms[0][:, None] - 2 * product) + norms[1]
    return distance.float().clamp_min_(0) if distance.isfinite().all() else _distances(a, b)
