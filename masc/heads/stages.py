"""Heads of two stages: the model draws the clusters of an image, then a second network draws all members at once.

Shapes: B images, T positions, D width of the model, W width of the second network, K clusters, N tokens."""

import math
from abc import abstractmethod
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from masc.heads.base import ImageHead, Pick
from masc.heads.config import CtfConfig, MascRefineConfig
from masc.heads.losses import AmongChildren, in_chunks, linear_log_prob, path_log_probs
from masc.heads.masc import ClusterHead
from masc.tree import Clustering, Partition


class _StageHead(ImageHead, ClusterHead):
    """p(image) = product of p(cluster) by the model, times product of p(member | all clusters it may see).

    `output.weight` (K, D) of the clusters and `member_rows` (N, W) start at zero."""

    def __init__(self, dim: int, partition: Partition, width: int):
        super().__init__(dim, partition, partition.num_clusters)
        self.cluster_embedding = nn.Embedding(partition.num_clusters, width)
        self.project = nn.Linear(dim, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.member_rows = nn.Linear(width, partition.num_tokens, bias=False)

    def initialise(self, generator: torch.Generator) -> None:
        """Normal(0, 0.02) for every matrix but the outer ones, and zero biases."""
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.member_rows.weight)

    @abstractmethod
    def states(self, hidden: Tensor, clusters: Tensor) -> Tensor:
        """States that predict the members: (B, T, D), (B, T) -> (B, T, W)."""

    @property
    @abstractmethod
    def numbers(self) -> int:
        """About how many numbers `states` keeps for one position."""

    def log_probs(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """(B, T, D), (B, T) -> (B, T, 2): the cluster, the member."""
        path = self.path(tokens)
        states = in_chunks(self.states, self.numbers * tokens.shape[1], hidden, path[0]).flatten(0, 1)
        choice = AmongChildren(self.members, *path.flatten(1))
        members = path_log_probs(self.norm(states), [(self.member_rows.weight, choice)])
        return torch.stack([linear_log_prob(hidden, self.output.weight, path[0]), members.view(tokens.shape)], dim=-1)

    def sample(self, hidden: Tensor, pick: Pick) -> Tensor:
        """(M, D) -> (M,): the first member of the cluster drawn."""
        cluster = pick(self.output(hidden).float())
        return self.member(cluster, torch.zeros_like(cluster))

    def finish(self, hidden: Tensor, tokens: Tensor, pick: Pick) -> Tensor:
        clusters = self.cluster_of[tokens]
        state = self.norm(self.states(hidden, clusters)).flatten(0, 1)
        flat = clusters.flatten()
        return self.member(flat, pick(self.members.logits(state, self.member_rows.weight, flat))).view(tokens.shape)

    def tables(self) -> list[nn.Parameter]:
        return [self.output.weight, self.member_rows.weight, self.cluster_embedding.weight]


class MascRefineHead(_StageHead):
    """The paper's G_refine: one decoder layer over clusters and hidden states (MASC, App. A as its repository says).

    The cluster of a position asks; the clusters and the hidden states up to it answer. The paper counts about 25M
    parameters at L. This head has 25.7M there, 8.4M of them the matrix of the clusters; a table of earlier fine tokens
    would have as many, but no member sees another here. So all members are drawn in one pass."""

    def __init__(self, dim: int, partition: Partition, width: int, num_heads: int, dropout: float):
        super().__init__(dim, partition, width)
        self.decoder = nn.TransformerDecoderLayer(
            width, num_heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True
        )

    @classmethod
    def build(
        cls, config: MascRefineConfig, dim: int, num_tokens: int, tree: Clustering, counts: np.ndarray | None
    ) -> Self:
        return cls(dim, tree.cut(config.cuts(num_tokens)[-1]), config.width, config.num_heads, config.dropout)

    @property
    def numbers(self) -> int:
        return 20 * self.project.out_features

    def states(self, hidden: Tensor, clusters: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(clusters.shape[1], clusters.device)
        asking, memory = self.cluster_embedding(clusters), self.project(hidden)
        return self.decoder(asking, memory, mask, mask, tgt_is_causal=True, memory_is_causal=True)


class CtfHead(_StageHead):
    """CTF's two stages (arXiv 2503.16194): clusters in turn, then all members in one bidirectional pass.

    The second network is a pre-norm encoder of torch over [P h_0, E[cluster] at each position]. h_0, the hidden state
    of the first position, knows the condition and nothing else; no gradient passes it, so the stages are trained apart,
    as CTF trains them. CTF's second network is a LlamaGen transformer with its own embedding of classes."""

    def __init__(self, dim: int, partition: Partition, width: int, num_heads: int, num_layers: int, dropout: float):
        super().__init__(dim, partition, width)
        layer = nn.TransformerEncoderLayer(
            width, num_heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)

    @classmethod
    def build(cls, config: CtfConfig, dim: int, num_tokens: int, tree: Clustering, counts: np.ndarray | None) -> Self:
        cut = tree.cut(config.cuts(num_tokens)[-1])
        return cls(dim, cut, config.width, config.num_heads, config.num_layers, config.dropout)

    @property
    def numbers(self) -> int:
        return 20 * self.project.out_features * len(self.encoder.layers)

    def states(self, hidden: Tensor, clusters: Tensor) -> Tensor:
        images = self.cluster_embedding(clusters)
        images = images + places(clusters.shape[1], images.shape[-1], images.device).to(images.dtype)
        condition = self.project(hidden[:, :1].detach()).to(images.dtype)
        return self.encoder(torch.cat([condition, images], dim=1))[:, 1:]


def places(num_positions: int, width: int, device: torch.device) -> Tensor:
    """Sines and cosines of row and column in a square grid (T, W); of the position alone if T is no square."""
    side = math.isqrt(num_positions)
    index = torch.arange(num_positions, device=device)
    axes = (index // side, index % side) if side * side == num_positions else (index, index)
    rate = 10000.0 ** -(torch.arange(width // 4, device=device) / max(1, width // 4))
    angles = [axis[:, None] * rate for axis in axes]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=-1)
