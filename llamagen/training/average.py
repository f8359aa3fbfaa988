"""Averaged weights of a run in training (EMA).

average <- decay * average + (1 - decay) * parameter, as in FoundationVision/LlamaGen (ce98ec4), utils/ema.py,
by torch's `get_ema_multi_avg_fn`. The average is kept in float32, in shards where the parameters are sharded."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from llamagen.training.parallel import copy_whole


class Average:
    """The exponential moving average of a model's parameters; buffers are not averaged."""

    def __init__(self, model: nn.Module, decay: float):
        """Begin with the parameters of the model. `decay` lies in (0, 1); LlamaGen's is 0.9999."""
        self.parameters = {name: value.detach().float().clone() for name, value in model.named_parameters()}
        self._take = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the parameters of one more step."""
        averaged = list(self.parameters.values())
        now = [value.detach().to(old.dtype) for old, value in zip(averaged, model.parameters(), strict=True)]
        self._take(averaged, now, None)

    def load(self, parameters: dict[str, Tensor]) -> None:
        """Continue with these averages, whole tensors under the same names."""
        for name, own in self.parameters.items():
            copy_whole(own, parameters[name])
