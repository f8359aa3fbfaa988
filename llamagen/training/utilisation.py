"""Model FLOPs utilisation: the share of a GPU's peak that the matrix products of a training take."""

from collections.abc import Callable

import torch

from llamagen.model import ARModel
from llamagen.training.footprint import is_measurable, measure_evaluation, with_flat_head
from llamagen.training.plan import GPUS

FEW = 8  # images of the measured pass


def gpu_named(name: str) -> str | None:
    """The GPU of `plan.GPUS` with a name that CUDA gives, such as `NVIDIA H100 80GB HBM3`; None if it is another."""
    words = name.lower().replace(" ", "")
    fitting = [key for key in GPUS if all(part in words for part in key.split("-"))]
    return max(fitting, key=len, default=None)


def full_speed(build: Callable[[], ARModel], device: torch.device, precision: str) -> float | None:
    """Images a second that a GPU would train at its peak, which the MFU is a share of; None for an unknown device.

    A step takes three forward passes; TF32, which float32 is computed in, has half the peak of bf16. `build` makes the
    model; a flat head of as many weights stands in for one whose arithmetic depends on the tokens."""
    gpu = gpu_named(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if gpu is None:
        return None
    peak = 1e12 * GPUS[gpu][0] * (1 if precision == "bf16" else 0.5)
    return peak / (3 * image_flops(build, precision))


def image_flops(build: Callable[[], ARModel], precision: str) -> float:
    """FLOPs of the forward pass of an image."""
    measured = build if is_measurable(build, FEW) else lambda: with_flat_head(build)
    return measure_evaluation(measured, FEW, precision)[1] / FEW
