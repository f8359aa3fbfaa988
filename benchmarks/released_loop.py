"""LlamaGen's decoding loop stated again over our weights: the baseline of `make bench-sample`.

As FoundationVision/LlamaGen (ce98ec4) runs it without torch.compile, in our own code: a cache of full length, into
which each step writes by an index tensor; a mask of one row a step over all of it; keys and values repeated for the
query heads though there are as many of each; the plain attention kernel; rotation by complex pairs; a softmax and a
multinomial draw over the whole vocabulary, probabilities kept."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from llamagen.backbones.layers import Block
from llamagen.model import ARModel
from llamagen.sampling.filters import filter_logits, guide


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """(B, S, H, E), (S, E / 2, 2) -> (B, S, H, E)."""
    pairs = x.float().reshape(*x.shape[:-1], -1, 2)
    table = table.view(1, x.shape[1], 1, -1, 2)
    real = pairs[..., 0] * table[..., 0] - pairs[..., 1] * table[..., 1]
    imaginary = pairs[..., 1] * table[..., 0] + pairs[..., 0] * table[..., 1]
    return torch.stack([real, imaginary], dim=-1).flatten(3).type_as(x)


class ReleasedLoop:
    """Draws code grids as released. Holds the caches of one batch size."""

    def __init__(self, model: ARModel, batch: int):
        """`batch` counts both halves of guidance."""
        self.model, backbone = model, model.backbone
        config = backbone.config
        length = -(-(backbone.num_condition + backbone.num_positions) // 8) * 8
        weight = model.head.output.weight
        shape = (batch, config.num_heads, length, config.head_dim)
        self.caches = [(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in backbone.layers]
        self.mask = torch.ones(length, length, dtype=torch.bool, device=weight.device).tril().repeat(batch, 1, 1)

    def _block(self, layer: Block, cache: tuple[Tensor, Tensor], x: Tensor, table: Tensor, where: Tensor) -> Tensor:
        attention = layer.attention
        heads = attention.num_heads
        q, k, v = attention.wqkv(layer.attention_norm(x)).chunk(3, dim=-1)
        q, k, v = (part.view(*x.shape[:2], heads, attention.head_dim) for part in (q, k, v))
        q, k, v = (part.transpose(1, 2) for part in (rotate(q, table), rotate(k, table), v))
        for stored, new in zip(cache, (k, v), strict=True):
            stored[:, :, where] = new
        keys, values = (stored.repeat_interleave(heads // attention.kv_heads, dim=1) for stored in cache)
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=self.mask[:, None, where])
        x = x + attention.wo(out.transpose(1, 2).contiguous().view(x.shape))
        return x + layer.feed_forward(layer.ffn_norm(x))

    def _logits(self, x: Tensor, where: Tensor) -> Tensor:
        backbone = self.model.backbone
        table = backbone.rope(x.device)[where]
        for layer, cache in zip(backbone.layers, self.caches, strict=True):
            x = self._block(layer, cache, x, table, where)
        return self.model.head.output(backbone.norm(x)).float()

    @torch.no_grad()
    def __call__(self, labels: Tensor, guidance: float, top_k: int, generator: torch.Generator) -> Tensor:
        """Labels (B,) -> tokens (B, T)."""
        backbone = self.model.backbone
        both = torch.cat([labels, backbone.cls_embedding.null(labels)])
        where = torch.arange(1, device=labels.device)
        logits = self._logits(backbone.cls_embedding(both), where)
        tokens, kept = [], []
        for _ in range(backbone.num_positions):
            scaled = filter_logits(guide(logits[:, -1], guidance), top_k, 1.0)
            probs = scaled.softmax(dim=-1)
            drawn = torch.multinomial(probs, 1, generator=generator)
            tokens.append(drawn.clone())
            kept.append(probs.clone())
            if len(tokens) == backbone.num_positions:
                break
            with sdpa_kernel(SDPBackend.MATH):
                logits = self._logits(backbone.tok_embeddings(torch.cat([drawn, drawn])), where + len(tokens))
        return torch.cat(tokens, dim=1)
