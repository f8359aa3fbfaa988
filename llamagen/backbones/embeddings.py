"""Embeddings of LlamaGen: of tokens, of classes, of captions, and of the null condition that guidance needs.

Follows FoundationVision/LlamaGen (ce98ec4), autoregressive/models/gpt.py, LabelEmbedder and CaptionEmbedder. Differs
in that conditions are dropped by the caller, never as a side effect of `.training`.

Shapes: B images, C caption feature width, P positions of the condition, D width."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamagen.backbones.config import BackboneConfig
from masc.heads.shared import nodes_of, shared_rows
from masc.tree import Partition


class LabelEmbedding(nn.Module):
    """A vector for each class, and one for the null class, which has the number `num_classes`.

    With `class_dropout` 0 there is no null class, as in the released code, and so no guidance."""

    num_positions = 1  # P

    def __init__(self, num_classes: int, dim: int, class_dropout: float):
        super().__init__()
        self.num_classes = num_classes
        self.has_null = class_dropout > 0
        self.embedding_table = nn.Embedding(num_classes + self.has_null, dim)

    def null(self, like: Tensor) -> Tensor:
        """The null condition for as many images: (B,) -> (B,)."""
        return torch.full_like(like, self.num_classes)

    def forward(self, labels: Tensor) -> Tensor:
        """(B,) class numbers, `num_classes` for the null class -> (B, 1, D)."""
        return self.embedding_table(labels)[:, None]


class CaptionEmbedding(nn.Module):
    """Text features through a two-layer MLP without biases. The null caption is a fixed random table.

    `uncond_embedding` is a buffer: it is drawn once, never trained, and stored in the checkpoint."""

    def __init__(self, num_positions: int, caption_dim: int, dim: int, class_dropout: float):
        super().__init__()
        self.num_positions = num_positions
        self.has_null = class_dropout > 0
        self.cap_proj = nn.ModuleDict(
            {"fc1": nn.Linear(caption_dim, dim, bias=False), "fc2": nn.Linear(dim, dim, bias=False)}
        )
        self.register_buffer("uncond_embedding", torch.zeros(num_positions, caption_dim))

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the null caption: normal, scaled by 1 / sqrt(C)."""
        nn.init.normal_(self.uncond_embedding, std=self.uncond_embedding.shape[1] ** -0.5, generator=generator)

    def null(self, like: Tensor) -> Tensor:
        """The null condition for as many images: (B, P, C) -> (B, P, C)."""
        return self.uncond_embedding.to(like.dtype).expand_as(like)

    def forward(self, captions: Tensor) -> Tensor:
        """(B, P, C), left-padded with zeros -> (B, P, D). Padded positions pass through the MLP as well."""
        hidden = F.gelu(self.cap_proj["fc1"](captions.to(self.uncond_embedding.dtype)), approximate="tanh")
        return self.cap_proj["fc2"](hidden)


def build_condition(config: BackboneConfig, num_classes: int) -> LabelEmbedding | CaptionEmbedding:
    """The embedding of the condition that a config asks for."""
    if config.condition == "class":
        return LabelEmbedding(num_classes, config.dim, config.class_dropout)
    return CaptionEmbedding(config.caption_tokens, config.caption_dim, config.dim, config.class_dropout)


def visible_keys(caption_mask: Tensor, num_tokens: int) -> Tensor:
    """Attention mask for captions: (B, P) -> (B, 1, S, S) bool with S = P + num_tokens.

    `caption_mask` is true for real slots. Key j is visible to query i if j <= i and j is not a padded slot. Every
    position sees itself, so that no row is empty (LlamaGen, dataset/t2i.py and generate.py)."""
    keys = torch.cat([caption_mask.bool(), caption_mask.new_ones(len(caption_mask), num_tokens, dtype=torch.bool)], 1)
    size = keys.shape[1]
    seen = torch.ones(size, size, dtype=torch.bool, device=keys.device).tril()[None] & keys[:, None]
    return (seen | torch.eye(size, dtype=torch.bool, device=keys.device))[:, None]


class TokenEmbedding(nn.Embedding):
    """Embeds context tokens as token ids, or as the ids of their clusters.

    With a partition the table has K rows and the context holds cluster ids, as in MASC. What the head predicts is
    independent of that."""

    def __init__(self, num_tokens: int, dim: int, partition: Partition | None):
        super().__init__(num_tokens if partition is None else partition.num_clusters, dim)
        cluster_of = None if partition is None else torch.from_numpy(partition.cluster_of)
        self.register_buffer("cluster_of", cluster_of, persistent=False)
        self.register_buffer("node_of", None, persistent=False)
        self.register_parameter("shared", None)

    def share(self, cuts: Sequence[Partition]) -> None:
        """Add to each token's vector those of its clusters in nested cuts, zero at first; see `TreeSharedHead`."""
        self.node_of = nodes_of(cuts).to(self.weight.device)
        self.shared = nn.Parameter(self.weight.new_zeros(sum(cut.num_clusters for cut in cuts), self.embedding_dim))

    @torch.no_grad()
    def fold(self) -> None:
        """Put the vectors of the clusters into those of the tokens."""
        if self.shared is not None:
            self.weight.copy_(shared_rows(self.weight, self.shared, self.node_of))
            self.shared = self.node_of = None

    def forward(self, tokens: Tensor) -> Tensor:
        vectors = super().forward(tokens if self.cluster_of is None else self.cluster_of[tokens])
        return vectors if self.shared is None else shared_rows(vectors, self.shared, self.node_of[:, tokens])
