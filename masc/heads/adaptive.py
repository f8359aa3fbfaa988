"""torch's adaptive softmax as a head: a control that knows how frequent tokens are, and no geometry.

Shapes: M positions, D width, N tokens, V choices."""

from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from masc.heads.base import Head, Pick
from masc.heads.config import AdaptiveConfig
from masc.runtime.errors import InputError
from masc.tree import Clustering


class AdaptiveHead(Head):
    """The frequent tokens and the tails in one softmax, then a token of the tail in a narrower one.

    `torch.nn.AdaptiveLogSoftmaxWithLoss` holds the matrices (Grave et al. 2017, arXiv 1609.04309). The outer matrices
    start at zero."""

    num_decisions = 2

    def __init__(self, dim: int, counts: np.ndarray, cutoffs: list[int], div_value: float):
        """`counts` (N,) orders the tokens, ties by number; InputError for a cutoff that is not below N, and for a tail
        without width."""
        super().__init__()
        self.num_tokens = len(counts)
        if cutoffs[-1] >= self.num_tokens:
            raise InputError(
                f"head.cutoffs must lie below the {self.num_tokens} tokens, found {cutoffs}; leave them out for "
                f"[{self.num_tokens // 4}, {self.num_tokens // 2}]"
            )
        narrowest = int(dim // div_value ** len(cutoffs))
        if narrowest < 1:
            raise InputError(
                f"head.div_value {div_value:g} and {len(cutoffs)} cutoffs leave no width of {dim} for the last tail; "
                "lower head.div_value or give fewer head.cutoffs"
            )
        order = np.argsort(-counts, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(self.num_tokens)
        self.register_buffer("order", torch.from_numpy(order), persistent=False)  # (N,): tokens by rank
        self.register_buffer("rank", torch.from_numpy(rank), persistent=False)  # (N,)
        self.register_buffer("starts", torch.tensor([0, *cutoffs]), persistent=False)  # ranks of the parts
        self.output = nn.AdaptiveLogSoftmaxWithLoss(dim, self.num_tokens, cutoffs, div_value)

    @classmethod
    def build(
        cls, config: AdaptiveConfig, dim: int, num_tokens: int, tree: Clustering | None, counts: np.ndarray
    ) -> Self:
        cutoffs = config.cutoffs or sorted({max(1, num_tokens // 4), max(1, num_tokens // 2)})
        return cls(dim, counts, cutoffs, config.div_value)

    def initialise(self, generator: torch.Generator) -> None:
        for inner, outer in self.output.tail:
            nn.init.normal_(inner.weight, std=0.02, generator=generator)
            nn.init.zeros_(outer.weight)
        nn.init.zeros_(self.output.head.weight)

    @property
    def _shortlist(self) -> int:
        return self.output.shortlist_size

    def path(self, tokens: Tensor) -> Tensor:
        """(*) -> (2, *): the rank or the tail, the place in the tail (0 for a frequent token)."""
        rank = self.rank[tokens]
        part = torch.bucketize(rank, self.starts[1:], right=True)
        tail = self._shortlist + part - 1
        return torch.stack([torch.where(part == 0, rank, tail), torch.where(part == 0, 0, rank - self.starts[part])])

    def sample(self, hidden: Tensor, pick: Pick) -> Tensor:
        """(M, D) -> (M,)."""
        first = pick(self.output.head(hidden).float())
        sizes = [tail[1].out_features for tail in self.output.tail]
        logits = hidden.new_full((len(hidden), max(sizes)), torch.finfo(torch.float32).min, dtype=torch.float32)
        logits[:, 0] = 0  # a frequent token has no second choice
        for index, (tail, size) in enumerate(zip(self.output.tail, sizes, strict=True)):
            (where,) = torch.nonzero(first == self._shortlist + index, as_tuple=True)
            logits = logits.index_put(
                (where[:, None], torch.arange(size, device=where.device)), tail(hidden[where]).float()
            )
        start = self.starts[(first - self._shortlist + 1).clamp(min=0)]
        return self.order[torch.where(first < self._shortlist, first, start + pick(logits))]

    def tables(self) -> list[nn.Parameter]:
        return [self.output.head.weight, *(outer.weight for _, outer in self.output.tail)]
