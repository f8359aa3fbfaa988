"""From logits to probabilities: guidance, temperature, top-k and top-p in the released order.

Follows FoundationVision/LlamaGen (ce98ec4), autoregressive/models/generate.py, but never writes in place.

Shapes: B images, V choices, T positions."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SCHEDULES = ("constant", "linear", "cosine", "step")


@dataclass(kw_only=True)
class SamplingConfig:
    """How choices are drawn from logits."""

    guidance: float = 1.0  # classifier-free guidance scale; at most 1: none
    guidance_schedule: str = "constant"  # one of SCHEDULES: how the scale runs over the positions
    guidance_power: float = 2.75  # of the cosine schedule (RAR-B's)
    guidance_start: float = 0.18  # share of the positions that the step schedule leaves unguided (GigaTok's)
    guidance_interval: int = -1  # tokens 0 .. interval + 1 are guided, later ones not; -1: all
    guided_decisions: int = 0  # how many decisions on the way to a token are guided, the first ones; 0: all
    temperature: float = 1.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0  # 1: all

    def __post_init__(self) -> None:
        if self.guidance < 0 or self.temperature < 0 or self.top_k < 0 or not 0 <= self.top_p <= 1:
            raise ValueError(
                "sampling needs guidance >= 0, temperature >= 0, top_k >= 0 and 0 <= top_p <= 1, found "
                f"{self.guidance}, {self.temperature}, {self.top_k}, {self.top_p}"
            )

        if self.guidance_schedule not in SCHEDULES:
            raise ValueError(
                f"sampling.guidance_schedule must be one of {', '.join(SCHEDULES)}, not {self.guidance_schedule!r}"
            )
        if self.guided_decisions < 0:
            raise ValueError(f"sampling.guided_decisions must be 0 (all) or more, found {self.guided_decisions}")
        if self.guidance_power <= 0 or not 0 <= self.guidance_start <= 1 or self.guidance_interval < -1:
            raise ValueError(
                "sampling needs guidance_power > 0, 0 <= guidance_start <= 1 and guidance_interval >= -1, found "
                f"{self.guidance_power}, {self.guidance_start}, {self.guidance_interval}"
            )

    @property
    def is_guided(self) -> bool:
        return self.guidance > 1.0

    def scale(self, position: int, num_positions: int) -> float:
        """The guidance scale at a position, 0 .. T - 1; 1 is none.

        `constant`: LlamaGen. `linear`: from 1 up to the scale at the end (RandAR). `cosine`: RAR's power-cosine,
        1 + (s - 1) (1 - cos(pi (t / T)^p)) / 2. `step`: none, then the whole scale (GigaTok)."""
        if self.guidance_interval >= 0 and position > self.guidance_interval + 1:
            return 1.0
        progress = position / num_positions
        share = {
            "constant": 1.0,
            "linear": progress,
            "cosine": (1 - math.cos(math.pi * progress**self.guidance_power)) / 2,
            "step": float(progress >= self.guidance_start),
        }[self.guidance_schedule]
        return 1 + (self.guidance - 1) * share


def guide(logits: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: halves [conditional; unconditional] (2 B, V) -> (B, V)."""
    conditional, unconditional = logits.chunk(2)
    return unconditional + (conditional - unconditional) * scale


def filter_logits(logits: Tensor, top_k: int, top_p: float, min_tokens_to_keep: int = 1) -> Tensor:
    """Set to -inf what is outside the top-k, then outside the nucleus of mass top-p: (B, V) -> (B, V).

    Ties with the k-th value all stay. The first choice past top-p stays too; with min_tokens_to_keep
    m > 1 the nucleus keeps m + 1, as released."""
    if top_k > 0:
        top_k = min(max(top_k, min_tokens_to_keep), logits.shape[-1])
        threshold = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True)
        removed = ordered.softmax(dim=-1).cumsum(dim=-1) > top_p
        if min_tokens_to_keep > 1:
            removed[..., :min_tokens_to_keep] = False
        removed = torch.cat([torch.zeros_like(removed[..., :1]), removed[..., :-1]], dim=-1)
        logits = logits.masked_fill(removed.scatter(-1, order, removed), -torch.inf)
    return logits


def probabilities(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Temperature, top-k, top-p, softmax: (B, V) -> (B, V) float32."""
    return filter_logits(logits.float() / max(temperature, 1e-5), top_k, top_p).softmax(dim=-1)


def draw(probs: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse-CDF draw, one uniform number in [0, 1) an image: (B, V), (B,) -> (B,).

    A choice of probability zero is never drawn."""
    cdf = probs.double().cumsum(dim=-1)
    total = cdf[:, -1:]
    chosen = torch.searchsorted(cdf, uniforms.to(cdf)[:, None] * total, right=True)
    last = (cdf < total).sum(dim=-1, keepdim=True)  # the last choice of positive probability
    return torch.minimum(chosen, last).squeeze(-1)
