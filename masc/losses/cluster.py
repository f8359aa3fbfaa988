"""IAR's loss: the token, and its cluster by the logits of the members.

Shapes: B images, T positions, M positions of all images, D width, N tokens."""

from functools import partial
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from masc.heads.flat import FlatHead
from masc.heads.losses import in_chunks
from masc.losses.base import Given, Loss, Parts, falling, require_flat
from masc.losses.config import ClusterConfig
from masc.tree import Partition


class ClusterLoss(Loss):
    """log p(x) + w log p(cluster of x), p(cluster) = sum of p over its members: the segment log-sum-exp of the logits
    under a softmax over clusters (IAR, sjtuplayer/IAR a46074a, autoregressive/models/gpt.py, with alpha = 1).

    For heads of one softmax. Beyond cross-entropy it costs a pass over the logits, and no matrix product."""

    def __init__(self, config: ClusterConfig, partition: Partition):
        super().__init__()
        self.weight, self.until = config.weight, config.until
        self.register_buffer("cluster_of", torch.from_numpy(partition.cluster_of.copy()), persistent=False)

    @classmethod
    def build(cls, config: ClusterConfig, parts: Parts) -> Self:
        require_flat(config.name, parts.head)
        return cls(config, parts.tree.cut(config.cuts(parts.num_tokens)[-1]))

    def forward(self, head: FlatHead, hidden: Tensor, tokens: Tensor, given: Given) -> Tensor:
        """(B, T, D), (B, T) -> (B, T, 2): the token, the weighted cluster."""
        rows = head.rows()
        function = partial(token_and_cluster, rows, self.cluster_of)
        found = in_chunks(function, 2 * len(rows), hidden.flatten(0, 1), tokens.flatten()).view(*tokens.shape, 2)
        weight = falling(self.weight, self.until, given["progress"])
        return torch.stack([found[..., 0], weight * found[..., 1]], dim=-1)


def token_and_cluster(rows: Tensor, cluster_of: Tensor, hidden: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities of tokens, and of their clusters, under a flat softmax: (M, D), (M,) -> (M, 2) float32."""
    logits = F.linear(hidden, rows).float()
    total = logits.logsumexp(1)
    own = logits.gather(1, tokens[:, None])[:, 0]
    within = logits.masked_fill(cluster_of != cluster_of[tokens][:, None], -torch.inf).logsumexp(1)
    return torch.stack([own - total, within - total], dim=1)
