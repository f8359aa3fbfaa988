"""Runs on disk, opened again: config, inputs, weights, and what results say about them."""

import contextlib
import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llamagen.model import ARModel, build_model
from llamagen.training.checkpoint import (
    Progress,
    hash_weights,
    last_checkpoint,
    load_progress,
    load_weights,
    owes_row,
    use_average,
)
from llamagen.training.config import TrainConfig, load_config
from llamagen.training.initial import INITIAL, initial_parents
from llamagen.training.inputs import RunInputs, load_inputs
from llamagen.training.stream import group_labels
from masc.layout import Layout
from masc.runtime.artifacts import Codebook
from masc.runtime.codes import read_meta
from masc.runtime.errors import InputError, MissingArtifact
from masc.runtime.reading import advising
from masc.runtime.run import Provenance, differences, read_provenance, run_facts
from vq.interface import Tokenizer
from vq.pretrained import load_decoder
from vq.readers.imagenet import wnids

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Run:
    """A run on disk. Each file is read once, when it is first needed; open a new Run to see later changes."""

    directory: Path
    averaged: bool = False  # its weights are the average over training, not those of the last step

    @cached_property
    def config(self) -> TrainConfig:
        """The config that the run was trained with; MissingArtifact if there is no run, or its config is damaged."""
        file = self.directory / "config.yaml"
        if not file.exists():
            raise MissingArtifact(
                "run",
                self.directory,
                f"no run at {self.directory} (no config.yaml)",
                **run_facts(self.directory),
            )
        config = load_config(file)
        config.run_dir = str(self.directory)
        codebook = Layout(Path(config.artifacts), config.tokenizer_name).codebook
        config.artifacts = str(self._root_of(codebook) / config.artifacts)
        if config.captions is not None:
            config.captions = str(self._root_of(Path(config.captions)) / config.captions)
        return config

    def _root_of(self, path: Path) -> Path:
        """The directory that a relative path of the config is relative to: one that holds it.

        It is one above the run's own place, as in runs/<model>/<head>/seed0, the directory that the run was trained in,
        or the working directory."""
        places = list(self.directory.absolute().parents)
        with contextlib.suppress(InputError):  # a damaged provenance is told when it is needed
            trained_in = read_provenance(self.directory).directory
            places += [Path(trained_in)] if trained_in else []
        return next((place for place in places if (place / path).exists()), Path())

    @cached_property
    def provenance(self) -> Provenance:
        """Hashes of the run's inputs, commit, versions and machine; InputError if the file is missing or damaged."""
        with advising("copy it back from where the run was trained"):
            return read_provenance(self.directory)

    @cached_property
    def checkpoint(self) -> Path:
        """The directory of the last checkpoint when it was first asked for: a training may go on meanwhile."""
        return last_checkpoint(self.directory)

    @cached_property
    def progress(self) -> Progress:
        """Step and training time of the last checkpoint; step 0 if there is none."""
        return load_progress(self.checkpoint)

    @cached_property
    def codebook(self) -> Codebook:
        """The codebook of the run's tokenizer, as it is now."""
        return self.config.layout.load_codebook()

    @cached_property
    def inputs(self) -> RunInputs:
        """Codes, conditions and tree. Raises InputError if one is missing or was remade after training."""
        inputs = load_inputs(self.config, self.codebook)
        both = self.provenance.parents, inputs.parents
        lines = differences(*({kind: sha256[:12] for kind, sha256 in parents.items()} for parents in both), (INITIAL,))
        if lines:
            raise InputError(
                f"{self.directory} was trained on other inputs (SHA-256):\n{lines}\nBring those back, or train on the "
                "present ones with RUN_DIR=..."
            )
        return inputs

    @cached_property
    def class_names(self) -> list[str]:
        """The classes that the run was trained on; empty if its codes are no longer there."""
        codes = self.config.layout.codes(self.config.data.name, "train")
        return read_meta(codes).class_names if codes.exists() else []

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def label_population(self) -> np.ndarray:
        """The label of each training group (G,): labels drawn from it are as frequent as in training."""
        return group_labels(self.inputs.train)

    def is_trained(self, config: TrainConfig) -> bool:
        """Whether the run is at the last step of `config` and has logged it.

        Raises InputError if another config trained here."""
        if self.progress.step < config.steps or owes_row(self.directory, self.progress):
            return False
        config.check_directory(load_inputs(config).parents | initial_parents(config, is_resumed=True))
        return True

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights; InputError if the run has none."""
        return hash_weights(self.checkpoint, self.averaged)

    def load_model(self) -> ARModel:
        """A new model with these weights, in evaluation mode on the CPU. Rows shared along a tree are folded.

        Raises InputError if there is no run, no checkpoint, or an input was remade after training."""
        config, inputs = self.config, self.inputs
        self._check_size()
        model = build_model(config.model, config.head, inputs.shape, inputs.tree, config.seed, inputs.counts)
        load_weights(self.checkpoint, model)
        if self.averaged:
            use_average(self.checkpoint, model)
        model.fold()
        return model.eval()

    def _check_size(self) -> None:
        """Raise InputError if the config describes a larger model than the checkpoint can hold."""
        file, wanted = self.checkpoint / "model.safetensors", self.config.model.fewest_parameters
        if file.exists() and file.stat().st_size < wanted:
            raise InputError(
                f"{self.directory / 'config.yaml'} describes a model of more than {wanted} parameters, and {file} has "
                f"{file.stat().st_size} bytes; copy both back from where the run was trained"
            )

    @property
    def tokenizer_sha256(self) -> str | None:
        """SHA-256 of the tokenizer's file; None if the codebook does not state it."""
        return self.codebook.meta.parents.get("tokenizer")

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer that decodes the run's tokens, on the CPU."""
        return load_decoder(self.codebook, self.config.layout)

    def protocol(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Model, data and training step of a sample set with this manifest.

        If the run has other weights by now, the step is left out with a warning."""
        config, drawn_with = self.config, manifest["weights_sha256"]
        found = {
            "model": config.model.name,
            "head": config.head.name,
            "data": config.data.name,
            "drawn_at": config.data.resolution,
        }
        if config.uses_tree:
            found["tree"] = config.tree.name
        if cuts := config.head.cuts(self.codebook.num_tokens):
            found |= {"K": cuts[-1], **({"levels": cuts} if len(cuts) > 1 else {})}
        if config.loss.name != "ce":
            found["loss"] = config.loss.name
        use_ema = manifest["config"]["use_ema"]
        now = self if use_ema == self.averaged else replace(self, averaged=use_ema)
        if now.weights_sha256 == drawn_with:
            step = self.progress.step
            found |= {"step": step, "images_seen": step * config.batch_size, "seconds": self.progress.seconds}
        else:
            logger.warning(
                "%s: its samples were drawn from other weights (%s) than it has now. They are measured as they are, "
                "without a step. Delete the set to draw it again, or name another with SAMPLES=...",
                self.directory,
                drawn_with[:12],
            )
        return found

    def evidence(self) -> dict[str, Any]:
        """Facts about the run that `make doctor` judges: averaged weights, tokenizer of its tree, order of labels."""
        found: dict[str, Any] = {"average_kept": (self.checkpoint / "average.safetensors").exists()}
        trained_on = self.provenance.parents.get("codebook")
        if self.config.uses_tree and trained_on == self.codebook.meta.sha256:
            found["tree_tokenizer_sha256"] = self.tokenizer_sha256
        if self.num_classes == 1000:
            found["label_map"] = "sorted-wnids" if self.class_names == list(wnids()) else "other"
        return found
