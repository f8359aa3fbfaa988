"""Layers of the LlamaGen transformer, with its parameter names.

Follows FoundationVision/LlamaGen (ce98ec4), autoregressive/models/gpt.py. Differs in three points. The key-value cache
is an argument, not a buffer, and has as many heads as the keys, so that sampling works with grouped key-value heads.
Attention reads the cache up to the position, not its full length with a mask. RoPE tables are computed on demand.

Shapes: B images, S sequence positions, D width, H heads, G key-value heads, E head width."""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamagen.backbones.config import ModelConfig
from llamagen.backbones.dropout import ImageDropout


class RMSNorm(nn.Module):
    """Root mean square norm in float32, scaled after the cast back, as in the released code."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return normed.type_as(x) * self.weight


@lru_cache(maxsize=16)
def rope_table(grid: int, head_dim: int, base: float, num_condition: int, device: torch.device) -> Tensor:
    """Cosine and sine of each position and channel pair: (num_condition + grid * grid, E / 2, 2), float32.

    The first half of the pairs turns with the row, the second with the column. The positions of the condition hold
    zeros, not the identity rotation, so that their queries and keys vanish: released weights need that."""
    with torch.inference_mode(False):  # a table first made while sampling must serve training too
        return _rope_table(grid, head_dim, base, num_condition).to(device)


def _rope_table(grid: int, head_dim: int, base: float, num_condition: int) -> Tensor:
    frequencies = base ** (-torch.arange(0, head_dim // 2, 2).float() / (head_dim // 2))  # (E / 4,)
    angles = torch.outer(torch.arange(grid).float(), frequencies)  # (grid, E / 4)
    by_row = angles[:, None].expand(grid, grid, -1)
    by_column = angles[None].expand(grid, grid, -1)
    angles = torch.cat([by_row, by_column], dim=-1).flatten(0, 1)  # (grid * grid, E / 2)
    table = torch.stack([angles.cos(), angles.sin()], dim=-1)
    return torch.cat([torch.zeros(num_condition, head_dim // 2, 2), table])


def apply_rope(x: Tensor, table: Tensor) -> Tensor:
    """Rotate adjacent channel pairs: (B, S, H, E), (S, E / 2, 2) -> (B, S, H, E), computed in float32."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # (B, S, H, E / 2) each
    cos, sin = table[:, None].unbind(-1)  # (S, 1, E / 2) each
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).type_as(x)


@dataclass
class KVCache:
    """Keys and values of one layer for a batch: (B, G, S, E) each, filled up to the current position.

    At a position given as a number, `extend` returns the filled part. At a position given as a tensor it returns all
    of the cache, so that no shape changes between steps (for torch.compile); the caller then masks later positions."""

    keys: Tensor
    values: Tensor

    def extend(self, position: int | Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, G, S', E) from `position` on; return those to attend to."""
        if isinstance(position, Tensor):
            self.keys.index_copy_(2, position, keys)
            self.values.index_copy_(2, position, values)
            return self.keys, self.values
        end = position + keys.shape[2]
        self.keys[:, :, position:end] = keys
        self.values[:, :, position:end] = values
        return self.keys[:, :, :end], self.values[:, :, :end]


class Attention(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.num_heads, self.kv_heads, self.head_dim = config.num_heads, config.kv_heads, config.head_dim
        self.dropout = ImageDropout(config.residual_dropout)
        rows = (self.num_heads + 2 * self.kv_heads) * self.head_dim
        self.wqkv = nn.Linear(config.dim, rows, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)

    def forward(
        self, x: Tensor, rope: Tensor, cache: KVCache | None, position: int | Tensor, mask: Tensor | None
    ) -> Tensor:
        """Causal attention of x (B, S, D), whose first element stands at `position` of the sequence.

        `mask` (B, 1, S, keys) says which keys each position may see; None: all up to itself."""
        widths = [self.num_heads * self.head_dim, *[self.kv_heads * self.head_dim] * 2]
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in self.wqkv(x).split(widths, dim=-1))
        q, k, v = apply_rope(q, rope).transpose(1, 2), apply_rope(k, rope).transpose(1, 2), v.transpose(1, 2)
        if cache is not None:
            k, v = cache.extend(position, k, v)
        # A single query sees every stored key; a whole sequence starts at 0 and is causal.
        is_causal = mask is None and q.shape[2] > 1
        grouped = self.num_heads != self.kv_heads
        attended = F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal, enable_gqa=grouped)
        out = self.wo(attended.transpose(1, 2).flatten(2))
        return self.dropout(out)


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.dropout = ImageDropout(config.ffn_dropout)
        self.w1 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.w2 = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.w2(F.silu(self.w1(x)) * self.w3(x)))


class Block(nn.Module):
    """Pre-norm transformer block; `drop_path` is the chance that an image skips a branch of it in training."""

    def __init__(self, config: ModelConfig, drop_path: float):
        super().__init__()
        self.skip_attention, self.skip_ffn = (ImageDropout(drop_path, whole=True) for _ in range(2))
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)

    def forward(
        self, x: Tensor, rope: Tensor, cache: KVCache | None, position: int | Tensor, mask: Tensor | None
    ) -> Tensor:
        x = x + self.skip_attention(self.attention(self.attention_norm(x), rope, cache, position, mask))
        return x + self.skip_ffn(self.feed_forward(self.ffn_norm(x)))
