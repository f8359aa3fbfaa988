"""The micro-batches of a training: what each is computed from, as a function of the seed, the step and the place."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llamagen.backbones.dropout import dropout_keys
from llamagen.model import ARModel
from llamagen.training.config import TrainConfig
from llamagen.training.inputs import RunInputs
from llamagen.training.stream import CodeStream, caption_choices, dropped_conditions
from masc.runtime.streams import Purpose, image_keys, torch_seed


@dataclass(frozen=True)
class Batch:
    """Some images of a step."""

    arguments: list[Tensor | None]  # of `ARModel`: tokens, condition, mask of captions, images without condition
    keys: Tensor  # of the dropouts that are by image
    seed: int  # of torch's global generator, for the others

    def pinned(self) -> "Batch":
        """The same in memory that a GPU copies from while the host goes on."""
        arguments = [None if each is None else each.pin_memory() for each in self.arguments]
        return replace(self, arguments=arguments, keys=self.keys.pin_memory())

    def to(self, device: torch.device) -> "Batch":
        """The same on a device; the host does not wait for a batch that is pinned."""
        arguments = [None if each is None else each.to(device, non_blocking=True) for each in self.arguments]
        return replace(self, arguments=arguments, keys=self.keys.to(device, non_blocking=True))


def batches(
    config: TrainConfig, inputs: RunInputs, stream: CodeStream, model: ARModel, share: int, process: int, first: int
) -> Iterator[Batch]:
    """The micro-batches of `share` images of a process, from step `first` to the last, on the host."""
    for step in range(first, config.steps):
        keys = image_keys(config.seed, Purpose.DROPOUT, step, config.batch_size)
        for index in range(process * config.micro_batches, (process + 1) * config.micro_batches):
            part = slice(index * share, (index + 1) * share)
            which = config.seed, step, part, config.batch_size
            condition, mask = inputs.conditions["train"].batch(stream.images(step, part), caption_choices(*which))
            dropped = dropped_conditions(config.model.class_dropout, *which)
            arguments = [stream.tokens(step, part), condition, mask, dropped]
            seed = torch_seed(config.seed, Purpose.DROPOUT, step, index)
            yield Batch(arguments, dropout_keys(model, keys[part]), seed)
