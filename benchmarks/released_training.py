"""LlamaGen's training stated again: the baseline of `make bench-train`.

As FoundationVision/LlamaGen (ce98ec4), train_c2i.py, gpt.py and dataset/imagenet.py run it by default on one GPU, in
our own code: nothing compiled, all logits in float32 and torch's cross-entropy over them, the loss read by the host in
every step, labels dropped inside the model, one .npy file an image through a DataLoader with pinned memory, fused
AdamW, gradients clipped to 1, bf16 autocast, TF32. Parameters have the released names."""

import torch
import torch.nn.functional as F
from released_loop import rotate
from torch import Tensor, nn

from llamagen.backbones.config import ModelConfig
from llamagen.backbones.layers import rope_table


class Norm(nn.Module):
    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(torch.mean(wide * wide, dim=-1, keepdim=True) + self.eps)).type_as(x) * self.weight


class Attention(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads = config.num_heads
        self.wqkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)
        self.resid_dropout = nn.Dropout(config.residual_dropout)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        q, k, v = (part.view(*x.shape[:2], self.heads, -1) for part in self.wqkv(x).chunk(3, dim=-1))
        q, k, v = (part.transpose(1, 2) for part in (rotate(q, table), rotate(k, table), v))
        k, v = k.repeat_interleave(1, dim=1), v.repeat_interleave(1, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.resid_dropout(self.wo(out.transpose(1, 2).contiguous().view(x.shape)))


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.w2 = nn.Linear(config.ffn_dim, config.dim, bias=False)
        self.ffn_dropout = nn.Dropout(config.ffn_dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn_dropout(self.w2(F.silu(self.w1(x)) * self.w3(x)))


class Block(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention, self.feed_forward = Attention(config), FeedForward(config)
        self.attention_norm, self.ffn_norm = (Norm(config.dim, config.norm_eps) for _ in range(2))

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), table)
        return x + self.feed_forward(self.ffn_norm(x))


class ClassEmbedding(nn.Module):
    def __init__(self, num_classes: int, dim: int, dropout: float):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, dim)
        self.num_classes, self.dropout = num_classes, dropout

    def forward(self, labels: Tensor) -> Tensor:
        if self.training:
            is_dropped = torch.rand(len(labels), device=labels.device) < self.dropout
            labels = torch.where(is_dropped, self.num_classes, labels)
        return self.embedding_table(labels)[:, None]


class ReleasedModel(nn.Module):
    """Returns the loss, as the released class does."""

    def __init__(self, config: ModelConfig, num_tokens: int, num_classes: int, num_positions: int):
        super().__init__()
        self.cls_embedding = ClassEmbedding(num_classes, config.dim, config.class_dropout)
        self.tok_embeddings = nn.Embedding(num_tokens, config.dim)
        self.tok_dropout = nn.Dropout(config.token_dropout)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = Norm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, num_tokens, bias=False)
        grid = round(num_positions**0.5)
        self.table = rope_table(grid, config.head_dim, config.rope_base, 1, torch.device("cpu"))
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
        nn.init.zeros_(self.output.weight)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """(B, T), (B,) -> ()."""
        self.table = self.table.to(tokens.device)
        x = torch.cat([self.cls_embedding(labels), self.tok_embeddings(tokens[:, :-1])], dim=1)
        x = self.tok_dropout(x)
        for layer in self.layers:
            x = layer(x, self.table[: x.shape[1]])
        logits = self.output(self.norm(x)).float()
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens.reshape(-1))


def released_optimizer(model: nn.Module) -> torch.optim.AdamW:
    """As released: tensors of rank 2 and more decay."""
    decay = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    rest = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)


def released_step(
    model: ReleasedModel, optimizer: torch.optim.Optimizer, tokens: Tensor, labels: Tensor, is_bf16: bool
) -> float:
    """A step; tokens (B, 1, T), labels (B, 1) as the loader gives them."""
    device = next(model.parameters()).device
    tokens, labels = tokens.to(device, non_blocking=True), labels.to(device, non_blocking=True)
    with torch.autocast(device.type, torch.bfloat16, enabled=is_bf16):
        loss = model(tokens.reshape(len(tokens), -1), labels.reshape(-1))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()
