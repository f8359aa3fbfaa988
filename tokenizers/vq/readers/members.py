"""Files in folders, tars and zips, read by number without unpacking.

A name that points outside of its archive is refused, although no file is written under it."""

import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Self

import numpy as np

from masc.runtime.errors import InputError

# The suffixes of torchvision's ImageFolder, with which LlamaGen reads ImageNet.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Members(ABC):
    """M files by number."""

    names: tuple[str, ...]  # with / between folders
    places: np.ndarray  # (M, ...) int64: size in bytes, then the place in the archives

    def __len__(self) -> int:
        return len(self.names)

    @property
    def sizes(self) -> np.ndarray:
        """(M,) bytes."""
        return self.places[:, 0]

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The bytes of a file. Raises OSError, or the error of the archive's library, if it cannot be read."""

    def take(self, rows: Sequence[int]) -> Self:
        """The files of the given numbers, in the given order."""
        return replace(self, names=tuple(self.names[row] for row in rows), places=self.places[np.asarray(rows, int)])

    def images(self) -> Self:
        """The images among the files, in the order of torchvision's ImageFolder."""
        rows = [row for row, name in enumerate(self.names) if is_image(name)]
        return self.take(sorted(rows, key=lambda row: _order(self.names[row])))


@dataclass(frozen=True)
class FolderMembers(Members):
    """Files below a folder; places (M, 1)."""

    root: Path

    def read(self, index: int) -> bytes:
        return (self.root / self.names[index]).read_bytes()


@dataclass(frozen=True)
class TarMembers(Members):
    """Files in uncompressed tars, or in tars inside them; places (M, 3) size, archive, offset."""

    archives: tuple[Path, ...]

    def read(self, index: int) -> bytes:
        size, archive, offset = (int(value) for value in self.places[index])
        with self.archives[archive].open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, offset)
        if len(data) < size:
            raise EOFError(f"{self.archives[archive]} ends within {self.names[index]}")
        return data


@dataclass(frozen=True)
class ZipMembers(Members):
    """Files in a zip; places (M, 1)."""

    path: Path

    def read(self, index: int) -> bytes:
        try:
            return _open_zip(self.path, os.getpid()).read(self.names[index])
        except (RuntimeError, NotImplementedError) as error:  # encrypted, or compressed in a way that zipfile lacks
            raise OSError(f"{self.names[index]} in {self.path}: {error}") from error


@lru_cache(maxsize=4)
def _open_zip(path: Path, process: int) -> zipfile.ZipFile:
    # Each process opens its own: forked workers would move a shared file position.
    return zipfile.ZipFile(path)


def is_image(name: str) -> bool:
    """Whether a file is an image, by its suffix. Hidden files and those that macOS adds to archives are not."""
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not any(
        part.startswith(".") or part == "__MACOSX" for part in path.parts
    )


def _order(name: str) -> tuple[str, str, str]:
    folder, _, file = name.rpartition("/")
    return folder.partition("/")[0], folder, file


def safe_name(name: str, archive: Path) -> str:
    """The name of a member without a leading `./`; InputError if it is absolute or contains `..`."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise InputError(
            f"{archive} holds a member named {name!r}, which points outside of the archive; download the archive again "
            "from its publisher"
        )
    return str(path)


def list_folder(root: Path) -> FolderMembers:
    """All files below a folder; links are followed."""
    names, sizes = [], []
    for folder, _, files in os.walk(root, followlinks=True):
        inside = Path(folder).relative_to(root).as_posix()
        for file in files:
            names.append(file if inside == "." else f"{inside}/{file}")
            sizes.append((Path(folder) / file).lstat().st_size)
    return FolderMembers(tuple(names), np.array(sizes, np.int64).reshape(-1, 1), root)


def list_zip(path: Path) -> ZipMembers:
    """All files of a zip; InputError if it is truncated or a name points outside of it."""
    try:
        files = [member for member in _open_zip(path, os.getpid()).infolist() if not member.is_dir()]
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise InputError(f"{path} is not a zip, or it is truncated ({error}); download it again") from error
    for member in files:
        safe_name(member.filename, path)
    sizes = np.array([member.file_size for member in files], np.int64).reshape(-1, 1)
    return ZipMembers(tuple(member.filename for member in files), sizes, path)
