"""Files in folders, tars and zips, read by number without unpacking.

A listing is complete, or one error names what is missing or there twice: nobody sees that images are missing, and
without a folder the labels after it would move. A name that points outside of its archive is refused, although no file
is written under it."""

import logging
import os
import stat
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Self

import numpy as np

from masc.runtime.errors import InputError
from masc.runtime.reading import MIB, open_file, reason

logger = logging.getLogger(__name__)
# The suffixes of torchvision's ImageFolder, with which LlamaGen reads ImageNet.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# Suffixes of other images, which ImageFolder passes over.
OTHER_SUFFIXES = (".gif", ".avif", ".jfif", ".jpe", ".heic", ".heif", ".jp2", ".jxl", ".tga", ".dng", ".cr2", ".nef")
# Folders that macOS, Synology, Windows and ext4 add to what the user stored.
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
# Methods of compression that zipfile inflates in bounded steps.
BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Most bytes of one encoded image: the RGB pixels of an image just below Pillow's limit, without compression.
LARGEST_FILE = 256 * MIB


@dataclass(frozen=True)
class Members(ABC):
    """M files by number."""

    names: tuple[str, ...]  # with / between folders
    places: np.ndarray  # (M, ...) int64: size in bytes, then the place in the archives
    folders: frozenset[str]  # the folders at the top, with or without files in them

    def __len__(self) -> int:
        return len(self.names)

    @property
    def sizes(self) -> np.ndarray:
        """(M,) bytes."""
        return self.places[:, 0]

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The bytes of a file. Raises an error of any type if it cannot be read or has more than LARGEST_FILE bytes."""

    @abstractmethod
    def state(self, index: int) -> str:
        """What changes when the file changes, beside its name and size."""

    def take(self, rows: Sequence[int]) -> Self:
        """The files of the given numbers, in the given order."""
        return replace(self, names=tuple(self.names[row] for row in rows), places=self.places[np.asarray(rows, int)])

    def images(self) -> Self:
        """The images among the files, in the order of torchvision's ImageFolder.

        Images of types that ImageFolder passes over are left out with a warning. Raises InputError for an image whose
        name is not UTF-8 or has a line break, because lists of names could not hold it."""
        skipped = [name for name in self.names if is_visible(name) and name.lower().endswith(OTHER_SUFFIXES)]
        if skipped:
            logger.warning(
                "%d images are left out, the first is %a: images end in %s", len(skipped), skipped[0], IMAGE_SUFFIXES
            )
        rows = [row for row, name in enumerate(self.names) if is_image(name)]
        for row in rows:
            if self.names[row].splitlines() != [self.names[row]] or not _is_utf8(self.names[row]):
                raise InputError(f"the file name {self.names[row]!a} is not UTF-8 or has a line break; rename the file")
        return self.take(sorted(rows, key=lambda row: _order(self.names[row])))


@dataclass(frozen=True)
class FolderMembers(Members):
    """Files below a folder; places (M, 2) size, time of the last change in ns."""

    root: Path

    def read(self, index: int) -> bytes:
        with open_file(self.root / self.names[index]) as (file, size):
            return file.read(check_size(size))

    def state(self, index: int) -> str:
        return str(self.places[index, 1])


@dataclass(frozen=True)
class TarMembers(Members):
    """Files in uncompressed tars, or in tars inside them; places (M, 3) size, archive, offset."""

    archives: tuple[Path, ...]
    states: tuple[str, ...]  # of `file_state`, of each archive

    def read(self, index: int) -> bytes:
        size, archive, offset = (int(value) for value in self.places[index])
        with self.archives[archive].open("rb", buffering=0) as file:
            if file_state(os.fstat(file.fileno())) != self.states[archive]:
                raise InputError(f"{self.archives[archive]} changed after it was listed; type the same command again")
            data = os.pread(file.fileno(), check_size(size), offset)
        if len(data) < size:
            raise EOFError(f"{self.archives[archive]} ends within {self.names[index]}")
        return data

    def state(self, index: int) -> str:
        return self.states[self.places[index, 1]]


@dataclass(frozen=True)
class ZipMembers(Members):
    """Files in a zip; places (M, 3) size, place in the zip's directory, CRC-32."""

    path: Path
    version: str  # `file_state` of the zip

    def read(self, index: int) -> bytes:
        archive = _open_zip(self.path, self.version, os.getpid())
        member = archive.infolist()[self.places[index, 1]]
        if member.compress_type not in BOUNDED:
            raise InputError(f"compressed by method {member.compress_type} in {self.path}; expected stored or deflated")
        with archive.open(member) as file:
            return file.read(check_size(member.file_size))

    def state(self, index: int) -> str:
        return str(self.places[index, 2])


