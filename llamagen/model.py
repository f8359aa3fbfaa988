"""The LlamaGen transformer: hidden states of an image's positions, never a loss.

Follows FoundationVision/LlamaGen (ce98ec4), autoregressive/models/gpt.py, with its parameter names. What is
computed depends on the arguments only: a whole sequence (`forward`) or one position with a cache (`step`).
`.training` switches dropout and nothing else (the released forward changes shape with it).

Shapes: B images, T positions, D width, N tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamagen.conditioning import LabelEmbedding
from llamagen.config import ModelConfig
from llamagen.layers import Block, KVCache, RMSNorm, rope_table
from masc.tree import Partition

NUM_CONDITION = 1  # positions before the first token: the class


class TokenEmbedding(nn.Embedding):
    """Embeds context tokens, as themselves or as the clusters they belong to.

    With a partition the table has K rows and the context holds cluster ids, as in MASC; it is a switch of
    its own, apart from what the head predicts."""

    def __init__(self, num_tokens: int, dim: int, partition: Partition | None):
        super().__init__(num_tokens if partition is None else partition.num_clusters, dim)
        cluster_of = None if partition is None else torch.from_numpy(partition.cluster_of)
        self.register_buffer("cluster_of", cluster_of, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens if self.cluster_of is None else self.cluster_of[tokens])


class Transformer(nn.Module):
    """A decoder over [class, token 0, ..., token T - 1] in raster order of a grid x grid image."""

    def __init__(self, config: ModelConfig, tokens: TokenEmbedding, num_classes: int, grid: int):
        super().__init__()
        self.config, self.grid = config, grid
        self.cls_embedding = LabelEmbedding(num_classes, config.dim, config.class_dropout)
        self.tok_embeddings = tokens
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)

    @property
    def num_positions(self) -> int:
        """T."""
        return self.grid * self.grid

    def initialise(self, generator: torch.Generator) -> None:
        """Normal(0, 0.02) for every matrix and table, as released; norms stay 1."""
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02, generator=generator)

    def rope(self, device: torch.device) -> Tensor:
        config = self.config
        return rope_table(self.grid, config.head_dim, config.rope_base, NUM_CONDITION, device)

    def _run(self, x: Tensor, caches: list[KVCache] | None, position: int) -> Tensor:
        rope = self.rope(x.device)[position : position + x.shape[1]]
        x = F.dropout(x, self.config.token_dropout, self.training)
        for index, layer in enumerate(self.layers):
            x = layer(x, rope, caches[index] if caches else None, position)
        return self.norm(x)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Hidden states that predict each token: (B, T) or (B, T - 1), (B,) -> (B, T, D).

        The last token is context for nothing and is not read. Label `num_classes` is the null class."""
        context = self.tok_embeddings(tokens[:, : self.num_positions - 1])
        return self._run(torch.cat([self.cls_embedding(labels), context], dim=1), None, 0)

    def empty_caches(self, batch: int) -> list[KVCache]:
        """Caches for `batch` images; 2 * layers * B * G * T * E numbers in the weights' type."""
        config, like = self.config, self.layers[0].attention.wqkv.weight
        shape = (batch, config.kv_heads, NUM_CONDITION + self.num_positions - 1, config.head_dim)
        return [KVCache(like.new_zeros(shape), like.new_zeros(shape)) for _ in self.layers]

    def start(self, labels: Tensor, caches: list[KVCache]) -> Tensor:
        """Hidden state that predicts the first token: (B,) -> (B, D)."""
        return self._run(self.cls_embedding(labels), caches, 0)[:, -1]

    def step(self, tokens: Tensor, position: int, caches: list[KVCache]) -> Tensor:
        """Hidden state that predicts token `position` from the one before it: (B,) -> (B, D)."""
        x = self.tok_embeddings(tokens)[:, None]
        return self._run(x, caches, NUM_CONDITION + position - 1)[:, -1]
