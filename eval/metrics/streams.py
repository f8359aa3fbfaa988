"""Image sets that are read batch by batch: folders, zips, WebDataset shards, ADM's .npz.

All images of a set must have one size and be 8-bit RGB; otherwise an error is raised, because a silent resize or
rounding changes FID."""

import contextlib
import hashlib
import io
import logging
import math
import os
import struct
import threading
import zipfile
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np

from masc.runtime.errors import InputError
from masc.runtime.reading import open_file, reason
from vq.images import ImageSource
from vq.readers.folders import open_images
from vq.readers.members import Members, check_size, file_state
from vq.readers.stored import decoding, parse_image

logger = logging.getLogger(__name__)
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
READ_AHEAD = 4  # batches
HASHED = 1000  # files whose bytes enter the hash


class Images(ABC):
    """M images of one size."""

    name: str
    file_type: str  # png, jpeg, npz, ...
    is_sequential = False  # whether reading backwards starts again from the first image

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, start: int, stop: int) -> np.ndarray:
        """Images `start` to `stop`: (B, H, W, 3) uint8."""

    @property
    @abstractmethod
    def sha256(self) -> str:
        """Hash that identifies the images. Of files it covers all names and sizes, and the bytes of 1,000 files."""

    @property
    def state(self) -> str:
        """What changes when any of the files changes, on this machine; empty for images that lie in no files."""
        return ""


