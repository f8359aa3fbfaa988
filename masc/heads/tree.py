"""A path of learned choices through nested cuts of one tree, down to the token.

Tokens are sorted so that each cluster of each cut is a contiguous range, and nodes are numbered level by level in that
order. The children of a node are then a contiguous range of rows.

Shapes: M positions, D width, N tokens, L levels, R nodes of all levels."""

import itertools
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from masc.heads.base import Head, Pick
from masc.heads.bits import halvings, order_of
from masc.heads.config import MascTreeConfig
from masc.heads.losses import Among, AmongChildren, Children, path_log_probs
from masc.heads.warm import COPIED, FITTED, FlatStart
from masc.tree import Clustering, Partition


class MascTreeHead(Head):
    """p(token) = product over levels of p(node | its parent), each a softmax over the children of the parent.

    The last level is the tokens. `output.weight` (R, D) has a row a node, zero at the start. The rows read are those of
    the first level and of the children of the nodes met."""

    def __init__(self, dim: int, cuts: Sequence[Partition]):
        """`cuts` are nested partitions, coarsest first; ValueError if one is not nested in the one before it."""
        super().__init__()
        self.num_tokens = cuts[0].num_tokens
        levels = [*cuts, Partition(np.arange(self.num_tokens))]
        order = np.lexsort([level.cluster_of for level in reversed(levels)])  # by the coarsest cut first
        starts, node_of = [], []  # of each level: where its nodes begin along the order; the node of each token
        for index, level in enumerate(levels):
            along = level.cluster_of[order]
            starts.append(np.flatnonzero(np.diff(along, prepend=-1)))
            if len(starts[-1]) != level.num_clusters:
                raise ValueError(f"level {index} is not nested in level {index - 1}: cut one tree for both")
            rank = np.empty(level.num_clusters, np.int64)
            rank[along[starts[-1]]] = np.arange(level.num_clusters)
            node_of.append(rank[level.cluster_of])
        self.register_buffer("node_of", torch.from_numpy(np.stack(node_of)), persistent=False)  # (L, N)
        self.register_buffer("token_order", torch.from_numpy(order), persistent=False)  # (N,)
        self.below = nn.ModuleList()  # of the nodes of each level but the last
        for parents, children in itertools.pairwise(starts):
            edges = np.searchsorted(children, np.append(parents, self.num_tokens))
            tables = edges[:-1], np.diff(edges), np.arange(len(children))
            self.below.append(Children(*map(torch.from_numpy, tables)))
        self.sizes = [len(nodes) for nodes in starts]
        self.output = nn.Linear(dim, sum(self.sizes), bias=False)
        nn.init.zeros_(self.output.weight)

    @classmethod
    def build(
        cls, config: MascTreeConfig, dim: int, num_tokens: int, tree: Clustering, counts: np.ndarray | None
    ) -> Self:
        ks = config.cuts(num_tokens)
        if config.balanced:
            return cls(dim, halvings(order_of(tree, ks[-1]))[:-1])
        return cls(dim, [tree.cut(k) for k in ks])

    @property
    def num_decisions(self) -> int:
        return len(self.node_of)

    def path(self, tokens: Tensor) -> Tensor:
        """(*) -> (L, *): the place of each node among its siblings."""
        nodes = self.node_of[:, tokens]
        places = [
            child - table.first[parent] for table, parent, child in zip(self.below, nodes[:-1], nodes[1:], strict=True)
        ]
        return torch.stack([nodes[0], *places])

    @torch.no_grad()
    def start_from(self, flat: FlatStart) -> dict[str, str]:
        levels = zip(self.output.weight.split(self.sizes), self.node_of, self.sizes, strict=True)
        for rows, node_of, size in levels:
            rows.copy_(flat.node_rows(node_of, size))
        return {"output.weight": f"nodes {FITTED}, tokens {COPIED}"}

    def tables(self) -> list[nn.Parameter]:
        return [self.output.weight]

    def log_probs(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """(*, D), (*) -> (*, L)."""
        nodes, places = self.node_of[:, tokens.flatten()], self.path(tokens.flatten())
        below = zip(self.below, nodes[:-1], places[1:], strict=True)
        choices = [Among(nodes[0]), *(AmongChildren(*each) for each in below)]
        rows = self.output.weight.split(self.sizes)
        found = path_log_probs(hidden.flatten(0, -2), list(zip(rows, choices, strict=True)))
        return found.view(*tokens.shape, -1)

    def sample(self, hidden: Tensor, pick: Pick) -> Tensor:
        """(M, D) -> (M,)."""
        rows = self.output.weight.split(self.sizes)
        node = pick(nn.functional.linear(hidden, rows[0]).float())
        for table, level in zip(self.below, rows[1:], strict=True):
            node = table.first[node] + pick(table.logits(hidden, level, node))
        return self.token_order[node]
