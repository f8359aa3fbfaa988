"""The paper's head, and its learned variant: first the cluster of one cut, then the token within it.

Shapes: M positions, D width, N tokens, K clusters."""

from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from masc.heads.base import Head, Pick
from masc.heads.config import MascConfig
from masc.heads.losses import (
    WHOLE,
    Among,
    AmongChildren,
    Children,
    in_chunks,
    linear_log_prob,
    linear_mean_log_prob,
    log_softmax_at,
    path_log_probs,
    segment_logsumexp,
)
from masc.heads.warm import COPIED, FITTED, FlatStart
from masc.tree import Clustering, Partition


class ClusterHead(Head):
    """Base of heads of a cluster and a member: `members` of each cluster, and `output.weight`, zero at the start."""

    num_decisions = 2

    def __init__(self, dim: int, partition: Partition, rows: int):
        super().__init__()
        self.num_tokens, self.num_clusters = partition.num_tokens, partition.num_clusters
        place = np.empty_like(partition.members)
        place[partition.members] = np.arange(self.num_tokens) - np.repeat(partition.offsets[:-1], partition.sizes)
        for name, table in (("cluster_of", partition.cluster_of), ("place", place)):
            self.register_buffer(name, torch.from_numpy(table.copy()), persistent=False)
        tables = partition.offsets[:-1], partition.sizes, partition.members
        self.members = Children(*(torch.from_numpy(table.copy()) for table in tables))
        self.output = nn.Linear(dim, rows, bias=False)
        nn.init.zeros_(self.output.weight)

    @classmethod
    def build(cls, config: MascConfig, dim: int, num_tokens: int, tree: Clustering, counts: np.ndarray | None) -> Self:
        return cls(dim, tree.cut(config.cuts(num_tokens)[-1]))

    def path(self, tokens: Tensor) -> Tensor:
        """(*) -> (2, *): the cluster, the place among its members."""
        return torch.stack([self.cluster_of[tokens], self.place[tokens]])

    def member(self, cluster: Tensor, place: Tensor) -> Tensor:
        """The token at a place of a cluster: (*), (*) -> (*)."""
        return self.members.rows[self.members.first[cluster] + place]

    @torch.no_grad()
    def start_from(self, flat: FlatStart) -> dict[str, str]:
        self.output.weight[: self.num_clusters] = flat.node_rows(self.cluster_of, self.num_clusters)
        return {"output.weight": COPIED if self.num_clusters == self.num_tokens else FITTED}

    def tables(self) -> list[nn.Parameter]:
        return [self.output.weight]


