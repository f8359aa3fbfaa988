"""Image sources, from which tokenizers, the extraction of codes and the metrics read images."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from masc.runtime.artifacts import hash_arrays


@dataclass(frozen=True)
class ImageSource:
    """M labelled images of one split.

    A *group* holds variants of one image (an emoji in six skin tones). Training draws a group and then one of its
    variants, so an image with many variants has the same weight as any other. Without variants, every image is its own
    group."""

    name: str
    split: str
    pixels: np.ndarray  # (M, H, W, 3) uint8, or an object that is indexed like it
    labels: np.ndarray  # (M,) int64 into class_names
    groups: np.ndarray  # (M,) int64, 0..G-1
    keys: tuple[str, ...]  # a stable name for each image, for messages and manifests
    captions: tuple[Any, ...]  # one for each image, or empty
    class_names: tuple[str, ...]
    attribution: str
    missing: tuple[str, ...] = ()  # a line for each image of the source that has no file

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """The stored image, before any crop."""
        return Image.fromarray(self.pixels[index])

    def identity(self, rows: slice) -> str:
        """SHA-256 of the images `rows`. Artefacts made from them are made again if it changes."""
        return hash_arrays({"pixels": np.asarray(self.pixels[rows])})

    @property
    def earlier_sha256(self) -> str | None:
        """SHA-256 by which earlier versions identified all images; None if it is the same."""
        return None

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of all images."""
        return self.identity(slice(None))
