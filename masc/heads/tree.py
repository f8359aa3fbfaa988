"""A path of learned choices through nested cuts of one tree, down to the token.

Tokens are sorted so that each cluster of each cut is a contiguous range, and nodes are numbered level by level in that
order. The children of a node are then a contiguous range of rows (compressed sparse rows), and the softmax of a level
reads the children of the nodes met, not all nodes.

Shapes: B images, D width, N tokens, L levels, R nodes of all levels, C children met, M rows of hidden states."""

import itertools
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from masc.heads.base import Head, Pick
from masc.heads.config import MascTreeConfig
from masc.heads.flat import log_softmax_at
from masc.tree import Clustering, Partition


class MascTreeHead(Head):
    """p(token) = product over levels of p(node | its parent), each a softmax over the children of the parent.

    The last level is the tokens. `output.weight` (R, D) has a row a node, zero at the start."""

    def __init__(self, dim: int, cuts: Sequence[Partition]):
        """`cuts` are nested partitions, coarsest first; ValueError if one is not nested in the one before it."""
        super().__init__()
        self.num_tokens = cuts[0].num_tokens
        levels = [*cuts, Partition(np.arange(self.num_tokens))]
        order = np.lexsort([level.cluster_of for level in reversed(levels)])  # by the coarsest cut first
        first_row, rows, node_of = 0, [], []
        for index, level in enumerate(levels):
            along = level.cluster_of[order]
            starts = np.flatnonzero(np.diff(along, prepend=-1))  # where a node begins
            if len(starts) != level.num_clusters:
                raise ValueError(f"level {index} is not nested in level {index - 1}: cut one tree for both")
            rank = np.empty(level.num_clusters, np.int64)
            rank[along[starts]] = np.arange(len(starts))
            node_of.append(first_row + rank[level.cluster_of])
            rows.append((first_row, starts))
            first_row += len(starts)
        self.first_rows = [row for row, _ in rows] + [first_row]  # of each level, and the end
        first_child, num_children = np.zeros((2, first_row), np.int64)
        for (parent_row, parent_starts), (child_row, child_starts) in itertools.pairwise(rows):
            edges = np.searchsorted(child_starts, np.append(parent_starts, self.num_tokens))
            here = slice(parent_row, parent_row + len(parent_starts))
            first_child[here], num_children[here] = child_row + edges[:-1], np.diff(edges)
        for name, table in (
            ("node_of", np.stack(node_of)),  # (L, N): the row of each token's node
            ("first_child", first_child),  # (R,)
            ("num_children", num_children),  # (R,)
            ("token_order", order),  # (N,): the tokens in the order of their rows
        ):
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(table)), persistent=False)
        # Children of the parent of a token's node, on average over the tokens, by level.
        self.children_met = [float(self.first_rows[1])]
        self.children_met += [float(num_children[parents].mean()) for parents in node_of[:-1]]
        self.output = nn.Linear(dim, first_row, bias=False)
        nn.init.zeros_(self.output.weight)

    @classmethod
    def build(cls, config: MascTreeConfig, dim: int, num_tokens: int, tree: Clustering) -> Self:
        return cls(dim, [tree.cut(k) for k in config.cuts(num_tokens)])

    @property
    def num_decisions(self) -> int:
        return len(self.node_of)

    def tables(self) -> list[nn.Parameter]:
        return [self.output.weight]

    def _first_logits(self, hidden: Tensor) -> Tensor:
        """Logits of the children of the root: (*, D) -> (*, V)."""
        return nn.functional.linear(hidden, self.output.weight[: self.first_rows[1]])

    def log_probs(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """(*, D), (*) -> (*, L). The softmax of a level reads the children met only; see `_sibling_logits`."""
        nodes = self.node_of[:, tokens]  # (L, *)
        decisions = [log_softmax_at(self._first_logits(hidden), nodes[0])]
        flat = hidden.flatten(0, -2)
        for level, (parent, child) in enumerate(itertools.pairwise(nodes), start=1):
            decisions.append(self._among_siblings(level, flat, parent.flatten(), child.flatten()).view(child.shape))
        return torch.stack(decisions, dim=-1)

    def _among_siblings(self, level: int, hidden: Tensor, parent: Tensor, child: Tensor) -> Tensor:
        """log p(child | parent): (M, D), rows (M,), (M,) -> (M,) float32."""
        counts = self.num_children[parent]
        starts = counts.cumsum(0) - counts  # where the children of each parent begin among the C
        owner = torch.repeat_interleave(torch.arange(len(parent), device=parent.device), counts)  # (C,)
        siblings = self.first_child[parent][owner] + torch.arange(len(owner), device=owner.device) - starts[owner]
        logits = self._sibling_logits(level, hidden, owner, siblings).float()
        # Sums by segment, not by index_add: CUDA adds by index in no fixed order.
        largest = torch.segment_reduce(logits.detach(), "max", lengths=counts)
        total = torch.segment_reduce((logits - largest[owner]).exp(), "sum", lengths=counts)
        return logits[starts + child - self.first_child[parent]] - largest - total.log()

    def _sibling_logits(self, level: int, hidden: Tensor, owner: Tensor, siblings: Tensor) -> Tensor:
        """Logits of the children met: rows (C,) of hidden states and of nodes -> (C,).

        They come from one product with all V nodes of the level, M V numbers, or from the rows of the children alone,
        C D numbers: whichever is smaller for evenly used tokens."""
        first, end = self.first_rows[level], self.first_rows[level + 1]
        if self.children_met[level] * hidden.shape[-1] < end - first:
            return (hidden[owner] * self.output.weight[siblings]).sum(-1)
        return nn.functional.linear(hidden, self.output.weight[first:end])[owner, siblings - first]

    def sample(self, hidden: Tensor, pick: Pick) -> Tensor:
        """(B, D) -> (B,). A level below the first reads B x D numbers for each child of the largest node."""
        node = pick(self._first_logits(hidden).float())
        for _ in range(self.num_decisions - 1):
            counts = self.num_children[node]
            place = torch.arange(int(counts.max()), device=node.device)
            is_child = place < counts[:, None]
            rows = self.first_child[node][:, None] + torch.where(is_child, place, 0)
            logits = torch.einsum("bd,bvd->bv", hidden, self.output.weight[rows].to(hidden.dtype)).float()
            # Finite, so that guidance, which subtracts logits, does not make NaN of the places beyond.
            node = self.first_child[node] + pick(logits.masked_fill(~is_child, torch.finfo(torch.float32).min))
        return self.token_order[node - self.first_rows[-2]]
