"""What is said of a set of pictures: FD-lite0, IS-lite0, precision, recall, each with its protocol."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from masc.artifacts import reuse_npz, save_npz
from masc.groups import Groups
from metrics.bootstrap import SHARE, bootstrap_interval
from metrics.frechet import Gaussian, frechet_distance
from metrics.inception_score import inception_score
from metrics.lite0 import PROTOCOL, Features, extract_features
from metrics.precision_recall import NEIGHBOUR, inside_balls
from metrics.results import row
from metrics.streams import SourcePictures
from vq.images import ImageSource

VERSION = 1
MAX_REFERENCE = 50_000  # pictures: more cost hours and change little


@dataclass(frozen=True)
class Reference:
    """Features of the pictures that samples are compared with."""

    pooled: np.ndarray  # (M, 1280) float32
    sha256: str
    description: str


def draw_variants(source: ImageSource, seed: int | list[int]) -> np.ndarray:
    """One picture of every group, as training draws them: indices (G,) into the source."""
    groups = Groups(source.groups)
    return groups.pick(np.arange(len(groups)), np.random.default_rng(seed).random(len(groups)))


def load_reference(
    path: Path, data: str, images_sha256: str, source: Callable[[], ImageSource], extractor: nn.Module, seed: int = 0
) -> Reference:
    """The reference of a data set: one picture of every group of its training split, 50,000 at most.

    Kept in `path` for the pictures whose hash is given; `source` is called, and the features made, only where
    they are missing."""
    description = f"{data} train, one variant of each group"
    config, parents = {"reference": description, "seed": seed, **PROTOCOL}, {"images": images_sha256}
    found = reuse_npz(path, "reference", VERSION, config, parents)
    if found is not None:
        return Reference(found[0]["pooled"], found[1].sha256, description)
    images = source()
    chosen = draw_variants(images, [seed, 1000])
    if len(chosen) > MAX_REFERENCE:
        chosen = np.sort(np.random.default_rng([seed, 1005]).permutation(chosen)[:MAX_REFERENCE])
    pooled = extract_features(extractor, SourcePictures(images, chosen)).pooled
    meta = save_npz(path, "reference", VERSION, {"pooled": pooled}, config, parents)
    return Reference(pooled, meta.sha256, description)


def measure_images(
    images: np.ndarray, reference: Reference, extractor: nn.Module, protocol: dict[str, Any], replicates: int = 0
) -> list[dict[str, Any]]:
    """FD-lite0, IS-lite0, precision and recall of uint8 pictures (M, H, W, 3): rows of metric, value, protocol.

    `protocol` says where the pictures came from; `replicates` resamples give each a confidence interval."""
    return measure_features(extract_features(extractor, images), reference, protocol, replicates)


def measure_features(
    found: Features, reference: Reference, protocol: dict[str, Any], replicates: int = 0
) -> list[dict[str, Any]]:
    """The same of pictures whose features are at hand."""
    common = {**protocol, "num_images": len(found.pooled), **PROTOCOL}
    against = {
        **common,
        "reference": reference.description,
        "reference_size": len(reference.pooled),
        "reference_sha256": reference.sha256,
    }
    neighbours = {**against, "neighbour": NEIGHBOUR}
    inside, covered = inside_balls(found.pooled, reference.pooled)
    gaussian = Gaussian.of(reference.pooled)
    measured: list[tuple[str, int, Callable[[np.ndarray], float], dict[str, Any]]] = [
        ("FD-lite0", len(inside), lambda drawn: frechet_distance(found.pooled[drawn], gaussian), against),
        ("IS-lite0", len(inside), lambda drawn: inception_score(found.logits[drawn]), {**common, "splits": 1}),
        ("precision-lite0", len(inside), lambda drawn: float(inside[drawn].mean()), neighbours),
        ("recall-lite0", len(covered), lambda drawn: float(covered[drawn].mean()), neighbours),
    ]
    rows = []
    for metric, count, compute, about in measured:
        value = compute(np.arange(count))
        bounds = SHARE if about is neighbours else (0.0, math.inf)
        rows.append(row(metric, value, about, bootstrap_interval(value, count, compute, replicates, bounds)))
    return rows
