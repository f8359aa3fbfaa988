"""Heads that walk down a tree: first the cluster, then the token within it.

One class serves MASC's own head (one learned level, then a uniform member) and the learned two-level head;
which it is depends on the tables it is given.

Shapes: B images, D width, N tokens, K clusters, L decisions, V nodes of one level."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from masc.heads.base import Head, Pick
from masc.heads.flat import log_softmax_at
from masc.tree import Partition


class PathHead(Head):
    """p(token) = product over levels of p(node | its parent), ended by a uniform choice or by none.

    `levels` are nested partitions, coarse to fine. With `uniform_member` the last decision is a uniform
    draw among the members of the finest cluster (MASC, Sec. 3.3); without it the finest level must be the
    tokens themselves. The learned levels share one matrix `output.weight` (sum of V, D), zero at the start.

    The gradient of this likelihood with a uniform member is that of the K-way cross-entropy (MASC, Eq. 5):
    the two differ by the constant log |cluster|."""

    def __init__(self, dim: int, levels: Sequence[Partition], uniform_member: bool):
        super().__init__()
        finest = levels[-1]
        self.num_tokens = finest.num_tokens
        self.uniform_member = uniform_member
        self.sizes = [level.num_clusters for level in levels]
        if not uniform_member and self.sizes[-1] != self.num_tokens:
            raise ValueError("the finest level must have one cluster a token unless members are uniform")
        node_of = np.stack([level.cluster_of for level in levels])
        self.register_buffer("node_of", torch.from_numpy(node_of), persistent=False)  # (levels, N)
        for index in range(1, len(levels)):
            parent_of = np.zeros(self.sizes[index], np.int64)
            parent_of[node_of[index]] = node_of[index - 1]
            if not np.array_equal(parent_of[node_of[index]], node_of[index - 1]):
                raise ValueError(f"level {index} is not nested in level {index - 1}: cut one tree for both")
            self.register_buffer(f"parent_of_{index}", torch.from_numpy(parent_of), persistent=False)
        for name, table in (
            ("members", finest.members),
            ("offsets", finest.offsets),
            ("counts", finest.sizes),
        ):
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(table)), persistent=False)
        self.output = nn.Linear(dim, sum(self.sizes), bias=False)
        nn.init.zeros_(self.output.weight)

    @property
    def num_decisions(self) -> int:
        return len(self.sizes) + self.uniform_member

    def _not_below(self, level: int, node: Tensor) -> Tensor:
        """Which nodes of a level are not children of the node above: (*) -> (*, V) bool."""
        return getattr(self, f"parent_of_{level}") != node[..., None]

    def log_probs(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """(*, D), (*) -> (*, L). Costs one product with `output` and, below the first level, a mask of the
        logits' shape: as much memory as a flat head over the same nodes."""
        decisions = []
        for level, logits in enumerate(self.output(hidden).split(self.sizes, dim=-1)):
            node = self.node_of[level][tokens]
            if level:
                blocked = self._not_below(level, self.node_of[level - 1][tokens])
                logits = logits.masked_fill(blocked, -torch.inf)
            decisions.append(log_softmax_at(logits, node))
        if self.uniform_member:
            decisions.append(-self.counts[node].float().log())
        return torch.stack(decisions, dim=-1)

    def sample(self, hidden: Tensor, pick: Pick) -> Tensor:
        """(B, D) -> (B,)."""
        node = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)  # the root
        for level, logits in enumerate(self.output(hidden).float().split(self.sizes, dim=-1)):
            if level:
                # Finite, so that guidance, which subtracts logits, does not make NaN of the blocked nodes.
                logits = logits.masked_fill(self._not_below(level, node), torch.finfo(torch.float32).min)
            node = pick(logits)
        if not self.uniform_member:
            return node
        return self.members[self.offsets[node] + pick.uniform(self.counts[node])]
