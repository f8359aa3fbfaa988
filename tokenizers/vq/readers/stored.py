"""Images on disk as an image source: opened by number, cropped when they are read."""

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from masc.runtime.errors import InputError
from masc.runtime.reading import reason
from vq.crops import center_crop
from vq.images import ImageSource
from vq.readers.members import Members

# The formats that are decoded, whatever the suffix says. Pillow knows more, and hands some to other programs: a file in
# Encapsulated PostScript runs Ghostscript.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "DIB", "TIFF", "WEBP", "GIF", "AVIF", "JPEG2000")


class UnreadableImage(InputError):
    """An image that cannot be read, decoded or cropped."""

    def __init__(self, name: str, cause: str):
        super().__init__(f"the image {name} cannot be read ({cause}); repair it, or remove it")
        self.name, self.cause = name, cause

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle: processes that decode images send errors to the main process."""
        return UnreadableImage, (self.name, self.cause)


@contextlib.contextmanager
def decoding(name: str) -> Iterator[None]:
    """Raise UnreadableImage for any error inside: Pillow, its plugins and the archives raise errors of many types for
    damaged bytes, and an image can be larger than the memory."""
    try:
        yield
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:  # its message holds an address in memory, which differs each time
        raise UnreadableImage(name, f"not an image in one of the formats {', '.join(FORMATS)}") from error
    except Exception as error:
        raise UnreadableImage(name, f"{type(error).__name__}: {reason(error)}") from error


def parse_image(data: bytes) -> Image.Image:
    """The image in the bytes of a file, not decoded yet; an error of any type if it is in none of FORMATS."""
    return Image.open(io.BytesIO(data), formats=FORMATS)


def open_image(members: Members, index: int) -> Image.Image:
    """An image as RGB, fully decoded; UnreadableImage if it is broken.

    As in LlamaGen, transparency and the rotation in EXIF are ignored, and of several frames the first is taken.
    Differs: an image of more than 8 bits a channel that Pillow would clip to white is unreadable."""
    with decoding(members.names[index]), parse_image(members.read(index)) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"more than 8 bits a channel (mode {image.mode})")
        return image.convert("RGB")


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
            row = range(len(self))[rows]
            with decoding(self.members.names[row]):
                return self.crop(open_image(self.members, row), self.resolution)
        return np.stack([self[row] for row in np.arange(len(self))[rows]])

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))


@dataclass(frozen=True, kw_only=True)
class StoredImages(ImageSource):
    """Images on disk. What the file system knows identifies them, because hashing all bytes takes too long."""

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
        """SHA-256 of the names, sizes, labels and states of the images `rows`.

        The state of a file is the time of its last change; of a file in a zip, its CRC-32; of a file in a tar, the size
        and time of the tar. So images that are replaced by others of the same size are other images, and so are copies
        whose times were not kept: copy with `cp -a`, `rsync -t` or `tar -p`."""
        digest = hashlib.sha256()
        for row in range(len(self))[rows]:
            digest.update(f"{self._line(row)} {self.members.state(row)}\n".encode())
        return digest.hexdigest()

    @cached_property
    def earlier_sha256(self) -> str:
        """The identity in earlier versions, which knew no states."""
        digest = hashlib.sha256()
        for row in range(len(self)):
            digest.update(f"{self._line(row)}\n".encode())
        return digest.hexdigest()

    def _line(self, row: int) -> str:
        return f"{self.keys[row]} {self.members.sizes[row]} {self.labels[row]}"
