"""Images on disk as an image source: opened by number, cropped when they are read."""

import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from vq.crops import center_crop
from vq.images import ImageSource
from vq.readers.members import Members

# Errors that Pillow, zlib and zipfile raise for a broken file.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    KeyError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    Image.DecompressionBombError,
)


def open_image(members: Members, index: int) -> Image.Image:
    """An image as RGB, fully decoded; raises one of UNREADABLE if it is broken."""
    data = members.read(index)
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except UnidentifiedImageError as error:  # its message holds an address in memory, which differs each time
        raise OSError(f"not an image in a format that Pillow knows, {len(data)} bytes") from error


@dataclass(frozen=True)
class CroppedPixels:
    """Crops of stored images, computed at indexing, in the manner of an array (M, S, S, 3) uint8."""

    members: Members
    resolution: int
    crop: Callable[[Image.Image, int], np.ndarray] = center_crop

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (len(self.members), self.resolution, self.resolution, 3)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, rows: int | slice | np.ndarray) -> np.ndarray:
        if isinstance(rows, int | np.integer):
            return self.crop(open_image(self.members, range(len(self))[rows]), self.resolution)
        return np.stack([self[row] for row in np.arange(len(self))[rows]])

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))


@dataclass(frozen=True, kw_only=True)
class StoredImages(ImageSource):
    """Images on disk. Their names, sizes and labels identify them, because hashing all bytes takes too long."""

    members: Members

    @classmethod
    def of(
        cls,
        name: str,
        split: str,
        resolution: int,
        members: Members,
        labels: np.ndarray,
        class_names: tuple[str, ...],
        captions: tuple[Any, ...] = (),
        missing: tuple[str, ...] = (),
    ) -> "StoredImages":
        """The images `members` (M) with labels (M,). Each is its own group; `missing` names images without a file."""
        return cls(
            name=name,
            split=split,
            pixels=CroppedPixels(members, resolution),
            labels=labels.astype(np.int64),
            groups=np.arange(len(members)),
            keys=members.names,
            captions=captions,
            class_names=class_names,
            attribution="",
            members=members,
            missing=missing,
        )

    def image(self, index: int) -> Image.Image:
        return open_image(self.members, index)

    def identity(self, rows: slice) -> str:
        digest = hashlib.sha256()
        for key, size, label in zip(self.keys[rows], self.members.sizes[rows], self.labels[rows], strict=True):
            digest.update(f"{key} {size} {label}\n".encode())
        return digest.hexdigest()
