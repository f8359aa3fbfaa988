"""Drawing code grids with a key-value cache.

A sample depends on (seed, image index) only: every image has its own random numbers, drawn before the
first token, so neither the batch it is in nor the number of processes changes it."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from llamagen.backbones.embeddings import visible_keys
from llamagen.backbones.gpt import Transformer
from llamagen.model import ARModel
from llamagen.sampling.filters import SamplingConfig, draw, guide, probabilities
from masc.runtime.streams import Purpose, random_stream


class SamplingPick:
    """The `Pick` of the head protocol for one position of a batch; see `masc.heads.base`.

    With guidance the logits hold [conditional; unconditional] halves, and both halves get the same choice."""

    def __init__(self, config: SamplingConfig, uniforms: Tensor, scale: float):
        """`uniforms` (B, L): one number in [0, 1) an image and decision; `scale` of guidance here, 1 for none."""
        self.config, self.uniforms, self.scale = config, uniforms, scale
        self.decision = 0

    def _next_uniforms(self) -> Tensor:
        self.decision += 1
        return self.uniforms[:, self.decision - 1]

    def _both_halves(self, chosen: Tensor) -> Tensor:
        return torch.cat([chosen, chosen]) if self.config.is_guided else chosen

    def __call__(self, logits: Tensor) -> Tensor:
        config = self.config
        if config.is_guided:
            logits = guide(logits, self.scale) if self.scale != 1 else logits.chunk(2)[0]
        probs = probabilities(logits, config.temperature, config.top_k, config.top_p)
        return self._both_halves(draw(probs, self._next_uniforms()))

    def uniform(self, sizes: Tensor) -> Tensor:
        sizes = sizes.chunk(2)[0] if self.config.is_guided else sizes
        drawn = (self._next_uniforms().to(sizes.device) * sizes).long()
        return self._both_halves(torch.minimum(drawn, sizes - 1))


def image_uniforms(seed: int, indices: np.ndarray, num_positions: int, num_decisions: int) -> Tensor:
    """The random numbers of images by index: (B, T, L) float64 in [0, 1)."""
    shape = (num_positions, num_decisions)
    drawn = [random_stream(seed, Purpose.SAMPLING, index).random(shape) for index in indices]
    return torch.from_numpy(np.stack(drawn))


class _Steps:
    """The decoding steps of one batch: caches that grow, or one compiled step over caches of fixed length."""

    def __init__(self, backbone: Transformer, batch: int):
        self.backbone, self.caches = backbone, backbone.empty_caches(batch)

    def __call__(self, tokens: Tensor, position: int, mask: Tensor | None) -> Tensor:
        return self.backbone.step(tokens, position, self.caches, mask)


class _CompiledSteps(_Steps):
    def __init__(self, backbone: Transformer, batch: int):
        super().__init__(backbone, batch)
        for cache in self.caches:  # CUDA graphs write to fixed addresses only
            torch._dynamo.mark_static_address(cache.keys)
            torch._dynamo.mark_static_address(cache.values)
        torch.compiler.assume_constant_result(Transformer.rope)  # a table, not to be computed at every step
        mode = "reduce-overhead" if self.caches[0].keys.is_cuda else "default"
        self._step = torch.compile(backbone.step, mode=mode, fullgraph=True, dynamic=False)
        size = self.caches[0].keys.shape[2]
        self._causal = torch.ones(size, size, dtype=torch.bool, device=self.caches[0].keys.device).tril()[None, None]

    def __call__(self, tokens: Tensor, position: int, mask: Tensor | None) -> Tensor:
        where = torch.tensor([position], device=tokens.device)
        torch.compiler.cudagraph_mark_step_begin()
        return self._step(tokens, where, self.caches, self._causal if mask is None else mask).clone()


@lru_cache(maxsize=2)
def _compiled_steps(backbone: Transformer, batch: int) -> _CompiledSteps:
    return _CompiledSteps(backbone, batch)


def forget_compiled() -> None:
    """Free the caches of compiled steps."""
    _compiled_steps.cache_clear()


@torch.inference_mode()
def generate(
    model: ARModel,
    condition: Tensor,
    uniforms: Tensor,
    config: SamplingConfig,
    caption_mask: Tensor | None = None,
    compiled: bool = False,
) -> Tensor:
    """Draw code grids: condition of B images, uniforms (B, T, L) -> tokens (B, T) int64.

    `caption_mask` (B, P) says which caption slots are real. With guidance the unconditional half sees the same
    slots, as released. Costs T cached steps, of twice the batch with guidance; `compiled` compiles the step once a
    model and batch size. Raises ValueError if guidance is asked of a model without a null condition."""
    backbone, num_positions = model.backbone, uniforms.shape[1]
    mask = None if caption_mask is None else visible_keys(caption_mask, backbone.num_positions - 1)
    if config.is_guided:
        if not backbone.cls_embedding.has_null:
            raise ValueError("guidance needs a model trained with class_dropout > 0; use sampling.guidance=1")
        condition = torch.cat([condition, backbone.cls_embedding.null(condition)])
        mask = None if mask is None else torch.cat([mask, mask])
    uniforms = uniforms.to(condition.device)
    steps = _compiled_steps(backbone, len(condition)) if compiled else _Steps(backbone, len(condition))
    hidden = backbone.start(condition, steps.caches, mask)
    tokens = []
    for position in range(num_positions):
        if position:
            hidden = steps(tokens[-1], position, mask)
        pick = SamplingPick(config, uniforms[:, position], config.scale(position, backbone.num_positions))
        tokens.append(model.head.sample(hidden, pick))
    return torch.stack(tokens, dim=1)[: len(uniforms)]
