"""Held-out likelihood: nats per fine token, comparable between heads."""

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from llamagen.conditions.images import Conditions
from llamagen.training.inputs import RunInputs
from masc.runtime.codes import Codes


def on_device(accelerator: Accelerator, *tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.to(accelerator.device) for tensor in tensors]


@torch.no_grad()
def image_nats(
    accelerator: Accelerator, model: torch.nn.Module, codes: Codes, conditions: Conditions, batch_size: int = 64
) -> Tensor:
    """Negative log-likelihood of each image in nats, by decision: (M, L), first view, first caption, dropout off.

    The sum over L divided by T is nats per token over the fine tokens, comparable between heads."""
    was_training = model.training
    model.eval()
    mine = range(accelerator.process_index * batch_size, codes.num_images, accelerator.num_processes * batch_size)
    total = None
    for start in mine:
        rows = np.arange(start, min(start + batch_size, codes.num_images))
        tokens = torch.from_numpy(codes.tokens[rows, 0].astype(np.int64)).to(accelerator.device)
        condition, mask = on_device(accelerator, *conditions.batch(rows))
        with accelerator.autocast():
            nats = -accelerator.unwrap_model(model)(tokens, condition, mask).sum(1)
        if total is None:
            total = nats.new_zeros(codes.num_images, nats.shape[1])
        total[rows] = nats
    if total is None:
        decisions = accelerator.unwrap_model(model).head.num_decisions
        total = torch.zeros(codes.num_images, decisions, device=accelerator.device)
    model.train(was_training)
    return accelerator.reduce(total, "sum")


def evaluate(accelerator: Accelerator, model: torch.nn.Module, inputs: RunInputs) -> dict[str, float]:
    """Held-out nats per fine token, and the share of each level."""
    nats = image_nats(accelerator, model, inputs.held_out, inputs.conditions["val"])
    levels = (nats / inputs.held_out.num_positions).double().mean(0).tolist()
    by_level = {f"val/level_{index}_nats": value for index, value in enumerate(levels)} if len(levels) > 1 else {}
    return {"val/nats_per_token": sum(levels), **by_level}
