"""Held-out likelihood: nats per fine token, comparable between heads."""

from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from llamagen.training.inputs import RunInputs
from masc.heads.base import Head
from masc.runtime.beats import rest


class Pictures(Protocol):
    """Images by their codes; `Codes` are some."""

    @property
    def num_images(self) -> int: ...

    def read(self, images: np.ndarray, views: np.ndarray | int) -> np.ndarray:
        """Tokens of images, each in its view: (B,) -> (B, T) int64."""


class Shown(Protocol):
    """Conditions of images; `Conditions` are some."""

    def batch(self, images: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """The conditions of images (B,), and the mask of captions (B, P)."""


class Watch(Protocol):
    """Looks at the hidden states of images whose likelihood is measured, so that they are computed once."""

    def __call__(self, head: Head, rows: np.ndarray, hidden: Tensor, tokens: Tensor) -> None:
        """The images in `rows` (B,) of the codes: (B, T, D), (B, T)."""


def on_device(accelerator: Accelerator, *tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.to(accelerator.device) for tensor in tensors]


@torch.no_grad()
def image_nats(
    accelerator: Accelerator,
    model: torch.nn.Module,
    codes: Pictures,
    conditions: Shown,
    batch_size: int = 64,
    watch: Watch | None = None,
) -> Tensor:
    """Negative log-likelihood of each image in nats, by decision: (M, L), first view, first caption, dropout off.

    The sum over L divided by T is nats per token over the fine tokens, comparable between heads. The processes share
    the images, and `watch` sees those of its process."""
    was_training = model.training
    model.eval()
    own = accelerator.unwrap_model(model)
    mine = range(accelerator.process_index * batch_size, codes.num_images, accelerator.num_processes * batch_size)
    total = torch.zeros(codes.num_images, own.head.num_decisions, device=accelerator.device)
    for start in mine:
        rows = np.arange(start, min(start + batch_size, codes.num_images))
        tokens = torch.from_numpy(codes.read(rows, 0)).to(accelerator.device)
        condition, mask = on_device(accelerator, *conditions.batch(rows))
        with accelerator.autocast():
            hidden = own.backbone.hidden(tokens, condition, mask)
            total[rows] = -own.head.log_probs(hidden, tokens).sum(1)
            if watch is not None:
                watch(own.head, rows, hidden, tokens)
        rest()  # a last batch of another size may compile, and the caller may take long
    model.train(was_training)
    return accelerator.reduce(total, "sum")


def evaluate(
    accelerator: Accelerator, model: torch.nn.Module, inputs: RunInputs, watch: Watch | None = None
) -> dict[str, float]:
    """Held-out nats per fine token, and the share of each level."""
    nats = image_nats(accelerator, model, inputs.held_out, inputs.conditions["val"], watch=watch)
    levels = (nats / inputs.held_out.num_positions).double().mean(0).tolist()
    by_level = {f"val/level_{index}_nats": value for index, value in enumerate(levels)} if len(levels) > 1 else {}
    return {"val/nats_per_token": sum(levels), **by_level}
