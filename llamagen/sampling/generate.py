"""Draws the tokens of images, with any backbone and any head.

A sample depends on (seed, image index) only: every image has its own random numbers, which are drawn before its first
token. Neither the batch nor the number of processes changes a sample."""

import numpy as np
import torch
from torch import Tensor

from llamagen.backbones.base import Backbone
from llamagen.model import ARModel
from llamagen.sampling.filters import SamplingConfig, draw, guide, probabilities
from masc.heads.base import ImageHead
from masc.runtime.errors import InputError
from masc.runtime.streams import Purpose, random_stream


class SamplingPick:
    """The `Pick` of the head protocol for the positions that one step draws; see `masc.heads.base`.

    With guidance the logits hold [conditional; unconditional] halves, and both halves get the same choice."""

    def __init__(self, config: SamplingConfig, uniforms: Tensor, scale: float, decision: int = 0):
        """`uniforms` (B S, L): a number in [0, 1) for each image, position and decision; `scale` of guidance, 1 for
        none; `decision` is the number of the first one."""
        self.config, self.uniforms, self.scale, self.decision = config, uniforms, scale, decision

    def _next_uniforms(self) -> Tensor:
        self.decision += 1
        return self.uniforms[:, self.decision - 1]

    def _both_halves(self, chosen: Tensor) -> Tensor:
        return torch.cat([chosen, chosen]) if self.config.is_guided else chosen

    def __call__(self, logits: Tensor) -> Tensor:
        config = self.config
        if config.is_guided:
            acts = self.scale != 1 and not 0 < config.guided_decisions <= self.decision
            logits = guide(logits, self.scale) if acts else logits.chunk(2)[0]
        probs = probabilities(logits, config.temperature, config.top_k, config.top_p)
        return self._both_halves(draw(probs, self._next_uniforms()))

    def uniform(self, sizes: Tensor) -> Tensor:
        sizes = sizes.chunk(2)[0] if self.config.is_guided else sizes
        drawn = (self._next_uniforms().to(sizes.device) * sizes).long()
        return self._both_halves(torch.minimum(drawn, sizes - 1))

    def fixed(self, logits: Tensor) -> Tensor:
        logits = logits.chunk(2)[0] if self.config.is_guided else logits
        return self._both_halves(draw(logits.softmax(dim=-1), self._next_uniforms()))


def image_uniforms(seed: int, indices: np.ndarray, num_positions: int, num_decisions: int) -> Tensor:
    """The random numbers of images by index: (B, T, L) float64 in [0, 1)."""
    shape = (num_positions, num_decisions)
    drawn = [random_stream(seed, Purpose.SAMPLING, index).random(shape) for index in indices]
    return torch.from_numpy(np.stack(drawn))


def check_guidance(backbone: Backbone, config: SamplingConfig) -> None:
    """Raise InputError if guidance is asked of a model without a null condition."""
    if config.is_guided and not backbone.has_null:
        raise InputError(
            f"{backbone.config.name} was trained without a null condition (model.class_dropout=0), so guidance "
            f"{config.guidance} has nothing to subtract; draw with ARGS=sampling.guidance=1"
        )


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

    `caption_mask` (B, P) marks the real slots of captions. With guidance the unconditional half sees the same slots,
    as released. The backbone chooses how many positions each step draws. All positions of a step get the guidance
    scale of its first. The i-th position drawn uses `uniforms[:, i]`. Uniforms for fewer than T positions stop the
    drawing there, with LlamaGen's backbone only. `compiled` compiles the step, once a model and batch size. A head of
    two stages ends with one pass of the backbone and its second network over the images, at the whole guidance scale.

    Raises InputError as `check_guidance`, and ValueError if the uniforms end within a step, or before the last position
    of a head of two stages."""
    backbone, head, num_positions = model.backbone, model.head, uniforms.shape[1]
    if isinstance(head, ImageHead) and num_positions < backbone.num_positions:
        raise ValueError(f"this head draws whole images of {backbone.num_positions} positions, not {num_positions}")
    check_guidance(backbone, config)
    if config.is_guided:
        condition = torch.cat([condition, backbone.null(condition)])
        caption_mask = None if caption_mask is None else torch.cat([caption_mask, caption_mask])
    uniforms = uniforms.to(condition.device)
    decoding, drawn = backbone.decode(condition, caption_mask, compiled), 0
    while drawn < num_positions:
        hidden = decoding.predict()  # (B, S, D)
        step = slice(drawn, drawn + hidden.shape[1])
        if step.stop > num_positions:
            raise ValueError(f"a step draws positions {drawn} to {step.stop - 1}, uniforms are for {num_positions}")
        scale = config.scale(drawn, backbone.num_positions)
        pick = SamplingPick(config, uniforms[:, step].flatten(0, 1), scale)
        decoding.place(head.sample(hidden.flatten(0, 1), pick).view(hidden.shape[:2]))
        drawn = step.stop
    tokens = decoding.tokens()
    if isinstance(head, ImageHead):
        hidden = backbone.hidden(tokens, condition, caption_mask)
        tokens = head.finish(hidden, tokens, SamplingPick(config, uniforms.flatten(0, 1), config.guidance, decision=1))
    return tokens[: len(uniforms)]
