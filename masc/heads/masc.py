"""The paper's head, and its learned variant: first the cluster of one cut, then the token within it.

Shapes: B images, D width, N tokens, K clusters."""

from typing import Self

import torch
from torch import Tensor, nn

from masc.heads.base import Head, Pick
from masc.heads.config import MascConfig
from masc.heads.flat import log_softmax_at
from masc.tree import Clustering, Partition


class _ClusterHead(Head):
    """Base of both heads: the tables of a partition, and `output.weight`, which starts at zero."""

    num_decisions = 2

    def __init__(self, dim: int, partition: Partition, rows: int):
        super().__init__()
        self.num_tokens, self.num_clusters = partition.num_tokens, partition.num_clusters
        for name, table in (
            ("cluster_of", partition.cluster_of),
            ("members", partition.members),
            ("offsets", partition.offsets),
            ("counts", partition.sizes),
        ):
            self.register_buffer(name, torch.from_numpy(table.copy()), persistent=False)
        self.output = nn.Linear(dim, rows, bias=False)
        nn.init.zeros_(self.output.weight)

    @classmethod
    def build(cls, config: MascConfig, dim: int, num_tokens: int, tree: Clustering) -> Self:
        return cls(dim, tree.cut(config.cuts(num_tokens)[-1]))

    def tables(self) -> list[nn.Parameter]:
        return [self.output.weight]


class MascHead(_ClusterHead):
    """p(token) = softmax(W h)[cluster] / |cluster|: a uniform member (MASC, Sec. 3.3). `output.weight` is (K, D).

    The gradient of this likelihood is that of the K-way cross-entropy (MASC, Eq. 5): the two differ by the constant
    log |cluster|."""

    def __init__(self, dim: int, partition: Partition):
        super().__init__(dim, partition, partition.num_clusters)

    def log_probs(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """(*, D), (*) -> (*, 2): the cluster, the uniform member."""
        cluster = self.cluster_of[tokens]
        return torch.stack([log_softmax_at(self.output(hidden), cluster), -self.counts[cluster].float().log()], dim=-1)

    def sample(self, hidden: Tensor, pick: Pick) -> Tensor:
        """(B, D) -> (B,)."""
        cluster = pick(self.output(hidden).float())
        return self.members[self.offsets[cluster] + pick.uniform(self.counts[cluster])]


class MascTwoLevelHead(_ClusterHead):
    """p(token) = p(cluster) p(token | cluster), both learned. `output.weight` is (K + N, D): clusters, then tokens.

    One product over all N rows scores the members, and the tokens of other clusters are masked: as much memory as a
    flat head over K + N. `masc.heads.tree` gives the same distribution. This head keeps its order of summation, so
    that earlier results stay equal to the last digit."""

    def __init__(self, dim: int, partition: Partition):
        super().__init__(dim, partition, partition.num_clusters + partition.num_tokens)

    def _levels(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self.output(hidden).split([self.num_clusters, self.num_tokens], dim=-1)

    def _outside(self, cluster: Tensor) -> Tensor:
        """Which tokens are not in a cluster: (*) -> (*, N) bool."""
        return self.cluster_of != cluster[..., None]

    def log_probs(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """(*, D), (*) -> (*, 2): the cluster, the member."""
        clusters, members = self._levels(hidden)
        cluster = self.cluster_of[tokens]
        members = members.masked_fill(self._outside(cluster), -torch.inf)
        return torch.stack([log_softmax_at(clusters, cluster), log_softmax_at(members, tokens)], dim=-1)

    def sample(self, hidden: Tensor, pick: Pick) -> Tensor:
        """(B, D) -> (B,)."""
        clusters, members = (logits.float() for logits in self._levels(hidden))
        # Finite, so that guidance, which subtracts logits, does not make NaN of the masked tokens.
        outside = self._outside(pick(clusters))
        return pick(members.masked_fill(outside, torch.finfo(torch.float32).min))
