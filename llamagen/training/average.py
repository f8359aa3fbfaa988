"""Averaged weights of a run in training."""

import torch
from torch import Tensor, nn


class Average:
    """Exponential moving average of a model's parameters (FoundationVision/LlamaGen ce98ec4, utils/ema.py)."""

    def __init__(self, model: nn.Module, decay: float):
        """Starts as a copy of the parameters. `decay` in (0, 1); LlamaGen's is 0.9999."""
        self.decay = decay
        self.state: dict[str, Tensor] = {name: value.detach().clone() for name, value in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the present parameters: average <- decay * average + (1 - decay) * parameter."""
        present = [value.detach() for _, value in model.named_parameters()]
        torch._foreach_lerp_(list(self.state.values()), present, 1 - self.decay)
