"""Evaluation of a run: held-out likelihood, and the metrics of its samples in the embedded feature space."""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from llamagen.run import RunInputs, TrainConfig, load_run
from llamagen.sample import load_samples
from llamagen.train import image_nats
from masc.artifacts import hash_file, write_json
from metrics.features import load_extractor
from metrics.samples import load_reference, measure_images, row
from vq.images import load_images

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class EvaluateConfig:
    """Which run and which of its sample sets to measure."""

    run: str  # its directory
    samples: list[str] = field(default_factory=lambda: ["default"])  # names of sample sets; may be empty


def reference_path(config: TrainConfig) -> Path:
    """Where the reference features of a data set are kept."""
    return Path(config.artifacts) / "references" / f"{config.data.name}-lite0.npz"


def likelihood(config: TrainConfig, inputs: RunInputs, model: Any, weights: str) -> list[dict[str, Any]]:
    """Held-out nats per fine token, with the standard error over images, in float32."""
    accelerator = Accelerator()
    model.to(accelerator.device)
    nats = image_nats(accelerator, model, inputs.held_out).double().sum(1).cpu().numpy()
    nats /= inputs.held_out.num_positions
    protocol = {
        "images": f"{config.data.name} val, first view",
        "num_images": len(nats),
        "standard_error_over_images": float(nats.std(ddof=1) / np.sqrt(len(nats))),
        "codes_sha256": inputs.held_out.sha256,
        "weights_sha256": weights,
    }
    return [row("held-out nats per token", float(nats.mean()), protocol)]


def evaluate_run(config: EvaluateConfig) -> Path:
    """Write eval/likelihood.json and eval/<samples>.json of a run; what is there for the same weights and
    samples is kept. Returns the directory."""
    train_config, inputs, model = load_run(Path(config.run))
    directory = train_config.directory / "eval"
    weights = hash_file(train_config.directory / "checkpoints" / "last" / "model.safetensors")
    if not _is_current(directory / "likelihood.json", {"weights_sha256": weights}):
        write_json(directory / "likelihood.json", likelihood(train_config, inputs, model, weights))
    extractor = None
    for name in config.samples:
        images, manifest = load_samples(train_config.directory / "samples" / name)
        settings = manifest["config"]
        protocol = {
            "images": "samples",
            "weights_sha256": manifest["weights_sha256"],
            **settings["sampling"],
            "labels": settings["labels"],
            "seed": settings["seed"],
        }
        path = directory / f"{name}.json"
        if _is_current(path, {**protocol, "num_images": len(images)}):
            continue
        extractor = extractor or load_extractor()
        source = load_images(train_config.data.source, "train", train_config.data.resolution)
        reference = load_reference(reference_path(train_config), source, extractor)
        write_json(path, measure_images(images, reference, extractor, protocol))
    return directory


def _is_current(path: Path, protocol: dict[str, Any]) -> bool:
    """Whether results with this protocol are in the file already."""
    if not path.exists():
        return False
    found = json.loads(path.read_text())[0]["protocol"]
    return all(found.get(key) == value for key, value in protocol.items())
