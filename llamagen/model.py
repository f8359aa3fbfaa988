"""Which backbone, head and tree make a model: decided here and nowhere else."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llamagen.backbones.config import ModelConfig
from llamagen.backbones.embeddings import TokenEmbedding
from llamagen.backbones.gpt import Transformer
from masc.heads.base import Head
from masc.heads.build import build_head
from masc.heads.config import HeadConfig
from masc.tree import Partition


@dataclass(frozen=True)
class DataShape:
    """What a model must know of its data."""

    num_tokens: int  # N
    num_classes: int
    grid: int  # tokens a side


class ARModel(nn.Module):
    """A backbone and a head: the log-probability of an image's tokens."""

    def __init__(self, backbone: Transformer, head: Head):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, tokens: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T), condition -> log-probabilities of all decisions (B, T, L); see `Transformer.forward` and
        `Head.log_probs`."""
        return self.head.log_probs(self.backbone(tokens, condition, mask), tokens)


def build_model(
    model: ModelConfig, head: HeadConfig, shape: DataShape, partition: Partition | None, seed: int
) -> ARModel:
    """The model of a run, initialised from `seed`. `partition` cuts the tree; `flat` takes None."""
    context = partition if head.context == "cluster" else None
    tokens = TokenEmbedding(shape.num_tokens, model.dim, context)
    backbone = Transformer(model, tokens, shape.num_classes, shape.grid)
    backbone.initialise(torch.Generator().manual_seed(seed))
    return ARModel(backbone, build_head(head, model.dim, shape.num_tokens, partition))


def count_parameters(model: ARModel) -> int:
    """Numbers learned, embeddings and head included."""
    return sum(parameter.numel() for parameter in model.parameters())
