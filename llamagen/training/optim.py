"""AdamW in LlamaGen's grouping, Muon for the matrices of blocks, and the learning-rate schedule of MASC's recipe."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llamagen.model import ARModel

KINDS = ("adamw", "muon")


@dataclass(kw_only=True)
class OptimConfig:
    """AdamW with cosine decay (MASC, App. A; LlamaGen's own schedule is constant: final_share 1)."""

    kind: str = "adamw"  # or `muon`: Muon for the matrices of the backbone's blocks, AdamW for the rest
    learning_rate: float = 1e-4  # peak
    final_share: float = 0.1  # of the peak, reached at the last step
    warmup_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.95)  # of AdamW
    momentum: float = 0.95  # of Muon
    weight_decay: float = 0.05  # on matrices and tables, embeddings and head included
    max_grad_norm: float = 1.0
    table_scale: float = 1.0  # learning rate of token embedding and head, relative to the rest
    skip_bad_steps: int = 0  # that may be left out of a run: their gradient is not finite, or above norm_ceiling
    norm_ceiling: float | None = None  # of the gradient before clipping

    def __post_init__(self) -> None:
        if self.kind not in KINDS or not 0 <= self.momentum < 1:
            raise ValueError(
                f"optim needs kind {' or '.join(KINDS)} and 0 <= momentum < 1, found {self.kind!r}, {self.momentum}"
            )
        if self.skip_bad_steps < 0 or (self.norm_ceiling is not None and not self.norm_ceiling > 0):
            raise ValueError(
                "optim needs skip_bad_steps >= 0 and norm_ceiling > 0 or none, found "
                f"{self.skip_bad_steps}, {self.norm_ceiling}"
            )
        if self.learning_rate <= 0 or not 0 <= self.final_share <= 1 or self.table_scale <= 0:
            raise ValueError(
                "optim needs learning_rate > 0, 0 <= final_share <= 1 and table_scale > 0, found "
                f"{self.learning_rate}, {self.final_share}, {self.table_scale}"
            )


class SkippingMuon(torch.optim.Muon):
    """Muon that leaves out a step whose `found_inf` (a 0-d float tensor) is 1, as fused AdamW does; unset: no step.

    The host does not read `found_inf`, so a GPU does not wait. Each matrix and its momentum are copied before their
    update and chosen after it: the memory of two copies of the largest matrix, and four passes over a matrix beside the
    fifteen matrix products of its Newton-Schulz iteration."""

    found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        if self.found_inf is None:
            super().step()
            return
        groups, is_bad = self.param_groups, self.found_inf.bool()
        try:
            for group in groups:
                for parameter in group["params"]:
                    state = self.state[parameter]
                    if "momentum_buffer" not in state:
                        state["momentum_buffer"] = torch.zeros_like(parameter)
                    before = [(each, each.clone()) for each in (parameter, state["momentum_buffer"])]
                    self.param_groups = [group | {"params": [parameter]}]
                    super().step()
                    for each, kept in before:
                        each.copy_(torch.where(is_bad, kept, each))
        finally:
            self.param_groups = groups


def build_optimizers(model: ARModel, config: OptimConfig, fused: bool) -> list[torch.optim.Optimizer]:
    """AdamW over the model, or Muon and AdamW over parts of it; each parameter that is trained has one of them.

    Tensors of rank 2 and more decay, norms do not (LlamaGen, train_c2i.py). Muon takes the matrices of the backbone's
    blocks, queries, keys and values as one matrix, and scales its update so that AdamW's learning rate and decay suit
    it (Liu et al. 2025, "Muon is scalable for LLM training", Sec. 2.2). Frozen parameters are left out. Each group
    carries `scale`, its learning rate relative to the schedule."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    matrices: list[nn.Parameter] = []
    tables = {id(table) for table in model.tables()}
    in_blocks = {id(each) for block in model.backbone.blocks() for each in block.parameters() if each.ndim == 2}
    for parameter in filter(lambda each: each.requires_grad, model.parameters()):
        if config.kind == "muon" and id(parameter) in in_blocks - tables:
            matrices.append(parameter)
            continue
        decay = config.weight_decay if parameter.ndim >= 2 else 0.0
        scale = config.table_scale if id(parameter) in tables else 1.0
        groups.setdefault((decay, scale), []).append(parameter)
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(
            SkippingMuon(
                [{"params": matrices, "scale": 1.0}],
                lr=config.learning_rate,
                weight_decay=config.weight_decay,
                momentum=config.momentum,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    if groups:
        optimizers.append(
            torch.optim.AdamW(
                [
                    {"params": params, "weight_decay": decay, "scale": scale}
                    for (decay, scale), params in groups.items()
                ],
                lr=config.learning_rate,
                betas=tuple(config.betas),
                fused=fused,
            )
        )
    return optimizers


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
