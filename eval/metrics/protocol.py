"""Evaluation protocols (reference, resize, definitions) and their metrics.

`adm` is the protocol of ADM and LlamaGen (FID, sFID, IS, precision, recall), `paper` is MASC's (torch-fidelity,
Appendix A.4). Protocols with the same resize share features."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from masc.runtime.streams import Purpose, random_stream
from metrics.bootstrap import SHARE, bootstrap_interval
from metrics.evaluators import NAME, TF1_BILINEAR
from metrics.features import ImageFeatures
from metrics.frechet import Gaussian, frechet_distance
from metrics.inception import ARITHMETIC, Inception, exact_arithmetic
from metrics.inception_score import FORMS, form_chunks, inception_score
from metrics.precision_recall import NEIGHBOUR, inside_balls
from metrics.reference import ReferenceStatistics
from metrics.resize import RESIZES
from metrics.results import Results, row
from metrics.streams import Images

logger = logging.getLogger(__name__)
METRICS = ("FID", "sFID", "IS", "precision", "recall")


@dataclass(kw_only=True)
class ProtocolConfig:
    """Definition of a protocol."""

    name: str
    evaluator: str  # its definitions are used: adm, torch-fidelity, pytorch-fid or clean-fid
    reference: str  # name in the registry (`make weights`), name of one from `make reference`, or a path
    metrics: list[str]  # some of METRICS
    resize: str = TF1_BILINEAR
    inception_score: str = "adm"  # how the images are split: adm or torch-fidelity
    half_precision_distances: bool = False  # precision and recall as ADM rounds them
    num_images: int = 50000  # images of the published numbers
    labels: str | None = None  # labels of samples that are drawn for this protocol; None: the sampler's default

    def __post_init__(self) -> None:
        unknown = [metric for metric in self.metrics if metric not in METRICS]
        if unknown or not self.metrics:
            raise ValueError(f"protocol.metrics must be some of {', '.join(METRICS)}, found {self.metrics}")
        if self.resize not in RESIZES:
            raise ValueError(f"protocol.resize must be one of {', '.join(RESIZES)}, not {self.resize!r}")
        if self.inception_score not in FORMS:
            raise ValueError(f"inception_score must be one of {', '.join(FORMS)}, not {self.inception_score!r}")
        if self.num_images < 2:
            raise ValueError(f"protocol.num_images must be at least 2, found {self.num_images}")

    @property
    def preparation(self) -> tuple[Any, ...]:
        """Values that determine the output of `prepare`; protocols with equal values share their features."""
        return ()

    def prepare(self, images: Images) -> Images:
        """The images as this protocol measures them, before the resize to the network."""
        return images

    @property
    def about_reference(self) -> dict[str, Any]:
        """Further protocol keys of the rows that use the reference."""
        return {}


def measure(
    config: ProtocolConfig,
    found: ImageFeatures,
    reference: ReferenceStatistics,
    model: Inception,
    about: dict[str, Any],
    replicates: int = 20,
) -> Results:
    """The metrics of a protocol, with bootstrap intervals for all but sFID, whose features are not kept.

    `about` holds the origin of the images. A metric without its part of the reference is left out with a warning."""
    num_images = len(found.pooled)
    common = {
        "protocol": config.name,
        "evaluator": config.evaluator,
        "extractor": NAME,
        "extractor_sha256": model.sha256,
        "resize": config.resize,
        "arithmetic": ARITHMETIC,
        "image_size": found.size[0],
        **about,
        "num_images": num_images,
    }
    against = {**common, **reference.protocol, **config.about_reference}
    rows = []
    with exact_arithmetic():
        if "FID" in config.metrics:
            rows.append(_fid(found, reference, against, replicates))
        if "sFID" in config.metrics and reference.spatial is None:
            logger.warning("no sFID: %s has no statistics mu_s and sigma_s", reference.name)
        elif "sFID" in config.metrics:
            rows.append(row("sFID", frechet_distance(found.spatial, reference.spatial), against))
        evidence: dict[str, Any] = {"sharpness": {"samples": found.pixels["sharpness"]}}
        if "IS" in config.metrics:
            score, evidence["inception_score"] = _inception_score(config, found, model, common, replicates)
            rows.append(score)
        if {"precision", "recall"} & set(config.metrics):
            rows += _precision_recall(config, found, reference, model, against, replicates)
    if reference.sharpness is not None:
        evidence["sharpness"]["reference"] = reference.sharpness
    size = f"{found.size[1]}x{found.size[0]}"
    evidence |= {
        "image_sizes": {size: num_images},
        "blockiness": found.pixels["blockiness"],
    }
    return Results(rows, evidence)


def _fid(
    found: ImageFeatures, reference: ReferenceStatistics, against: dict[str, Any], replicates: int
) -> dict[str, Any]:
    value = frechet_distance(found.gaussian, reference.pooled)
    device = found.gaussian.mean.device
    interval = bootstrap_interval(
        value,
        len(found.pooled),
        lambda drawn: frechet_distance(Gaussian.of(found.pooled[drawn], device), reference.pooled),
        replicates,
    )
    return row("FID", value, against, interval)


def _inception_score(
    config: ProtocolConfig, found: ImageFeatures, model: Inception, common: dict[str, Any], replicates: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row of the score, and its values for two orders of the images."""
    pooled = torch.from_numpy(found.pooled)
    weight = model.fc.weight
    logits = torch.cat(
        [part.to(weight) @ weight.T for part in pooled.split(4096)]
    )  # without bias, like both evaluators
    chunks = form_chunks(config.inception_score, len(logits))
    value = inception_score(logits, chunks)

    def resampled(drawn: np.ndarray) -> float:
        return inception_score(logits, [drawn[chunk] for chunk in chunks])

    splits = sum(len(chunk) > 0 for chunk in chunks)
    protocol = {**common, "form": config.inception_score, **FORMS[config.inception_score], "splits": splits}
    interval = bootstrap_interval(value, len(logits), resampled, replicates)
    in_order = form_chunks("adm", len(logits))
    shuffled = random_stream(0, Purpose.SCORE_ORDER).permutation(len(logits))
    order = {
        "file_order": inception_score(logits, in_order),
        "shuffled": inception_score(logits, [shuffled[chunk] for chunk in in_order]),
        "chunks": len(in_order),
    }
    return row("IS", value, protocol, interval), order


def _precision_recall(
    config: ProtocolConfig,
    found: ImageFeatures,
    reference: ReferenceStatistics,
    model: Inception,
    against: dict[str, Any],
    replicates: int,
) -> list[dict[str, Any]]:
    """Rows of both shares. Their intervals resample the tested points; the balls stay the same."""
    if reference.neighbours is None:
        logger.warning("no precision and recall: %s holds only statistics, no images arr_0", reference.name)
        return []
    half = config.half_precision_distances
    shares = inside_balls(found.pooled, reference.neighbours, half, model.fc.weight.device)
    protocol = {**against, "neighbour": NEIGHBOUR, "distances": "float16, as ADM" if half else "float32"}
    rows = []
    for metric, inside in zip(("precision", "recall"), shares, strict=True):
        if metric in config.metrics:
            compute: Callable[[np.ndarray], float] = lambda drawn, inside=inside: float(inside[drawn].mean())  # noqa: E731
            value = float(inside.mean())
            interval = bootstrap_interval(value, len(inside), compute, replicates, SHARE)
            rows.append(row(metric, value, protocol, interval))
    return rows