class NpzImages(Images):
    """Images of an .npz in ADM's layout, `arr_0` (M, H, W, 3) uint8: read in place, or in order if compressed."""

    file_type = "npz"

    def __init__(self, path: Path):
        self.path, self.name = Path(path), str(path)
        try:
            self._open()
        except InputError:
            raise
        except Exception as error:  # zipfile and NumPy raise errors of many types for damaged bytes
            raise InputError(
                f"{path} is no .npz with an array arr_0 of images, or is truncated ({reason(error, path)}); write it "
                "or copy it again"
            ) from error

    def _open(self) -> None:
        self._lock = threading.Lock()
        with open_file(self.path) as (file, _):
            self._state = file_state(os.fstat(file.fileno()))
            with zipfile.ZipFile(file) as archive:
                info = archive.getinfo("arr_0.npy")
                with archive.open(info) as member:
                    self.shape, start = _read_header(member, self.name)
        self._crc = info.CRC
        self._image_bytes = check_size(math.prod(self.shape[1:]))
        expected = start + self.shape[0] * self._image_bytes
        if info.file_size != expected:
            raise ValueError(f"arr_0 has {info.file_size} bytes, its header says {expected}")
        self.is_sequential = info.compress_type != zipfile.ZIP_STORED
        self._header_bytes = start
        with self._reopened() as file:
            file.seek(info.header_offset)
            name_bytes, extra_bytes = struct.unpack("<26xHH", file.read(30))
        self._offset = info.header_offset + 30 + name_bytes + extra_bytes + start
        self._inflated: tuple[int, zipfile.ZipExtFile] | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, start: int, stop: int) -> np.ndarray:
        stop = min(stop, len(self))
        wanted = (stop - start) * self._image_bytes
        data = self._inflate(start, wanted) if self.is_sequential else self._read_at(start, wanted)
        if len(data) != wanted:
            raise InputError(f"{self.path} ends before image {stop - 1}; copy it again")
        return np.frombuffer(data, np.uint8).reshape(-1, *self.shape[1:])

    @contextlib.contextmanager
    def _reopened(self) -> Iterator[BinaryIO]:
        """The file; InputError if it changed, because the rest would be of another set."""
        with open_file(self.path) as (file, _):
            if file_state(os.fstat(file.fileno())) != self._state:
                raise InputError(f"{self.path} changed while it was read; measure it again when nothing writes there")
            yield file

    def _read_at(self, start: int, size: int) -> bytes:
        with self._reopened() as file:
            file.seek(self._offset + start * self._image_bytes)
            return file.read(size)

    def _inflate(self, start: int, size: int) -> bytes:
        with self._lock, self._reopened():
            try:
                if self._inflated is None or self._inflated[0] > start:
                    member = zipfile.ZipFile(self.path).open("arr_0.npy")  # noqa: SIM115 (the next call reads on)
                    member.read(self._header_bytes)
                    self._inflated = (0, member)
                position, member = self._inflated
                while position < start:  # images of other processes
                    member.read(self._image_bytes)
                    position += 1
                data = member.read(size)
            except Exception as error:  # zipfile raises errors of many types for damaged bytes
                self._inflated = None
                raise InputError(f"{self.path} is damaged ({reason(error)}); copy it again") from error
            self._inflated = (start + size // self._image_bytes, member)
            return data

    @property
    def sha256(self) -> str:
        return hashlib.sha256(f"{self.shape} {self._crc}".encode()).hexdigest()

    @property
    def state(self) -> str:
        return self._state


def _read_header(member: io.IOBase, name: str) -> tuple[tuple[int, int, int, int], int]:
    """Shape of arr_0, and the offset of its data."""
    version = np.lib.format.read_magic(member)
    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, fortran_order, dtype = reader(member)
    if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or fortran_order or not all(shape):
        order = " in Fortran order (np.ascontiguousarray changes it)" if fortran_order else ""
        raise InputError(f"expected arr_0 of images (M, H, W, 3) uint8 in {name}, found {dtype} {shape}{order}")
    return shape, member.tell()


class FileImages(Images):
    """Image files of a folder, a zip or tar files, in the order of their names."""

    def __init__(self, members: Members, name: str):
        self.members, self.name = members, name
        suffixes = {Path(member).suffix.lower().removeprefix(".").replace("jpg", "jpeg") for member in members.names}
        self.file_type = ", ".join(sorted(suffixes))
        self._first: tuple[tuple[int, ...], str] | None = None
        self.num_grey = 0

    def __len__(self) -> int:
        return len(self.members)

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.stack([self._image(index) for index in range(start, min(stop, len(self)))])

    def _image(self, index: int) -> np.ndarray:
        where = f"{self.members.names[index]} of {self.name}"
        with decoding(where):
            data = self.members.read(index)
            with parse_image(data) as image:
                mode = image.mode
                is_deep = (data[:8] == PNG_SIGNATURE and data[24] == 16) or mode.startswith(("I", "F"))
                is_known = mode in ("RGB", "L", "P", "1")
                pixels = np.asarray(image.convert("RGB")) if is_known and not is_deep else None
        if is_deep:
            raise InputError(f"{where} has 16 bits or more a channel (mode {mode}); write uint8 pixels")
        if pixels is None:
            raise InputError(f"{where} has the channels {mode}; write it as RGB, without an alpha channel")
        if mode in ("L", "1"):
            if not self.num_grey:
                logger.warning("%s is greyscale; such images are read with three equal channels", where)
            self.num_grey += 1
        if self._first is None:
            self._first = (pixels.shape, where)
        shape, first = self._first
        if pixels.shape != shape:
            raise InputError(
                f"images of one size are needed: {first} has {shape[1]} x {shape[0]} pixels, {where} has "
                f"{pixels.shape[1]} x {pixels.shape[0]}; crop all images to one size first"
            )
        return pixels

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for name, size in zip(self.members.names, self.members.sizes, strict=True):
            digest.update(f"{name} {size}\n".encode())
        for index in np.unique(np.linspace(0, len(self) - 1, HASHED).astype(int)):
            with decoding(f"{self.members.names[index]} of {self.name}"):
                digest.update(self.members.read(index))
        return digest.hexdigest()

    @property
    def state(self) -> str:
        return hashlib.sha256("\n".join(map(self.members.state, range(len(self)))).encode()).hexdigest()


class SourceImages(Images):
    """Some images of an image source, centre-cropped."""

    def __init__(self, source: ImageSource, rows: np.ndarray | None = None):
        self.source = source
        self.rows = np.arange(len(source)) if rows is None else rows
        self.name, self.file_type = f"{source.name} {source.split}", source.name

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.asarray(self.source.pixels[self.rows[start:stop]])

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.source.sha256.encode() + self.rows.tobytes()).hexdigest()


class FirstImages(Images):
    """The first images of a set, with the hash of the whole set."""

    def __init__(self, images: Images, count: int):
        self.images, self.count = images, count
        self.name, self.file_type = images.name, images.file_type
        self.is_sequential = images.is_sequential

    def __len__(self) -> int:
        return self.count

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.images.read(start, min(stop, self.count))

    @property
    def sha256(self) -> str:
        return self.images.sha256

    @property
    def state(self) -> str:
        return self.images.state


def open_samples(path: Path) -> Images:
    """The images of an .npz in ADM's layout, a folder, a zip, a tar, or a folder of tars (WebDataset).

    Raises InputError if the path is missing or holds no image."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"no samples at {path}; name a folder of PNG files, or an .npz in ADM's layout")
    return NpzImages(path) if path.suffix == ".npz" else FileImages(open_images(path), str(path))


def read_batches(images: Images, starts: Iterable[int], size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Batches (start, (B, H, W, 3) uint8) in the order of `starts`; threads decode a few batches ahead."""
    workers = 1 if images.is_sequential else READ_AHEAD
    waiting: deque[tuple[int, Future[np.ndarray]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for start in starts:
                waiting.append((start, pool.submit(images.read, start, min(start + size, len(images)))))
                if len(waiting) > READ_AHEAD:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)