@lru_cache(maxsize=4)
def _open_zip(path: Path, version: str, process: int) -> zipfile.ZipFile:
    # Each process opens its own: forked workers would move a shared file position.
    return zipfile.ZipFile(path)


def check_size(size: int) -> int:
    """The size of a file; InputError if it is larger than any image may be."""
    if size > LARGEST_FILE:
        raise InputError(f"{size} bytes; expected an image of at most {LARGEST_FILE}")
    return size


def file_state(status: os.stat_result) -> str:
    """What changes when a file changes: its size, and the time of the last change in ns."""
    return f"{status.st_size} {status.st_mtime_ns}"


def regular_file(path: Path) -> os.stat_result:
    """The status of a file; InputError if it is missing or a pipe, a device or a folder."""
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"expected a file at {path}, found a folder, a pipe or a device; move it away")
    return status


def is_image(name: str) -> bool:
    """Whether a file is an image, by its suffix. Hidden files and those that systems add are not."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES and is_visible(name)


def is_visible(name: str) -> bool:
    """Whether no part of a name is hidden or added by a system."""
    return not any(part.startswith(".") or part in SYSTEM_FOLDERS for part in name.split("/"))


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that are not UTF-8 are lone surrogates in a name
        return False
    return True


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


def top_folders(files: Iterable[str], folders: Iterable[str]) -> frozenset[str]:
    """The first part of the names of folders, and of files inside a folder."""
    inside = (name for name in files if "/" in name)
    return frozenset(name.partition("/")[0] for name in (*inside, *folders)) - {"", ".", ".."}


def list_folder(root: Path) -> FolderMembers:
    """All visible files below a folder; links are followed.

    Raises InputError for a folder that cannot be listed, a link that leads nowhere unless it is named as an image, and
    a link to a folder that is entered by another way too: a loop, or images twice."""
    names, places, folders = [], [], []
    entered: dict[tuple[int, int], tuple[str, bool]] = {}  # device and number of a folder -> its name, by a link or not
    waiting = [("", False)]
    while waiting:
        name, is_linked = waiting.pop()
        status, entries = _list(root / name)
        known, was_linked = entered.setdefault((status.st_dev, status.st_ino), (name, is_linked))
        if known != name and (is_linked or was_linked):
            raise InputError(
                f"{root / known} and {root / name} are one folder because of a link: its images would be read twice; "
                "remove the link"
            )
        for entry in entries:
            inside = f"{name}/{entry.name}" if name else entry.name
            try:
                status = entry.stat()
            except OSError as error:  # a link that leads nowhere
                if not is_image(inside):  # otherwise it counts as an unreadable image
                    raise InputError(
                        f"cannot follow {root / inside} ({error.strerror}); repair the link, or remove it"
                    ) from error
                names.append(inside)
                places.append((0, 0))
                continue
            if stat.S_ISDIR(status.st_mode):
                folders.append(inside)
                waiting.append((inside, is_linked or entry.is_symlink()))
            else:
                names.append(inside)
                places.append((status.st_size, status.st_mtime_ns))
    return FolderMembers(tuple(names), np.array(places, np.int64).reshape(-1, 2), top_folders((), folders), root)


def _list(folder: Path) -> tuple[os.stat_result, list[os.DirEntry]]:
    """The status of a folder and its visible entries; InputError if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return folder.stat(), [entry for entry in entries if is_visible(entry.name)]
    except OSError as error:
        raise InputError(
            f"cannot list the folder {folder} ({error.strerror}), so its images would be missing; make it readable, or "
            "move it away"
        ) from error


def list_zip(path: Path) -> ZipMembers:
    """All files of a zip. A name that occurs twice stands for its last file, as when the zip is unpacked.

    Raises InputError if the zip is truncated or a name points outside of it."""
    version = file_state(regular_file(path))
    try:
        members = _open_zip(path, version, os.getpid()).infolist()
    except Exception as error:  # zipfile raises errors of many types for damaged bytes
        raise InputError(f"{path} is not a zip, or it is truncated ({reason(error)}); download it again") from error
    named = {place: member for place, member in enumerate(members) if member.filename}
    place_of = {safe_name(member.filename, path): place for place, member in named.items() if not member.is_dir()}
    places = [(members[place].file_size, place, members[place].CRC) for place in place_of.values()]
    folders = (PurePosixPath(member.filename).as_posix() for member in named.values() if member.is_dir())
    found = np.array(places, np.int64).reshape(-1, 3)
    return ZipMembers(tuple(place_of), found, top_folders(place_of, folders), path, version)
