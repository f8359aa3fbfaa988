"""AdamW in LlamaGen's grouping, and the learning-rate schedule of MASC's recipe."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from llamagen.model import ARModel


@dataclass(kw_only=True)
class OptimConfig:
    """AdamW with cosine decay (MASC, App. A; LlamaGen's own schedule is constant: final_share 1)."""

    learning_rate: float = 1e-4  # peak
    final_share: float = 0.1  # of the peak, reached at the last step
    warmup_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05  # on matrices and tables, embeddings and head included
    max_grad_norm: float = 1.0
    table_scale: float = 1.0  # learning rate of token embedding and head, relative to the rest

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or not 0 <= self.final_share <= 1 or self.table_scale <= 0:
            raise ValueError(
                "optim needs learning_rate > 0, 0 <= final_share <= 1 and table_scale > 0, found "
                f"{self.learning_rate}, {self.final_share}, {self.table_scale}"
            )


def build_optimizer(model: ARModel, config: OptimConfig, fused: bool) -> torch.optim.AdamW:
    """AdamW over the model: tensors of rank 2 and more decay, norms do not (LlamaGen, train_c2i.py).

    Frozen parameters are left out. Each group carries `scale`, its learning rate relative to the schedule."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    tables = {id(table) for table in model.tables()}
    for parameter in filter(lambda each: each.requires_grad, model.parameters()):
        decay = config.weight_decay if parameter.ndim >= 2 else 0.0
        scale = config.table_scale if id(parameter) in tables else 1.0
        groups.setdefault((decay, scale), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": params, "weight_decay": decay, "scale": scale} for (decay, scale), params in groups.items()],
        lr=config.learning_rate,
        betas=tuple(config.betas),
        fused=fused,
    )


def learning_rate(config: OptimConfig, step: int, num_steps: int) -> float:
    """Linear warm-up, then half a cosine from the peak to `final_share` of it."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    share = config.final_share + (1 - config.final_share) * 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * share


def may_lengthen(config: OptimConfig, taken: int) -> bool:
    """Whether the learning rates of the first `taken` steps are the same for any larger number of steps."""
    return config.final_share == 1 or taken <= config.warmup_steps


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
