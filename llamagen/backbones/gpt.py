"""The LlamaGen transformer: hidden states of an image's positions, never a loss.

Follows FoundationVision/LlamaGen (ce98ec4), autoregressive/models/gpt.py, with its parameter names. What is
computed depends on the arguments only: a whole sequence (`forward`) or one position with a cache (`step`).
`.training` switches dropout and nothing else (the released forward changes shape with it).

A condition is whatever the embedding of the config takes: class numbers (B,), or caption features (B, P, C).

Shapes: B images, P positions of the condition, T positions of tokens, D width, N tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamagen.backbones.config import ModelConfig
from llamagen.backbones.embeddings import TokenEmbedding, build_condition
from llamagen.backbones.layers import Block, KVCache, RMSNorm, rope_table


class Transformer(nn.Module):
    """A decoder over [condition, token 0, ..., token T - 1] in raster order of a grid x grid image."""

    def __init__(self, config: ModelConfig, tokens: TokenEmbedding, num_classes: int, grid: int):
        super().__init__()
        self.config, self.grid = config, grid
        self.cls_embedding = build_condition(config, num_classes)
        self.tok_embeddings = tokens
        depth = max(1, config.num_layers - 1)
        self.layers = nn.ModuleList(Block(config, config.drop_path * i / depth) for i in range(config.num_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)

    @property
    def num_positions(self) -> int:
        """T."""
        return self.grid * self.grid

    @property
    def num_condition(self) -> int:
        """P: positions before the first token."""
        return self.cls_embedding.num_positions

    def initialise(self, generator: torch.Generator) -> None:
        """Normal(0, 0.02) for every matrix and table, as released; norms stay 1."""
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02, generator=generator)
        if self.config.condition == "text":
            self.cls_embedding.initialise(generator)

    def rope(self, device: torch.device) -> Tensor:
        config = self.config
        return rope_table(self.grid, config.head_dim, config.rope_base, self.num_condition, device)

    def _run(self, x: Tensor, caches: list[KVCache] | None, position: int | Tensor, mask: Tensor | None) -> Tensor:
        rope = self.rope(x.device)
        if isinstance(position, Tensor):
            rope, mask = rope[position], mask.index_select(2, position)
        else:
            end = position + x.shape[1]
            rope = rope[position:end]
            mask = None if mask is None else mask[:, :, position:end, :end]
        x = F.dropout(x, self.config.token_dropout, self.training)
        for index, layer in enumerate(self.layers):
            x = layer(x, rope, caches[index] if caches else None, position, mask)
        return self.norm(x)

    def forward(self, tokens: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        """Hidden states that predict each token: (B, T) or (B, T - 1), condition -> (B, T, D).

        The last token is context for nothing and is not read. `mask` (B, 1, S, S), S >= P + T - 1, says what each
        position may see (`conditioning.visible_keys`); None: everything up to itself."""
        context = self.tok_embeddings(tokens[:, : self.num_positions - 1])
        hidden = self._run(torch.cat([self.cls_embedding(condition), context], dim=1), None, 0, mask)
        return hidden[:, self.num_condition - 1 :]

    def empty_caches(self, batch: int) -> list[KVCache]:
        """Caches for `batch` images; 2 * layers * B * G * (P + T - 1) * E numbers in the weights' type."""
        config, like = self.config, self.layers[0].attention.wqkv.weight
        shape = (batch, config.kv_heads, self.num_condition + self.num_positions - 1, config.head_dim)
        return [KVCache(like.new_zeros(shape), like.new_zeros(shape)) for _ in self.layers]

    def start(self, condition: Tensor, caches: list[KVCache], mask: Tensor | None = None) -> Tensor:
        """Hidden state that predicts the first token: condition -> (B, D)."""
        return self._run(self.cls_embedding(condition), caches, 0, mask)[:, -1]

    def step(self, tokens: Tensor, position: int | Tensor, caches: list[KVCache], mask: Tensor | None = None) -> Tensor:
        """Hidden state that predicts token `position` from the one before it: (B,) -> (B, D).

        With `position` as a tensor (1,) every step has the same shapes; `mask` (*, 1, S, S) must then hide, row by
        row, what is to come."""
        x = self.tok_embeddings(tokens)[:, None]
        return self._run(x, caches, self.num_condition + position - 1, mask)[:, -1]
