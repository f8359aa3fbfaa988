"""Dropout whose mask is a function of the seed, the step, the image and the place.

torch draws masks for a whole batch from one generator, so that a mask depends on how images are shared by processes and
micro-batches. Here a mask is a hash of an image's key, the number of the dropout in the model, and the place of each
value in the image. Any number of processes and micro-batches, recomputed activations and another device give the same
masks. On a CPU it takes less time than torch's own dropout (docs/speed.md).

The hash is two rounds of multiply and shift on 64 bits, as in SplitMix64 (Steele et al. 2014); it yields four masks of
16 bits, so a rate is rounded to a multiple of 1 / 65,536.

Shapes: B images, W words of 64 bits, S dropouts of a model."""

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MULTIPLIERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)  # SplitMix64's, as signed numbers
STEP = 0x9E3779B97F4A7C15  # between two states of SplitMix64


class ImageDropout(nn.Module):
    """Dropout of values (B, ...), or of whole images, at a rate in [0, 1).

    In training it reads `keys`, which `set_dropout_keys` sets before every forward; without keys it draws from torch's
    generator."""

    def __init__(self, rate: float, whole: bool = False):
        """`whole` drops all values of an image together, as stochastic depth does."""
        super().__init__()
        self.rate, self.whole = rate, whole
        self.keys: Tensor | None = None  # (B,) int64

    def extra_repr(self) -> str:
        return f"rate={self.rate}, whole={self.whole}"

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...), with the kept values scaled by 1 / (1 - rate)."""
        if not self.training or self.rate == 0:
            return x
        shape = (len(x), *[1] * (x.ndim - 1)) if self.whole else x.shape
        if self.keys is None:
            return x * F.dropout(x.new_ones(shape), self.rate)
        kept = kept_values(self.keys, math.prod(shape[1:]), self.rate).view(shape)
        return x * kept * (1 / (1 - self.rate))  # the scale itself is not rounded to the type of x


@torch.no_grad()
def kept_values(keys: Tensor, count: int, rate: float) -> Tensor:
    """Which of an image's `count` values are kept: keys (B,) int64 -> (B, count) bool."""
    words = keys[:, None] ^ places(-(-count // 4), keys.device)
    words.mul_(MULTIPLIERS[0])
    words ^= words >> 29
    words.mul_(MULTIPLIERS[1])
    words ^= (words >> 32).bitwise_and_(0xFFFFFFFF)  # the lower half takes from the upper one
    return words.view(torch.int16)[:, :count] >= -(2**15) + round(rate * 2**16)


@torch.compiler.assume_constant_result
def places(count: int, device: torch.device) -> Tensor:
    """A number for each word of an image, the same for all images: (W,) int64."""
    return place_table(count, device)


@lru_cache(maxsize=32)
def place_table(count: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.from_numpy(_scattered(np.arange(count, dtype=np.uint64)).view(np.int64)).to(device)


def _scattered(states: np.ndarray) -> np.ndarray:
    """The outputs of SplitMix64 at these states, uint64."""
    one, two = (np.uint64(value % 2**64) for value in MULTIPLIERS)
    with np.errstate(over="ignore"):
        words = (states + np.uint64(1)) * np.uint64(STEP)
        words = (words ^ (words >> np.uint64(30))) * one
        words = (words ^ (words >> np.uint64(27))) * two
    return words ^ (words >> np.uint64(31))


def dropout_keys(model: nn.Module, keys: np.ndarray) -> Tensor:
    """The keys of each `ImageDropout` of a model for some images, on the host: (B,) uint64 -> (S, B) int64.

    The dropouts are numbered as `model.modules()` lists them, so that each draws masks of its own."""
    numbers = _scattered(np.arange(len(_dropouts(model)), dtype=np.uint64) + np.uint64(2**63))
    return torch.from_numpy(_scattered(keys ^ numbers[:, None]).view(np.int64))


def set_dropout_keys(model: nn.Module, table: Tensor) -> None:
    """Give every `ImageDropout` of a model the keys of the images of its next forward: (S, B), on its device."""
    for module, own in zip(_dropouts(model), table, strict=True):
        module.keys = own


def _dropouts(model: nn.Module) -> list[ImageDropout]:
    return [module for module in model.modules() if isinstance(module, ImageDropout) and module.rate]


def key_dropouts(model: nn.Module, keys: np.ndarray, device: torch.device) -> None:
    """`set_dropout_keys` of `dropout_keys`."""
    set_dropout_keys(model, dropout_keys(model, keys).to(device))
