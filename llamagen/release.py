"""LlamaGen's released models: which backbone, tokenizer and grid a checkpoint is for."""

from dataclasses import dataclass
from pathlib import Path

import torch

from llamagen.backbones.config import ModelConfig
from llamagen.backbones.official import load_official
from llamagen.model import ARModel, DataShape, build_model
from masc.heads.config import HeadConfig
from vq.hub.releases import existing_weights
from vq.interface import TokenizerConfig


@dataclass(kw_only=True)
class ReleaseConfig:
    """A checkpoint in LlamaGen's layout: a released one, or a user's own."""

    name: str
    weights: str  # its file
    model: ModelConfig
    tokenizer: TokenizerConfig
    grid: int  # tokens a side
    resolution: int  # pixels a side of the pictures that its published numbers are measured on
    num_tokens: int = 16384
    num_classes: int = 1000
    use_ema: bool = False  # the averaged copy of a user's own training; released files have none

    @property
    def path(self) -> Path:
        """The file of weights; InputError saying how to get it if it is not there."""
        return existing_weights(Path(self.weights), self.name, "release.weights")

    @property
    def shape(self) -> DataShape:
        return DataShape(self.num_tokens, self.num_classes, self.grid)


def load_release(config: ReleaseConfig) -> ARModel:
    """The released model in evaluation mode, float32, on the CPU. Raises InputError if its file is missing or
    is for another config."""
    path = config.path
    with torch.device("meta"):  # no memory, no random numbers: every weight comes from the file
        model = build_model(config.model, HeadConfig(name="flat", kind="flat"), config.shape, None, seed=0)
    load_official(model, path, config.use_ema)
    return model.eval().requires_grad_(False)
