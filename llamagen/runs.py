"""Runs on disk, opened again: the config, the inputs, the model, and what results say about them."""

import json
import logging
from pathlib import Path
from typing import Any

from llamagen.model import ARModel, build_model
from llamagen.training.checkpoint import hash_weights, last_checkpoint, load_progress, load_weights
from llamagen.training.config import TrainConfig
from llamagen.training.inputs import RunInputs, load_inputs
from masc.runtime.artifacts import Codebook, InputError
from masc.runtime.run import open_run, plain
from vq.readers.imagenet import wnids

logger = logging.getLogger(__name__)


def is_trained(config: TrainConfig) -> bool:
    """Whether the run is at its last step. Raises InputError if another config trained in its directory."""
    directory = config.directory
    if load_progress(last_checkpoint(directory)).step < config.steps:
        return False
    open_run(directory, plain(config), load_inputs(config).parents, config.volatile)
    return True


def load_config_of(run_dir: Path) -> TrainConfig:
    """The config that a run was trained with; InputError if there is none."""
    from omegaconf import OmegaConf

    file = Path(run_dir) / "config.yaml"
    if not file.exists():
        raise InputError(f"no run at {run_dir} (no config.yaml); train it with `make train`")
    schema = OmegaConf.structured(TrainConfig)
    config = OmegaConf.to_object(OmegaConf.merge(schema, OmegaConf.load(file)))
    config.run_dir = str(run_dir)
    return config


def load_run(run_dir: Path) -> tuple[TrainConfig, RunInputs, ARModel]:
    """A trained run: its config, inputs and model with the last checkpoint's weights, on the CPU.

    Raises InputError if there is no run, it has no checkpoint, or an artefact it was made from changed."""
    config = load_config_of(run_dir)
    inputs = load_inputs(config)
    open_run(config.directory, plain(config), inputs.parents, config.volatile)
    model = build_model(config.model, config.head, inputs.shape, inputs.partition, config.seed)
    load_weights(last_checkpoint(config.directory), model)
    return config, inputs, model.eval()


def run_protocol(run_dir: Path, weights_sha256: str, use_ema: bool) -> dict[str, Any]:
    """Which model and how far trained a run's samples are of; the step only if the weights are still the last, with a
    warning if they are not."""
    config = load_config_of(run_dir)
    found = {
        "model": config.model.name,
        "head": config.head.name,
        "data": config.data.name,
        "drawn_at": config.data.resolution,
    }
    if config.head.uses_tree:
        found |= {"tree": config.tree.name, "K": config.head.clusters(_codebook(config).num_tokens)}
    if hash_weights(run_dir, use_ema) == weights_sha256:
        progress = load_progress(last_checkpoint(run_dir))
        found |= {
            "step": progress.step,
            "images_seen": progress.step * config.batch_size,
            "seconds": progress.seconds,
        }
    else:
        logger.warning(
            "%s: its samples were drawn from other weights (%s) than it has now; they are measured as they are, "
            "without a step. Delete the set to have it drawn anew, or name another with SAMPLES=...",
            run_dir,
            weights_sha256[:12],
        )
    return found


def run_evidence(run_dir: Path) -> dict[str, Any]:
    """What `make doctor` wants to know of the run behind a sample set."""
    config = load_config_of(run_dir)
    found: dict[str, Any] = {"average_kept": (last_checkpoint(run_dir) / "average.safetensors").exists()}
    provenance = json.loads((run_dir / "provenance.json").read_text())
    codebook = _codebook(config)
    if config.head.uses_tree and provenance.get("parents", {}).get("codebook") == codebook.meta.sha256:
        found["tree_tokenizer_sha256"] = codebook.meta.parents["tokenizer"]
    names = class_names(config)
    if len(names) == 1000:
        found["label_map"] = "sorted-wnids" if names == list(wnids()) else "other"
    return found


def class_names(config: TrainConfig) -> list[str]:
    """The classes that a run was trained on; none if its codes are no longer there."""
    meta = config.layout.codes(config.data.name, "train") / "meta.json"
    return json.loads(meta.read_text())["class_names"] if meta.exists() else []


def _codebook(config: TrainConfig) -> Codebook:
    return config.layout.load_codebook()
