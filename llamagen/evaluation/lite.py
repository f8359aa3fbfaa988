"""Evaluation of a run: held-out likelihood, and the metrics of its samples in the embedded feature space."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from llamagen.model import ARModel
from llamagen.runs import load_run, run_protocol
from llamagen.sampling.sets import load_samples, samples_protocol
from llamagen.training.checkpoint import hash_weights
from llamagen.training.config import TrainConfig
from llamagen.training.inputs import RunInputs
from llamagen.training.likelihood import image_nats
from masc.runtime.artifacts import InputError
from metrics.lite0 import load_extractor, load_reference, measure_images
from metrics.results import Results, row
from vq.readers import load_images


@dataclass(kw_only=True)
class EvaluateConfig:
    """Which run and which of its sample sets to measure."""

    run: str  # its directory
    samples: list[str] = field(default_factory=lambda: ["default"])  # names of sample sets; may be empty
    bootstrap: int = 10  # resamples for the confidence intervals; 0: none


def reference_path(artifacts: str, data: str) -> Path:
    """Where the reference features of a data set are kept."""
    return Path(artifacts) / "references" / f"{data}-lite0.npz"


def likelihood(config: TrainConfig, inputs: RunInputs, model: ARModel) -> list[dict[str, Any]]:
    """Held-out nats per fine token, with the standard error over images, in float32."""
    accelerator = Accelerator()
    model.to(accelerator.device)
    nats = image_nats(accelerator, model, inputs.held_out, inputs.conditions["val"]).double().sum(1).cpu().numpy()
    nats /= inputs.held_out.num_positions
    protocol = {
        "images": f"{config.data.name} val, first view",
        "num_images": len(nats),
        "standard_error_over_images": float(nats.std(ddof=1) / np.sqrt(len(nats))),
        "codes_sha256": inputs.held_out.sha256,
        "weights_sha256": hash_weights(config.directory),
    }
    return [row("held-out nats per token", float(nats.mean()), protocol)]


def unmeasured(config: EvaluateConfig) -> list[str]:
    """Which of `likelihood` and the sample sets have no results for the present weights and samples."""
    run_dir = Path(config.run)
    wanted = {"likelihood": {"weights_sha256": hash_weights(run_dir)}}
    wanted |= {name: samples_protocol(run_dir / "samples" / name) for name in config.samples}
    return [name for name, protocol in wanted.items() if not _holds(run_dir / "eval" / f"{name}.json", protocol)]


def _holds(path: Path, protocol: dict[str, Any]) -> bool:
    try:
        found = Results.load(path).rows[0]["protocol"]
    except InputError:
        return False
    return all(found.get(key) == value for key, value in protocol.items())


def evaluate_run(config: EvaluateConfig) -> Path:
    """Write eval/likelihood.json and eval/<samples>.json of a run; what is there for the same weights and
    samples is kept. Returns the directory."""
    train_config, inputs, model = load_run(Path(config.run))
    directory, missing = train_config.directory / "eval", unmeasured(config)
    if "likelihood" in missing:
        Results(likelihood(train_config, inputs, model)).save(directory / "likelihood.json")
    sets = [name for name in config.samples if name in missing]
    if not sets:
        return directory
    extractor = load_extractor().to(Accelerator().device)
    data = train_config.data
    reference = load_reference(
        reference_path(train_config.artifacts, data.name),
        data.name,
        inputs.train.config["images_sha256"],
        lambda: load_images(data.source, "train", data.resolution, data.path),
        extractor,
    )
    for name in sets:
        place = train_config.directory / "samples" / name
        protocol = samples_protocol(place)
        averaged = protocol["weights"] == "average"
        protocol |= run_protocol(train_config.directory, protocol["weights_sha256"], averaged)
        rows = measure_images(load_samples(place), reference, extractor, protocol, config.bootstrap)
        Results(rows).save(directory / f"{name}.json")
    return directory
