"""LlamaGen's released models: which backbone, tokenizer and grid a checkpoint is for, and what results say about it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llamagen.backbones.base import DataShape
from llamagen.backbones.config import ModelConfig
from llamagen.backbones.official import load_official
from llamagen.model import ARModel, build_model
from masc.heads.config import FlatConfig
from masc.runtime.errors import InputError
from masc.runtime.files import hash_file
from vq.hub.pins import existing_weights
from vq.interface import Tokenizer, TokenizerConfig, tokenizer_path
from vq.pretrained import load_tokenizer

SIXTEEN_PIXELS = ("vq16", "vq16-t2i")  # tokenizers with 16 pixels per token on each side; every release uses one


@dataclass(kw_only=True)
class ReleaseConfig:
    """A checkpoint in LlamaGen's layout: a released one, or a user's own."""

    name: str
    weights: str  # its file
    model: ModelConfig
    tokenizer: TokenizerConfig
    grid: int  # tokens a side
    resolution: int  # pixels a side of the images that its published numbers are measured on
    num_tokens: int = 16384
    num_classes: int = 1000
    use_ema: bool = False  # the averaged copy of a user's own training; released files have none

    @property
    def path(self) -> Path:
        """The file of weights; InputError if it is missing."""
        return self.find_weights("release.weights")

    def find_weights(self, option: str | None = None) -> Path:
        """The file of weights; InputError if it is missing, which names the config key `option` that chooses it."""
        return existing_weights(Path(self.weights), self.name, option)

    @property
    def shape(self) -> DataShape:
        return DataShape(self.num_tokens, self.num_classes, self.grid**2)


@dataclass(frozen=True, eq=False)
class Release:
    """A released model on disk. Each of its files is hashed once, when it is first needed."""

    config: ReleaseConfig
    artifacts: Path  # where its tokenizer lies if it was trained here

    @property
    def directory(self) -> Path:
        """Where its samples and results go."""
        return Path("runs") / self.config.name

    @property
    def num_classes(self) -> int:
        return self.config.num_classes

    def label_population(self) -> np.ndarray:
        """Raise InputError: the class frequencies of a release are unknown."""
        raise InputError("how often a released model saw each class is not known; choose labels=uniform or balanced")

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the file of weights; InputError if it is missing."""
        return hash_file(self.config.path)

    def load_model(self) -> ARModel:
        """The model in evaluation mode, float32, on the CPU.

        Raises InputError if its file is missing or is for another config."""
        config, path = self.config, self.config.path
        with torch.device("meta"):  # no memory, no random numbers: every weight comes from the file
            model = build_model(config.model, FlatConfig(name="flat"), config.shape, None, seed=0)
        load_official(model, path, config.use_ema)
        return model.eval().requires_grad_(False)

    @property
    def _tokenizer_path(self) -> Path:
        return tokenizer_path(self.config.tokenizer, self.artifacts)

    @cached_property
    def tokenizer_sha256(self) -> str:
        return hash_file(self._tokenizer_path)

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer that decodes the model's tokens, on the CPU."""
        return load_tokenizer(self._tokenizer_path, self.config.tokenizer)

    def protocol(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Model and sizes of a sample set with this manifest, as they were when it was drawn."""
        settings = manifest["config"]
        release = settings["release"]
        found = {"drawn_at": 16 * release["grid"]} if release["tokenizer"]["name"] in SIXTEEN_PIXELS else {}
        return found | {
            "release": release["name"],
            "model": release["model"]["name"],
            "head": "flat",
            "weights": "average" if release["use_ema"] else "raw",
            "resolution": settings["resolution"] or release["resolution"],
        }

    def evidence(self) -> dict[str, Any]:
        """An empty dict: a release has no training directory."""
        return {}
