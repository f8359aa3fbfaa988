"""`make eval-lite`: the held-out likelihood of a run, and metrics of its samples in the embedded feature space."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from llamagen.evaluation.saved import holds
from llamagen.evaluation.temperature import TemperedNats, fitted
from llamagen.runs import Run
from llamagen.sampling.sets import SampleSet
from llamagen.training.config import TrainConfig
from llamagen.training.likelihood import image_nats
from masc.layout import reference_file
from masc.runtime.codes import Codes, read_meta
from masc.runtime.device import build_accelerator
from metrics.lite0 import ReferenceFeatures, load_extractor, load_reference, measure_images
from metrics.results import FITTED_NATS, Results, row
from metrics.streams import Images
from vq.readers import load_images


@dataclass(kw_only=True)
class EvalLiteConfig:
    """A run, and those of its sample sets that are to be measured."""

    run: str  # its directory
    samples: list[str] = field(default_factory=lambda: ["default"])  # names of sample sets; may be empty
    bootstrap: int = 10  # resamples for the confidence intervals; 0: none


def reference_path(artifacts: str, data: str) -> Path:
    """File of the reference features of a data set."""
    return reference_file(Path(artifacts), f"{data}-lite0")


def likelihood(run: Run) -> list[dict[str, Any]]:
    """Held-out nats per fine token, with the standard error over images, in float32: as they are, and at a fitted
    temperature. The first is what compares runs."""
    accelerator, model, inputs = build_accelerator(), run.load_model(), run.inputs
    model.to(accelerator.device)
    held_out, tempered = inputs.held_out, TemperedNats()
    found = image_nats(accelerator, model, held_out, inputs.conditions["val"], watch=tempered)
    nats = found.double().sum(1).cpu().numpy() / held_out.num_positions
    at_best, temperatures = fitted(tempered.by_image() / held_out.num_positions)
    protocol = {
        "images": f"{run.config.data.name} {_judged_by(run.config)}, first view",
        "num_images": len(nats),
        "standard_error_over_images": float(nats.std(ddof=1) / np.sqrt(len(nats))),
        "codes_sha256": inputs.held_out.sha256,
        "weights_sha256": run.weights_sha256,
    }
    of_fitted = protocol | {
        "standard_error_over_images": float(at_best.std(ddof=1) / np.sqrt(len(at_best))),
        "temperatures": temperatures,
    }
    return [
        row("held-out nats per token", float(nats.mean()), protocol),
        row(FITTED_NATS, float(at_best.mean()), of_fitted),
    ]


def _judged_by(config: TrainConfig) -> str:
    """The images that judge a run."""
    return f"train, {config.tuning_share:.0%} held out for tuning" if config.tuning_share else "val"


def unmeasured(config: EvalLiteConfig) -> list[str]:
    """Those of `likelihood` and the sample sets that have no results for the present weights and images."""
    run = Run(Path(config.run))
    return _unmeasured(config, run, [_open(run, name, torch.device("cpu")) for name in config.samples])


def _open(run: Run, name: str, device: torch.device) -> tuple[SampleSet, Images, dict[str, Any]]:
    """A sample set, its images, and the settings and hashes that its results must carry."""
    samples = SampleSet(run, name)
    images = samples.open_images(device)
    return samples, images, samples.protocol() | {"images_sha256": images.sha256}


def _unmeasured(config: EvalLiteConfig, run: Run, sets: list[tuple[SampleSet, Images, dict[str, Any]]]) -> list[str]:
    directory = run.directory / "eval"
    about_likelihood = {"weights_sha256": run.weights_sha256}
    codes = run.config.layout.codes(run.config.data.name, "train" if run.config.tuning_share else "val")
    if codes.exists():
        about_likelihood["codes_sha256"] = read_meta(codes).sha256
    file = directory / "likelihood.json"
    is_there = {"likelihood": holds(file, about_likelihood) and FITTED_NATS in Results.load(file).by_metric}
    for samples, _, about in sets:
        is_there[samples.name] = holds(directory / f"{samples.name}.json", about, config.bootstrap)
    return [name for name, found in is_there.items() if not found]


def evaluate_lite(config: EvalLiteConfig) -> Path:
    """Write eval/likelihood.json and eval/<samples>.json of a run, and return the directory.

    Results of the same weights and images are kept."""
    run, device = Run(Path(config.run)), build_accelerator().device
    sets = [_open(run, name, device) for name in config.samples]
    # Warns of samples of other weights.
    sources = {samples.name: run.protocol(samples.manifest) for samples, *_ in sets}
    directory, missing = run.directory / "eval", _unmeasured(config, run, sets)
    if "likelihood" in missing:
        Results(likelihood(run)).save(directory / "likelihood.json")
    sets = [each for each in sets if each[0].name in missing]
    if not sets:
        return directory
    extractor = load_extractor().to(device)
    reference = load_run_reference(run.config, run.inputs.train, extractor)
    for samples, images, about in sets:
        protocol = about | sources[samples.name]
        rows = measure_images(images.read(0, len(images)), reference, extractor, protocol, config.bootstrap)
        Results(rows).save(directory / f"{samples.name}.json")
    return directory


def load_run_reference(config: TrainConfig, train: Codes, extractor: nn.Module) -> ReferenceFeatures:
    """The features of a run's training images, as `load_reference`."""
    data = config.data
    return load_reference(
        reference_path(config.artifacts, data.name),
        data.name,
        _images_of(train),
        lambda: load_images(data.source, "train", data.resolution, data.path),
        extractor,
    )


def _images_of(codes: Codes) -> str:
    """Identity of the images that codes were made from. Of imported codes, only the codes are known."""
    return codes.sha256 if codes.config.get("imported") else codes.config.get("images_sha256", codes.sha256)
