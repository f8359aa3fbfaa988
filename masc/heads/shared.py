"""A flat softmax whose rows are sums along the path of a token in nested cuts.

Shapes: M positions, D width, N tokens, L cuts, R nodes of all cuts."""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masc.heads.config import TreeSharedConfig
from masc.heads.flat import FlatHead
from masc.tree import Clustering, Partition


def nodes_of(cuts: Sequence[Partition]) -> Tensor:
    """The row of each token's cluster in each cut, rows numbered cut by cut: (L, N) int64."""
    firsts = np.cumsum([0, *(cut.num_clusters for cut in cuts[:-1])])
    return torch.from_numpy(np.stack([first + cut.cluster_of for first, cut in zip(firsts, cuts, strict=True)]))


def shared_rows(weight: Tensor, shared: Tensor, node_of: Tensor) -> Tensor:
    """The rows of tokens plus those of their clusters: (*, D), (R, D), (L, *) -> (*, D)."""
    for nodes in node_of:
        weight = weight + F.embedding(nodes, shared)
    return weight


class TreeSharedHead(FlatHead):
    """p(token) = softmax(W h), W = `output.weight` (N, D) + rows of `shared` (R, D) along the path; zero at first.

    What one token learns reaches the other tokens of its clusters at once. `folded` is the same distribution as a flat
    head."""

    def __init__(self, dim: int, cuts: Sequence[Partition]):
        super().__init__(dim, cuts[0].num_tokens)
        self.register_buffer("node_of", nodes_of(cuts), persistent=False)
        self.shared = nn.Parameter(torch.zeros(sum(cut.num_clusters for cut in cuts), dim))

    @classmethod
    def build(
        cls, config: TreeSharedConfig, dim: int, num_tokens: int, tree: Clustering, counts: np.ndarray | None
    ) -> Self:
        return cls(dim, [tree.cut(k) for k in config.cuts(num_tokens)])

    def rows(self) -> Tensor:
        """W (N, D)."""
        return shared_rows(self.output.weight, self.shared, self.node_of)

    def tables(self) -> list[nn.Parameter]:
        return [self.output.weight, self.shared]

    @torch.no_grad()
    def folded(self) -> FlatHead:
        """The flat head of the same rows."""
        flat = FlatHead(self.output.in_features, self.num_tokens).to(self.shared)
        flat.output.weight.copy_(self.rows())
        return flat
