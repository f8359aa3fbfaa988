"""Inception weights for tests: seeded ones in the published layout, and a stand-in for what needs no real network."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from metrics.inception import BLOCKS, CLASSES, POOLED, SPATIAL, STEM, Inception

SEED = 20240  # of ../shared/golden/eval/weights.py, whose rule this follows


def _convolutions() -> dict[str, tuple[int, ...]]:
    """Shapes of the network's 94 convolutions by their published names."""
    model, shapes = Inception(), {}
    for name in STEM:
        shapes[name] = tuple(getattr(model, name).weight.shape)
    for block, plan in BLOCKS.items():
        module = getattr(model, block)
        for name, channels in plan.heads.items():
            shapes[f"{block}.{name}"] = (channels, *module.heads.weight.shape[1:])
        for name in plan.tails:
            shapes[f"{block}.{name}"] = tuple(getattr(module, name).weight.shape)
    return shapes


def seeded_state() -> dict[str, Tensor]:
    """The 566 tensors of the published file, random: a NumPy stream each, numbered in the order of sorted names."""
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (CLASSES, POOLED), "fc.bias": (CLASSES,)}
    for name, shape in _convolutions().items():
        shapes[f"{name}.conv.weight"] = shape
        shapes[f"{name}.bn.num_batches_tracked"] = ()
        shapes |= {f"{name}.bn.{key}": shape[:1] for key in ("weight", "bias", "running_mean", "running_var")}
    return {key: _fill(key, shapes[key], SEED + place) for place, key in enumerate(sorted(shapes))}


def _fill(key: str, shape: tuple[int, ...], seed: int) -> Tensor:
    rng = np.random.RandomState(seed)
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if key.endswith("bn.weight"):
        return torch.ones(shape)
    if key.endswith("running_var"):
        return torch.from_numpy(rng.uniform(0.5, 1.0, shape).astype(np.float32))
    if key == "fc.weight":
        return torch.from_numpy((rng.standard_normal(shape) * 0.002).astype(np.float32))
    scale = 0.1 if key == "fc.bias" else np.sqrt(2.0 / np.prod(shape[1:])) if key.endswith("conv.weight") else 0.2
    return torch.from_numpy((scale * rng.standard_normal(shape)).astype(np.float32))


def save_seeded(folder: Path) -> Path:
    """A file of seeded weights, under the name that pytorch-fid looks for."""
    path = folder / "pt_inception-2015-12-05-6726825d.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(seeded_state(), path)
    return path


class StandIn(nn.Module):
    """What `Inception` is to the code around it, a thousand times as fast: projections of the shrunken image."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.pooled = nn.Parameter(torch.randn(3 * 64, POOLED, generator=rng) / 14, requires_grad=False)
        self.spatial = nn.Parameter(torch.randn(3 * 64, SPATIAL, generator=rng) / 14, requires_grad=False)
        self.fc = nn.Linear(POOLED, CLASSES)
        self.fc.weight = nn.Parameter(torch.randn(CLASSES, POOLED, generator=rng) / 45, requires_grad=False)
        self.sha256 = "5" * 64

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        small = nn.functional.adaptive_avg_pool2d((images - 128) / 128, 8).flatten(1)
        return (small @ self.pooled).relu(), small @ self.spatial
