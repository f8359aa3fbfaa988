"""The contract of heads.

Every head is a normalised distribution over the N tokens of the codebook, so that one loop trains all, one
sampler draws from all, and one number (nats per token) compares all. A head states its decisions once, in `sample`:
a pick that draws gives samples, and a pick that follows the path of given tokens gives their log-probabilities.

Shapes: B images, T positions, M positions of all images, D width, N tokens, L decisions on the way to a token,
V choices of one decision."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

from masc.heads.config import HeadConfig
from masc.heads.losses import in_chunks, log_softmax_at
from masc.heads.warm import FlatStart
from masc.tree import Clustering


class Pick(Protocol):
    """Makes the decisions: while sampling it owns guidance, temperature, filters and random numbers."""

    def __call__(self, logits: Tensor) -> Tensor:
        """Choose by learned logits (M, V) -> (M,)."""

    def uniform(self, sizes: Tensor) -> Tensor:
        """Choose an integer in 0 .. sizes - 1: (M,) -> (M,)."""

    def fixed(self, logits: Tensor) -> Tensor:
        """Choose by logits (M, V) that are not learned, so that guidance and filters leave them alone -> (M,)."""


class Follow:
    """A pick that takes given choices and keeps the log-probability of each, or what a subclass keeps."""

    def __init__(self, path: Tensor):
        """`path` (L, M): the choice at every decision."""
        self.path = path
        self.kept: list[Tensor] = []  # of the decisions so far, (M, ...) each

    def take(self, kept: Callable[[Tensor], Tensor]) -> Tensor:
        """The given choice (M,) of the next decision, of which `kept` says what is kept."""
        chosen = self.path[len(self.kept)]
        self.kept.append(kept(chosen))
        return chosen

    def __call__(self, logits: Tensor) -> Tensor:
        return self.take(lambda chosen: log_softmax_at(logits, chosen))

    def uniform(self, sizes: Tensor) -> Tensor:
        return self.take(lambda _: -sizes.float().log())

    def fixed(self, logits: Tensor) -> Tensor:
        return self(logits)


class Head(nn.Module, ABC):
    """What a head offers."""

    num_tokens: int  # N

    @classmethod
    @abstractmethod
    def build(
        cls, config: HeadConfig, dim: int, num_tokens: int, tree: Clustering | None, counts: np.ndarray | None
    ) -> Self:
        """The head of a config over N tokens and hidden states of width D, its first loss that of uniform choices.

        `tree` is uncut. The head chooses its cuts and uses only those. `counts` (N,) is how often each token occurs in
        training; a head whose config does not ask for it takes None."""

    @property
    @abstractmethod
    def num_decisions(self) -> int:
        """Number of decisions on the way to a token: L."""

    @abstractmethod
    def path(self, tokens: Tensor) -> Tensor:
        """The choice at every decision on the way to `tokens`: (*) -> (L, *), as indices of the logits of `sample`."""

    @abstractmethod
    def sample(self, hidden: Tensor, pick: Pick) -> Tensor:
        """Draw tokens: (M, D) -> (M,). Calls `pick` once a decision."""

    @abstractmethod
    def tables(self) -> list[nn.Parameter]:
        """The matrices with a row for each token or node; `optim.table_scale` sets their learning rate."""

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the initial weights of what does not start at zero."""

    def start_from(self, flat: FlatStart) -> dict[str, str]:
        """Take the weights of a flat model of the same tokens; say by name how each parameter was made.

        What is not named keeps its first weights."""
        return {}

    @property
    def numbers(self) -> int:
        """About how many numbers `sample` keeps for one position, which decides how many are computed together."""
        return self.num_tokens

    def log_probs(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Log-probability of each decision on the path to `tokens`: (*, D), (*) -> (*, L), float32.

        Summed over L this is log p(token | context), normalised over all N tokens. A head overrides it where the
        probability of one path costs less than a draw."""
        return self.follow(hidden, tokens, Follow)

    def mean_log_prob(self, hidden: Tensor, tokens: Tensor, shares: Tensor) -> Tensor:
        """Sum of the log-probabilities of several tokens at each position, times their shares in a target:
        (*, D), (*, S), (*, S) -> (*), float32. The shares have no gradient. Not for an `ImageHead`.

        Here it is S calls of `log_probs`; a head overrides it where they share their products."""
        found = [self.log_probs(hidden, each).sum(-1) for each in tokens.unbind(-1)]
        return (torch.stack(found, dim=-1) * shares).sum(-1)

    def follow(self, hidden: Tensor, tokens: Tensor, kind: type[Follow]) -> Tensor:
        """What picks of a `kind` keep of each decision on the path to `tokens`: (*, D), (*) -> (*, L, ...)."""
        kept = in_chunks(partial(self._walk, kind), self.numbers, hidden.flatten(0, -2), tokens.flatten())
        return kept.unflatten(0, tokens.shape)

    def _walk(self, kind: type[Follow], hidden: Tensor, tokens: Tensor) -> Tensor:
        pick = kind(self.path(tokens))
        self.sample(hidden, pick)
        return torch.stack(pick.kept, dim=1)


class ImageHead(Head):
    """A head whose last decision sees all clusters of an image.

    `sample` makes the first decision of a position and returns any token of the cluster. So the context of the
    model must hold clusters. After the last position `finish` makes the second decision everywhere, in one pass."""

    @abstractmethod
    def finish(self, hidden: Tensor, tokens: Tensor, pick: Pick) -> Tensor:
        """Replace each token by one of its cluster: (B, T, D), (B, T) -> (B, T). Calls `pick` once."""

    @abstractmethod
    def log_probs(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """(B, T, D), (B, T) -> (B, T, L); whole images, in the order of their positions."""

    def follow(self, hidden: Tensor, tokens: Tensor, kind: type[Follow]) -> Tensor:
        """(B, T, D), (B, T) -> (B, T, L, ...); whole images, in the order of their positions."""
        return in_chunks(partial(self._walk, kind), self.numbers * tokens.shape[1], hidden, tokens)

    def _walk(self, kind: type[Follow], hidden: Tensor, tokens: Tensor) -> Tensor:
        pick = kind(self.path(tokens).flatten(1))
        self.sample(hidden.flatten(0, 1), pick)
        self.finish(hidden, tokens, pick)
        return torch.stack(pick.kept, dim=1).unflatten(0, tokens.shape)