class MascHead(ClusterHead):
    """p(token) = softmax(W h)[cluster] p(token | cluster), the second factor not learned. `output.weight` is (K, D).

    The member is uniform (MASC, Sec. 3.3), or as frequent as in training. Either way the gradient of this likelihood is
    that of the K-way cross-entropy (MASC, Eq. 5): the two differ by a constant."""

    def __init__(self, dim: int, partition: Partition, counts: np.ndarray | None = None):
        """`counts` (N,) is how often each token occurs, or None for uniform members. One is added to each, so that no
        token is impossible."""
        super().__init__(dim, partition, partition.num_clusters)
        smooth = within = None
        if counts is not None:
            sums = np.bincount(partition.cluster_of, counts + 1).astype(np.int64)
            smooth, within = torch.from_numpy(counts + 1), torch.from_numpy(sums)
        # Integers, which a change of the model's type leaves alone.
        self.register_buffer("frequency", smooth, persistent=False)  # (N,), or None
        self.register_buffer("frequency_within", within, persistent=False)  # (K,): of all members

    @classmethod
    def build(cls, config: MascConfig, dim: int, num_tokens: int, tree: Clustering, counts: np.ndarray | None) -> Self:
        return cls(dim, tree.cut(config.cuts(num_tokens)[-1]), counts if config.uses_counts else None)

    def log_probs(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """(*, D), (*) -> (*, 2): the cluster, the member."""
        cluster = self.cluster_of[tokens]
        return torch.stack([linear_log_prob(hidden, self.output.weight, cluster), self._within(tokens)], dim=-1)

    def mean_log_prob(self, hidden: Tensor, tokens: Tensor, shares: Tensor) -> Tensor:
        clusters = linear_mean_log_prob(hidden, self.output.weight, self.cluster_of[tokens], shares)
        return clusters + (shares * self._within(tokens)).sum(-1)

    def _within(self, tokens: Tensor) -> Tensor:
        """Log-probability of tokens within their clusters: (*) -> (*), float32."""
        cluster = self.cluster_of[tokens]
        if self.frequency is None:
            return -self.members.counts[cluster].float().log()
        return (self.frequency[tokens].double() / self.frequency_within[cluster]).log().float()

    def sample(self, hidden: Tensor, pick: Pick) -> Tensor:
        """(M, D) -> (M,)."""
        cluster = pick(self.output(hidden).float())
        if self.frequency is None:
            return self.member(cluster, pick.uniform(self.members.counts[cluster]))
        ones = torch.ones(len(hidden), 1, device=hidden.device)
        return self.member(cluster, pick.fixed(self.members.logits(ones, self.frequency[:, None].log(), cluster)))


class MascTwoLevelHead(ClusterHead):
    """p(token) = p(cluster) p(token | cluster), both learned. `output.weight` is (K + N, D): clusters, then tokens.

    Small products score all N members at once and mask those of other clusters, so that earlier results stay equal to
    the last digit. Large ones read the rows of the clusters met only."""

    def __init__(self, dim: int, partition: Partition):
        super().__init__(dim, partition, partition.num_clusters + partition.num_tokens)

    def log_probs(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """(*, D), (*) -> (*, 2): the cluster, the member."""
        cluster = self.cluster_of[tokens]
        if tokens.numel() * len(self.output.weight) <= WHOLE:
            clusters, members = self.output(hidden).split([self.num_clusters, self.num_tokens], dim=-1)
            members = members.masked_fill(self.cluster_of != cluster[..., None], -torch.inf)
            return torch.stack([log_softmax_at(clusters, cluster), log_softmax_at(members, tokens)], dim=-1)
        rows = self.output.weight.split([self.num_clusters, self.num_tokens])
        path = self.path(tokens.flatten())
        choices = Among(path[0]), AmongChildren(self.members, *path)
        found = path_log_probs(hidden.flatten(0, -2), list(zip(rows, choices, strict=True)))
        return found.view(*tokens.shape, 2)

    def mean_log_prob(self, hidden: Tensor, tokens: Tensor, shares: Tensor) -> Tensor:
        """All N members are scored at once, whatever the sizes."""
        rows, flat = len(self.output.weight), tokens.flatten(0, -2)
        found = in_chunks(self._log_probs_of, 2 * rows, hidden.flatten(0, -2), flat).view(tokens.shape)
        return (found * shares).sum(-1)

    def _log_probs_of(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        clusters, members = self.output(hidden).float().split([self.num_clusters, self.num_tokens], dim=-1)
        cluster = self.cluster_of[tokens]
        totals = segment_logsumexp(members, self.cluster_of, self.num_clusters)
        within = members.gather(1, tokens) - totals.gather(1, cluster)
        return clusters.log_softmax(-1).gather(1, cluster) + within

    def sample(self, hidden: Tensor, pick: Pick) -> Tensor:
        """(M, D) -> (M,)."""
        clusters, tokens = self.output.weight.split([self.num_clusters, self.num_tokens])
        cluster = pick(nn.functional.linear(hidden, clusters).float())
        return self.member(cluster, pick(self.members.logits(hidden, tokens, cluster)))

    @torch.no_grad()
    def start_from(self, flat: FlatStart) -> dict[str, str]:
        clusters = super().start_from(flat)["output.weight"]
        self.output.weight[self.num_clusters :] = flat.rows
        return {"output.weight": f"clusters {clusters}, tokens {COPIED}"}
