"""A token as two sub-tokens, the cluster and the rank of a member, which a small transformer predicts in turn.

Shapes: M positions, D width, W inner width, K clusters, V members of the largest cluster, S sub-tokens so far."""

from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masc.heads.base import Pick
from masc.heads.config import SubtokenConfig
from masc.heads.masc import ClusterHead
from masc.heads.warm import FlatStart
from masc.tree import Clustering, Partition

Past = list[tuple[Tensor, Tensor]]  # keys and values of the sub-tokens before, a pair a block


class _Block(nn.Module):
    """A pre-norm transformer block over sub-tokens, one at a time."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm, self.ffn_norm = nn.RMSNorm(width, eps=1e-5), nn.RMSNorm(width, eps=1e-5)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(M, W), keys and values (M, H, S, E) -> (M, W), keys and values (M, H, S + 1, E)."""
        parts = self.qkv(self.attention_norm(x)).view(len(x), 3, self.num_heads, 1, -1)
        query, key, value = parts.unbind(1)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        # For one query and few keys, plain products: torch's fused kernels have limits on the number of rows.
        weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
        x = x + self.out((weights @ value).flatten(1))
        return x + self.down(F.gelu(self.up(self.ffn_norm(x)))), (key, value)


class SubtokenHead(ClusterHead):
    """p(token) = p(cluster) p(rank | cluster), by blocks over the two-slot sequence [P h, E[cluster]].

    Follows TencentARC/Open-MAGVIT2, src/Open_MAGVIT2/modules/transformer/gpt.py: the first slot gives the cluster, the
    second the rank; the matrix of ranks is the same for all clusters, and ranks beyond a cluster's members are masked.
    `output.weight` (K, W) and `ranks.weight` (V, W) start at zero."""

    def __init__(self, dim: int, partition: Partition, width: int, num_heads: int, num_layers: int):
        super().__init__(width, partition, partition.num_clusters)
        self.project = nn.Linear(dim, width, bias=False)
        self.cluster_embedding = nn.Embedding(partition.num_clusters, width)
        self.blocks = nn.ModuleList(_Block(width, num_heads) for _ in range(num_layers))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.ranks = nn.Linear(width, int(partition.sizes.max()), bias=False)
        nn.init.zeros_(self.ranks.weight)

    @classmethod
    def build(
        cls, config: SubtokenConfig, dim: int, num_tokens: int, tree: Clustering, counts: np.ndarray | None
    ) -> Self:
        cut = tree.cut(config.cuts(num_tokens)[-1])
        return cls(dim, cut, config.width, config.num_heads, config.num_layers)

    def initialise(self, generator: torch.Generator) -> None:
        for part in (self.project, self.cluster_embedding, *self.blocks.modules()):
            if isinstance(part, nn.Linear | nn.Embedding):
                nn.init.normal_(part.weight, std=0.02, generator=generator)

    @property
    def numbers(self) -> int:
        width = self.output.in_features
        return self.num_clusters + self.ranks.out_features + 40 * width * len(self.blocks)

    def _slot(self, x: Tensor, past: Past) -> tuple[Tensor, Past]:
        now: Past = []
        for block, before in zip(self.blocks, past or [None] * len(self.blocks), strict=True):
            x, pair = block(x, before)
            now.append(pair)
        return self.norm(x), now

    def sample(self, hidden: Tensor, pick: Pick) -> Tensor:
        """(M, D) -> (M,)."""
        state, past = self._slot(self.project(hidden), [])
        cluster = pick(self.output(state).float())
        state, _ = self._slot(self.cluster_embedding(cluster), past)
        beyond = torch.arange(self.ranks.out_features, device=cluster.device) >= self.members.counts[cluster, None]
        logits = self.ranks(state).float().masked_fill(beyond, torch.finfo(torch.float32).min)
        return self.member(cluster, pick(logits))

    def start_from(self, flat: FlatStart) -> dict[str, str]:
        return {}  # its rows act on states of its own width

    def tables(self) -> list[nn.Parameter]:
        return [self.output.weight, self.ranks.weight, self.cluster_embedding.weight]
