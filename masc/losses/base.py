"""The contract of losses: what a model is trained by, in the place of the negative log-likelihood of its head.

A loss gives terms to each position. Their sum is what training maximises, so that the training loss is minus the mean
of that sum. Validation, samples and every reported likelihood use the head alone: a loss changes the weights that
training finds, never how they are judged.

Shapes: B images, T positions, D width, N tokens, L terms, m near codes."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from masc.heads.base import Head, ImageHead
from masc.heads.flat import FlatHead
from masc.losses.config import LossConfig
from masc.runtime.errors import InputError
from masc.tree import Clustering

# What a loss reads beside hidden states and tokens, by name: `progress` (), the share of training done before the step,
# in [0, 1); `context` (B, T), the tokens that the model saw, if some are replaced; `near` (B, T, m) and
# `near_distances` (B, T, m), the near codes of the encoder's output and their squared distances.
Given = dict[str, Tensor]


@dataclass(frozen=True)
class Parts:
    """What a loss is built from."""

    head: Head
    dim: int  # D
    vectors: np.ndarray | None  # (N, d): the codebook
    tree: Clustering | None  # uncut
    blocks: list[nn.Module]  # of the backbone

    @property
    def num_tokens(self) -> int:
        return self.head.num_tokens


class Loss(nn.Module, ABC):
    """What a loss offers."""

    target_entropy: float | None = None  # nats, mean over tokens: of fixed targets beside the true token

    @classmethod
    @abstractmethod
    def build(cls, config: LossConfig, parts: Parts) -> Self:
        """The loss of a config. Raises InputError for a head that it cannot train."""

    @abstractmethod
    def forward(self, head: Head, hidden: Tensor, tokens: Tensor, given: Given) -> Tensor:
        """The terms of each position in nats: (B, T, D), (B, T) -> (B, T, L)."""

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the first weights of what the loss learns, if anything."""


def falling(value: float, until: float | None, progress: Tensor) -> Tensor:
    """A value that falls linearly from the start to 0 at the share `until` of training; None: it stays."""
    return torch.full_like(progress, value) if until is None else value * (1 - progress / until).clamp(min=0)


def require_positions(name: str, head: Head) -> None:
    """Raise InputError for a head whose log-probability of a token depends on the tokens of other positions."""
    if isinstance(head, ImageHead):
        kind = type(head).__name__.removesuffix("Head")
        raise InputError(
            f"the loss {name} needs log-probabilities of other tokens at one position, and the head {kind} judges a "
            "token beside the clusters of the whole image; choose a head of one stage, as HEAD=masc-two-level, or "
            "another LOSS"
        )


def require_flat(name: str, head: Head) -> None:
    """Raise InputError unless a head is one softmax over all tokens."""
    if not isinstance(head, FlatHead):
        kind = type(head).__name__.removesuffix("Head")
        raise InputError(
            f"the loss {name} reads the logits of all tokens, which heads of one softmax have (flat, tree-shared), "
            f"found the head {kind}; choose HEAD=flat, or another LOSS"
        )
