"""The LlamaGen transformer: hidden states of an image's positions, never a loss.

Follows FoundationVision/LlamaGen (ce98ec4), autoregressive/models/gpt.py, with its parameter names. What is
computed depends on the arguments only: `forward` takes a whole sequence, `step` one position with a cache.
`.training` switches dropout and nothing else. (The output of the released forward changes shape with it.)

Shapes: B images, P positions of the condition, T positions of tokens, D width, N tokens."""

import torch
from torch import Tensor, nn

from llamagen.backbones.base import Backbone, DataShape
from llamagen.backbones.config import ModelConfig
from llamagen.backbones.decoding import CachedDecoding, CompiledStep
from llamagen.backbones.dropout import ImageDropout
from llamagen.backbones.embeddings import TokenEmbedding, build_condition, visible_keys
from llamagen.backbones.layers import Block, KVCache, RMSNorm, rope_table

KEPT_STEPS = 2  # compiled steps with their caches: one for full batches, one for the last


class Transformer(Backbone):
    """A decoder over [condition, token 0, ..., token T - 1] in raster order of a square image."""

    config: ModelConfig

    def __init__(self, config: ModelConfig, tokens: TokenEmbedding, shape: DataShape):
        super().__init__()
        self.config, self.grid, self.num_positions = config, shape.grid, shape.num_positions
        self.cls_embedding = build_condition(config, shape.num_classes)
        self.tok_embeddings = tokens
        self.token_dropout = ImageDropout(config.token_dropout)
        depth = max(1, config.num_layers - 1)
        self.layers = nn.ModuleList(Block(config, config.drop_path * i / depth) for i in range(config.num_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self._compiled: dict[int, CompiledStep] = {}  # by batch size

    @property
    def num_condition(self) -> int:
        """P: positions before the first token."""
        return self.cls_embedding.num_positions

    @property
    def has_null(self) -> bool:
        return self.cls_embedding.has_null

    def null(self, condition: Tensor) -> Tensor:
        return self.cls_embedding.null(condition)

    def tables(self) -> list[nn.Parameter]:
        return [self.tok_embeddings.weight]

    def blocks(self) -> list[nn.Module]:
        return list(self.layers)

    def initialise(self, generator: torch.Generator) -> None:
        """Normal(0, 0.02) for every matrix and table, as released; norms stay 1."""
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02, generator=generator)
        if self.config.condition == "text":
            self.cls_embedding.initialise(generator)

    def hidden(self, tokens: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T), condition -> (B, T, D). `mask` (B, P) marks the real slots of a caption."""
        return self(tokens, condition, None if mask is None else visible_keys(mask, self.num_positions - 1))

    def decode(self, condition: Tensor, mask: Tensor | None = None, compiled: bool = False) -> CachedDecoding:
        """One position a step in raster order, with a key-value cache. A compiled step is kept by batch size."""
        batch = len(condition)
        if compiled and batch not in self._compiled:
            if len(self._compiled) == KEPT_STEPS:
                self._compiled.pop(next(iter(self._compiled)))
            torch.compiler.assume_constant_result(Transformer.rope)  # a table, not to be computed at every step
            self._compiled[batch] = CompiledStep(self.step, self.empty_caches(batch))
        step = self._compiled[batch] if compiled else self.step
        caches = self._compiled[batch].caches if compiled else self.empty_caches(batch)
        visible = None if mask is None else visible_keys(mask, self.num_positions - 1)
        return CachedDecoding(self.start(condition, caches, visible), step, caches, visible)

    def end_decoding(self) -> None:
        """Free the caches of compiled steps."""
        self._compiled.clear()

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
        x = self.token_dropout(x)
        for index, layer in enumerate(self.layers):
            x = layer(x, rope, caches[index] if caches else None, position, mask)
        return self.norm(x)

    def forward(self, tokens: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        """Hidden states that predict each token: (B, T) or (B, T - 1), condition -> (B, T, D).

        The last token is not read, because no position sees it. `mask` (B, 1, S, S), S >= P + T - 1, marks what each
        position may see (`embeddings.visible_keys`); None: everything up to itself."""
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

        With `position` as a tensor (1,) every step has the same shapes, for torch.compile; `mask` (*, 1, S, S) must
        then hide later positions."""
        x = self.tok_embeddings(tokens)[:, None]
        return self._run(x, caches, self.num_condition + position - 1, mask)[:, -1]
