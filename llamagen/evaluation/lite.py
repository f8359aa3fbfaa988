"""`make eval-lite`: the held-out likelihood of a run, and metrics of its samples in the embedded feature space."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llamagen.evaluation.saved import holds
from llamagen.runs import Run
from llamagen.sampling.sets import SampleSet
from llamagen.training.likelihood import image_nats
from masc.layout import reference_file
from masc.runtime.codes import Codes
from masc.runtime.device import build_accelerator
from metrics.lite0 import load_extractor, load_reference, measure_images
from metrics.results import Results, row
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
    """Held-out nats per fine token, with the standard error over images, in float32."""
    accelerator, model, inputs = build_accelerator(), run.load_model(), run.inputs
    model.to(accelerator.device)
    nats = image_nats(accelerator, model, inputs.held_out, inputs.conditions["val"]).double().sum(1).cpu().numpy()
    nats /= inputs.held_out.num_positions
    protocol = {
        "images": f"{run.config.data.name} val, first view",
        "num_images": len(nats),
        "standard_error_over_images": float(nats.std(ddof=1) / np.sqrt(len(nats))),
        "codes_sha256": inputs.held_out.sha256,
        "weights_sha256": run.weights_sha256,
    }
    return [row("held-out nats per token", float(nats.mean()), protocol)]


def unmeasured(config: EvalLiteConfig) -> list[str]:
    """Those of `likelihood` and the sample sets that have no results for the present weights and samples."""
    run = Run(Path(config.run))
    return _unmeasured(run, [SampleSet(run, name) for name in config.samples])


def _unmeasured(run: Run, sets: list[SampleSet]) -> list[str]:
    wanted = {"likelihood": {"weights_sha256": run.weights_sha256}, **{each.name: each.protocol() for each in sets}}
    return [name for name, protocol in wanted.items() if not holds(run.directory / "eval" / f"{name}.json", protocol)]


def evaluate_lite(config: EvalLiteConfig) -> Path:
    """Write eval/likelihood.json and eval/<samples>.json of a run, and return the directory.

    Results of the same weights and samples are kept."""
    run = Run(Path(config.run))
    sets = [SampleSet(run, name) for name in config.samples]
    directory, missing = run.directory / "eval", _unmeasured(run, sets)
    if "likelihood" in missing:
        Results(likelihood(run)).save(directory / "likelihood.json")
    sets = [each for each in sets if each.name in missing]
    if not sets:
        return directory
    device = build_accelerator().device
    extractor, data = load_extractor().to(device), run.config.data
    reference = load_reference(
        reference_path(run.config.artifacts, data.name),
        data.name,
        _images_of(run.inputs.train),
        lambda: load_images(data.source, "train", data.resolution, data.path),
        extractor,
    )
    for each in sets:
        images = each.open_images(device)
        protocol = each.protocol() | run.protocol(each.manifest)
        rows = measure_images(images.read(0, len(images)), reference, extractor, protocol, config.bootstrap)
        Results(rows).save(directory / f"{each.name}.json")
    return directory


def _images_of(codes: Codes) -> str:
    """Identity of the images that codes were made from. Of imported codes, only the codes are known."""
    return codes.sha256 if codes.config.get("imported") else codes.config.get("images_sha256", codes.sha256)
