"""The token as a path of bits in a balanced binary tree.

Shapes: M positions, D width, N tokens, L = ceil(log2 N) bits."""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masc.heads.base import Head, Pick
from masc.heads.config import BitsConfig
from masc.tree import Clustering, Partition


def order_of(tree: Clustering, num_clusters: int) -> np.ndarray:
    """The tokens along a tree, or cluster by cluster: (N,) int64; InputError for a partition not in K clusters."""
    return (tree.cut(num_clusters) if isinstance(tree, Partition) else tree).order()


def halvings(order: np.ndarray) -> list[Partition]:
    """Nested partitions in 2, 4, 8, ... ranges of about N / 2, N / 4, ... tokens along `order` (N,).

    The last has a range for each token. The range of the token at place r is floor(r 2^level / N)."""
    code, depth = binary_code(order)
    return [Partition(np.unique(code >> rest, return_inverse=True)[1]) for rest in reversed(range(depth))]


def binary_code(order: np.ndarray) -> tuple[np.ndarray, int]:
    """The code of each token, floor(r 2^L / N) for place r along `order` (N,), and its length L = ceil(log2 N) bits."""
    num_tokens = len(order)
    depth = max(1, int(num_tokens - 1).bit_length())
    code = np.empty(num_tokens, np.int64)
    code[order] = (np.arange(num_tokens) << depth) // num_tokens
    return code, depth


class BitsHead(Head):
    """p(token) = product of p(bit), one logit a bit: z_i = w_i . h, the same w_i for all nodes of a level.

    With independent bits this is Infinity's classifier of bits (arXiv 2412.04431, Sec. 3.2) on the path of the token in
    a balanced binary tree. In a chain z_i = w_i . silu(h + sum over earlier bits j of E_j[b_j]). Where N is no power of
    two, a node of the last level may have one child, which is then certain. `output.weight` (L, D) starts at zero."""

    def __init__(self, dim: int, order: Sequence[int] | np.ndarray, chain: bool):
        """`order` (N,): the tokens along the tree."""
        super().__init__()
        order = np.asarray(order)
        self.num_tokens = len(order)
        code, depth = binary_code(order)
        token = np.full(2**depth, -1)
        token[code] = np.arange(self.num_tokens)
        self.register_buffer("code", torch.from_numpy(code), persistent=False)  # (N,)
        self.register_buffer("token", torch.from_numpy(token), persistent=False)  # (2^L,): -1 for no token
        self.output = nn.Linear(dim, depth, bias=False)
        self.earlier = nn.Embedding(2 * (depth - 1), dim) if chain else None
        nn.init.zeros_(self.output.weight)

    @classmethod
    def build(cls, config: BitsConfig, dim: int, num_tokens: int, tree: Clustering, counts: np.ndarray | None) -> Self:
        return cls(dim, order_of(tree, config.cuts(num_tokens)[-1]), config.chain)

    def initialise(self, generator: torch.Generator) -> None:
        if self.earlier is not None:
            nn.init.normal_(self.earlier.weight, std=0.02, generator=generator)

    @property
    def num_decisions(self) -> int:
        return len(self.output.weight)

    @property
    def numbers(self) -> int:
        width = self.output.in_features
        return self.num_decisions * (2 if self.earlier is None else 2 * width)

    def path(self, tokens: Tensor) -> Tensor:
        """(*) -> (L, *): the bits, the most significant first."""
        code, depth = self.code[tokens], self.num_decisions
        return torch.stack([(code >> (depth - 1 - level)) & 1 for level in range(depth)])

    def sample(self, hidden: Tensor, pick: Pick) -> Tensor:
        """(M, D) -> (M,)."""
        depth, code = self.num_decisions, torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
        alone = None if self.earlier is not None else self.output(hidden).float()
        state = hidden
        for level in range(depth):
            score = (
                F.linear(F.silu(state), self.output.weight[level : level + 1])[:, 0].float()
                if alone is None
                else alone[:, level]
            )
            logits = torch.stack([torch.zeros_like(score), score], dim=-1)
            if level == depth - 1:
                children = self.token[2 * code[:, None] + torch.arange(2, device=code.device)]
                logits = logits.masked_fill(children < 0, torch.finfo(torch.float32).min)
            bit = pick(logits)
            code = 2 * code + bit
            if self.earlier is not None and level < depth - 1:
                state = state + self.earlier(2 * level + bit)
        return self.token[code]

    def tables(self) -> list[nn.Parameter]:
        return [self.output.weight]
