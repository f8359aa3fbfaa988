"""Averaged weights of a run in training (EMA).

average <- decay * average + (1 - decay) * parameter, as in FoundationVision/LlamaGen (ce98ec4), utils/ema.py,
by torch's `AveragedModel`."""

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def start_average(model: nn.Module, decay: float) -> AveragedModel:
    """The exponential moving average of a model's parameters, equal to them at the start; buffers are not averaged.

    `decay` lies in (0, 1); LlamaGen's is 0.9999. `update_parameters(model)` takes the parameters of one more step."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    average.n_averaged += 1  # else the first update would replace the start instead of averaging with it
    return average


def averaged_parameters(average: AveragedModel) -> dict[str, Tensor]:
    """The averaged parameters under the model's own names."""
    return {name: value.detach() for name, value in average.module.named_parameters()}
