"""The flat head: one softmax over all N tokens. The baseline, and LlamaGen's own."""

from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masc.heads.base import Head, Pick
from masc.heads.config import HeadConfig
from masc.heads.losses import linear_log_prob, linear_mean_log_prob
from masc.heads.warm import COPIED, FlatStart
from masc.tree import Clustering


class FlatHead(Head):
    """p(token) = softmax(W h). `output.weight` (N, D) starts at zero, so the first loss is ln N."""

    num_decisions = 1

    def __init__(self, dim: int, num_tokens: int):
        super().__init__()
        self.num_tokens = num_tokens
        self.output = nn.Linear(dim, num_tokens, bias=False)
        nn.init.zeros_(self.output.weight)

    @classmethod
    def build(
        cls, config: HeadConfig, dim: int, num_tokens: int, tree: Clustering | None, counts: np.ndarray | None
    ) -> Self:
        return cls(dim, num_tokens)

    def path(self, tokens: Tensor) -> Tensor:
        return tokens[None]

    def rows(self) -> Tensor:
        """W (N, D)."""
        return self.output.weight

    def log_probs(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """(*, D), (*) -> (*, 1)."""
        return linear_log_prob(hidden, self.rows(), tokens)[..., None]

    def mean_log_prob(self, hidden: Tensor, tokens: Tensor, shares: Tensor) -> Tensor:
        return linear_mean_log_prob(hidden, self.rows(), tokens, shares)

    def sample(self, hidden: Tensor, pick: Pick) -> Tensor:
        """(M, D) -> (M,)."""
        return pick(F.linear(hidden, self.rows()).float())

    @torch.no_grad()
    def start_from(self, flat: FlatStart) -> dict[str, str]:
        self.output.weight.copy_(flat.rows)
        return {"output.weight": COPIED}

    def tables(self) -> list[nn.Parameter]:
        return [self.output.weight]
