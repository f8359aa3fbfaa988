"""From logits to probabilities: guidance, temperature, top-k and top-p in the released order.

Follows FoundationVision/LlamaGen (ce98ec4), autoregressive/models/generate.py, but never writes in place.

Shapes: B images, V choices."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(kw_only=True)
class SamplingConfig:
    """How choices are drawn from logits."""

    guidance: float = 1.0  # classifier-free guidance scale; at most 1: none
    guidance_interval: int = -1  # tokens 0 .. interval + 1 are guided, later ones not; -1: all
    temperature: float = 1.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0  # 1: all

    def __post_init__(self) -> None:
        if self.guidance < 0 or self.temperature < 0 or self.top_k < 0 or not 0 <= self.top_p <= 1:
            raise ValueError(
                "sampling needs guidance >= 0, temperature >= 0, top_k >= 0 and 0 <= top_p <= 1, found "
                f"{self.guidance}, {self.temperature}, {self.top_k}, {self.top_p}"
            )

    @property
    def is_guided(self) -> bool:
        return self.guidance > 1.0

    def guides(self, position: int) -> bool:
        """Whether guidance acts on the token at a position."""
        return self.guidance_interval < 0 or position <= self.guidance_interval + 1


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
