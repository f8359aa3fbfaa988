"""Image sources: what a tokenizer, the code extraction and the metrics read pictures from."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from masc.runtime.artifacts import hash_arrays


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
