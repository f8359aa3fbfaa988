"""Image sources: what a tokenizer, the code extraction and the metrics read pictures from."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from masc.artifacts import InputError, hash_arrays


@dataclass(frozen=True)
class ImageSource:
    """M labelled pictures of one split.

    A *group* holds variants of one picture (an emoji in six skin tones); training draws the group
    first and then the variant, so that a picture with many variants weighs as much as any other.
    Where there are no variants every picture is its own group."""

    name: str
    split: str
    pixels: np.ndarray  # (M, H, W, 3) uint8, or anything indexable that yields such rows
    labels: np.ndarray  # (M,) int64 into class_names
    groups: np.ndarray  # (M,) int64, 0..G-1
    keys: tuple[str, ...]  # a stable name for each picture, for messages and manifests
    captions: tuple[str, ...]
    class_names: tuple[str, ...]
    attribution: str

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def sha256(self) -> str:
        """Of the pictures themselves: what is made from them is remade when they change."""
        return hash_arrays({"pixels": np.asarray(self.pixels)})


def load_images(name: str, split: str, resolution: int) -> ImageSource:
    """The split of the image source called `name`, at `resolution` pixels a side."""
    if name == "twemoji":
        from vq.twemoji import Twemoji

        return Twemoji.load(split, resolution)
    raise InputError(
        f"no reader for the image source {name!r} yet: expected 'twemoji'. "
        "ImageNet, COCO and folders of images are not readable in this version."
    )


def to_tensor(pixels: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [-1, 1]."""
    images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float()
    return images / 127.5 - 1.0


def to_uint8(images: Tensor) -> np.ndarray:
    """(B, 3, H, W) float in [-1, 1] -> (B, H, W, 3) uint8, truncated as LlamaGen does.

    FoundationVision/LlamaGen, autoregressive/sample/sample_c2i_ddp.py: clamp(127.5 x + 128, 0, 255)."""
    images = (127.5 * images.float() + 128.0).clamp(0, 255)
    return images.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()
