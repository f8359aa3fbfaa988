"""Image sources: what a tokenizer, the code extraction and the metrics read pictures from."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
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
    captions: tuple[Any, ...]  # of each picture, or none at all
    class_names: tuple[str, ...]
    attribution: str
    missing: tuple[str, ...] = ()  # pictures that belong to the source and were not found: a line for each

    def __len__(self) -> int:
        return len(self.labels)

    def picture(self, index: int) -> Image.Image:
        """One picture as it is stored, before any crop."""
        return Image.fromarray(self.pixels[index])

    def identity(self, rows: slice) -> str:
        """SHA-256 of some of the pictures: what is made from them is remade when they change."""
        return hash_arrays({"pixels": np.asarray(self.pixels[rows])})

    @cached_property
    def sha256(self) -> str:
        """Of all the pictures."""
        return self.identity(slice(None))


def load_images(name: str, split: str, resolution: int, path: str | None = None) -> ImageSource:
    """The split (`train` or `val`) of the image source called `name`, at `resolution` pixels a side.

    `path` is the folder that holds it; only `twemoji`, which comes with a package, needs none."""
    if name == "twemoji":
        from vq.readers.twemoji import Twemoji

        return Twemoji.load(split, resolution)
    if path is None:
        raise InputError(f'the images of {name} have no place; name their folder with ARGS="data.path=FOLDER"')
    if not Path(path).is_dir():
        raise InputError(f'no folder {path} with the images of {name}; name it with ARGS="data.path=FOLDER"')
    if split not in ("train", "val"):
        raise ValueError(f"{name} has the splits train and val, not {split!r}")
    from vq.readers import READERS

    if name not in READERS:
        raise InputError(f"no reader for the image source {name!r}; there are twemoji, {', '.join(READERS)}")
    return READERS[name](Path(path), split, resolution)


def to_tensor(pixels: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [-1, 1]."""
    images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float()
    return images / 127.5 - 1.0


def to_uint8(images: Tensor) -> np.ndarray:
    """(B, 3, H, W) float in [-1, 1] -> (B, H, W, 3) uint8, truncated as LlamaGen does.

    FoundationVision/LlamaGen, autoregressive/sample/sample_c2i_ddp.py: clamp(127.5 x + 128, 0, 255)."""
    images = (127.5 * images.float() + 128.0).clamp(0, 255)
    return images.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()
