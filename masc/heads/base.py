"""The protocol of heads.

Every head is a normalised distribution over the N tokens of the codebook, so that one loop trains all, one
sampler draws from all, and one number (nats per token) compares all.

Shapes: B images, D width, N tokens, L decisions on the way to a token, V choices of one decision."""

from abc import ABC, abstractmethod
from typing import Protocol, Self

from torch import Tensor, nn

from masc.heads.config import HeadConfig
from masc.tree import Clustering


class Pick(Protocol):
    """Makes the decisions while sampling: owns guidance, temperature, filters and random numbers."""

    def __call__(self, logits: Tensor) -> Tensor:
        """Choose by logits (B, V) -> (B,)."""

    def uniform(self, sizes: Tensor) -> Tensor:
        """Choose an integer in 0 .. sizes - 1: (B,) -> (B,)."""


class Head(nn.Module, ABC):
    """What a head offers."""

    num_tokens: int  # N

    @classmethod
    @abstractmethod
    def build(cls, config: HeadConfig, dim: int, num_tokens: int, tree: Clustering | None) -> Self:
        """The head of a config over N tokens and hidden states of width D, its first loss that of uniform choices.

        `tree` is uncut. The head chooses its cuts and uses only those."""

    @property
    @abstractmethod
    def num_decisions(self) -> int:
        """Number of decisions on the way to a token: L."""

    @abstractmethod
    def log_probs(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Log-probability of each decision on the path to `tokens`: (*, D), (*) -> (*, L), float32.

        Summed over L this is log p(token | context), normalised over all N tokens."""

    @abstractmethod
    def sample(self, hidden: Tensor, pick: Pick) -> Tensor:
        """Draw tokens: (B, D) -> (B,). Calls `pick` once a decision, in the order of `log_probs`."""

    @abstractmethod
    def tables(self) -> list[nn.Parameter]:
        """The matrices with a row for each token or node; `optim.table_scale` sets their learning rate."""
