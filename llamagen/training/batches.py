"""The micro-batches of a training: what each is computed from, as a function of the seed, the step and the place."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from llamagen.backbones.dropout import dropout_keys
from llamagen.model import ARModel
from llamagen.training.config import TrainConfig
from llamagen.training.inputs import RunInputs
from llamagen.training.noise import ContextNoise
from llamagen.training.stream import CodeStream, caption_choices, dropped_conditions
from masc.losses.base import Given
from masc.runtime.streams import Purpose, image_keys, torch_seed


@dataclass(frozen=True)
class Batch:
    """Some images of a step."""

    arguments: list[
        Any
    ]  # of `ARModel`: tokens, condition, mask of captions, images without condition, what losses read
    keys: Tensor  # of the dropouts that are by image
    seed: int  # of torch's global generator, for the others

    def pinned(self) -> "Batch":
        """The same in memory that a GPU copies from while the host goes on."""
        return replace(self, arguments=_each(Tensor.pin_memory, self.arguments), keys=self.keys.pin_memory())

    def to(self, device: torch.device) -> "Batch":
        """The same on a device; the host does not wait for a batch that is pinned."""
        moved = partial(Tensor.to, device=device, non_blocking=True)
        return replace(self, arguments=_each(moved, self.arguments), keys=moved(self.keys))


def _each(function: Callable[[Tensor], Tensor], found: Any) -> Any:
    """A function of all tensors in lists and dictionaries; None stays."""
    if isinstance(found, list):
        return [_each(function, part) for part in found]
    if isinstance(found, dict):
        return {name: _each(function, part) for name, part in found.items()}
    return None if found is None else function(found)


def batches(
    config: TrainConfig, inputs: RunInputs, stream: CodeStream, model: ARModel, share: int, process: int, first: int
) -> Iterator[Batch]:
    """The micro-batches of `share` images of a process, from step `first` to the last, on the host."""
    noise = ContextNoise(config.loss, inputs, config.seed, config.batch_size) if config.loss.noise else None
    for step in range(first, config.steps):
        keys = image_keys(config.seed, Purpose.DROPOUT, step, config.batch_size)
        for index in range(process * config.micro_batches, (process + 1) * config.micro_batches):
            part = slice(index * share, (index + 1) * share)
            which = config.seed, step, part, config.batch_size
            condition, mask = inputs.conditions["train"].batch(stream.images(step, part), caption_choices(*which))
            dropped = dropped_conditions(config.model.class_dropout, *which)
            tokens = stream.tokens(step, part)
            given = None if model.loss is None else _given(config, stream, noise, tokens, step, part)
            arguments = [tokens, condition, mask, dropped, given]
            seed = torch_seed(config.seed, Purpose.DROPOUT, step, index)
            yield Batch(arguments, dropout_keys(model, keys[part]), seed)


def _given(
    config: TrainConfig, stream: CodeStream, noise: ContextNoise | None, tokens: Tensor, step: int, part: slice
) -> Given:
    """What the loss of a run reads beside the tokens of the images in `part` of a step."""
    progress = step / config.steps
    given = {"progress": torch.tensor(progress), "context": tokens}
    near = stream.near(step, part, config.loss.near) if config.loss.near else None
    if near is not None:
        given |= {"near": torch.from_numpy(near[0]), "near_distances": torch.from_numpy(near[1])}
    if noise is not None:
        given["context"] = torch.from_numpy(noise.draw(tokens.numpy(), step, part, progress, near))
    return given
