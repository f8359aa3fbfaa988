"""Files in folders, read by number; tars and zips without unpacking are in vq.readers.tars and vq.readers.zips.

A listing is complete, or one error names what is missing or there twice: nobody sees that images are missing, and
without a folder the labels after it would move. A name that points outside of its archive is refused, although no file
is written under it."""

import logging
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Self

import numpy as np

from masc.runtime.errors import InputError
from masc.runtime.reading import MIB, open_file

logger = logging.getLogger(__name__)
# The suffixes of torchvision's ImageFolder, with which LlamaGen reads ImageNet.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# Suffixes of other images, which ImageFolder passes over.
OTHER_SUFFIXES = (".gif", ".avif", ".jfif", ".jpe", ".heic", ".heif", ".jp2", ".jxl", ".tga", ".dng", ".cr2", ".nef")
# Suffixes of archives. Only tars and zips are read.
ARCHIVE_SUFFIXES = (".tar", ".zip", ".7z", ".rar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz")
# Folders that macOS, Synology, Windows and ext4 add to what the user stored.
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
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

    @abstractmethod
    def numbers(self) -> np.ndarray:
        """(M,) int64: two names of one file have the same number."""

    @abstractmethod
    def on_disk(self) -> "OnDisk":
        """The archives that hold the files, or the files themselves."""

    def take(self, rows: Sequence[int]) -> Self:
        """The files of the given numbers, in the given order."""
        return replace(self, names=tuple(self.names[row] for row in rows), places=self.places[np.asarray(rows, int)])

    def images(self) -> Self:
        """The images among the files, in the order of torchvision's ImageFolder; see `image_rows`."""
        return self.take(sorted(self.image_rows(), key=lambda row: _order(self.names[row])))

    def image_rows(self) -> list[int]:
        """The numbers of the images among the files, in the order stored.

        Images of types that ImageFolder passes over are left out with a warning, and images that are one file are
        counted in another. Raises InputError for an image whose name is not UTF-8 or has a line break, because lists of
        names could not hold it."""
        skipped = [name for name in self.names if is_visible(name) and name.lower().endswith(OTHER_SUFFIXES)]
        if skipped:
            logger.warning(
                "%d images are left out, the first is %a: images end in %s", len(skipped), skipped[0], IMAGE_SUFFIXES
            )
        rows = [row for row, name in enumerate(self.names) if is_image(name)]
        for row in rows:
            if self.names[row].splitlines() != [self.names[row]] or not _is_utf8(self.names[row]):
                raise InputError(f"the file name {self.names[row]!a} is not UTF-8 or has a line break; rename the file")
        _, first, which = np.unique(self.numbers()[rows], return_index=True, return_inverse=True)
        again = np.flatnonzero(first[which] != np.arange(len(rows)))
        if again.size:
            one, other = self.names[rows[first[which[again[0]]]]], self.names[rows[again[0]]]
            logger.warning(
                "%d of the %d images are read again under other names because of links, the first is %a, which is %a",
                *(again.size, len(rows), other, one),
            )
        return rows


@dataclass(frozen=True)
class OnDisk:
    """F files on disk."""

    names: tuple[str, ...]
    numbers: np.ndarray  # (F,) int64 of `file_number`
    are_linked: bool  # whether one of them may have another name

    @classmethod
    def of(cls, archives: Sequence[Path]) -> Self:
        """Archives as files."""
        statuses = [archive.stat() for archive in archives]
        numbers = np.array(list(map(file_number, statuses)), np.int64)
        are_linked = any(
            archive.is_symlink() or archive.parent.is_symlink() or status.st_nlink > 1
            for archive, status in zip(archives, statuses, strict=True)
        )
        return cls(tuple(archive.name for archive in archives), numbers, are_linked)


@dataclass(frozen=True)
class FolderMembers(Members):
    """Files below a folder; places (M, 3) size, time of the last change in ns, `file_number`."""

    root: Path
    are_linked: bool  # whether one of the files may have another name

    def read(self, index: int) -> bytes:
        path = self.root / self.names[index]
        with open_file(path) as (file, size):
            listed = file_state_of(*self.places[index, :2])
            check_unchanged(path, os.fstat(file.fileno()), listed)
            return file.read(check_size(size))

    def state(self, index: int) -> str:
        return str(self.places[index, 1])

    def numbers(self) -> np.ndarray:
        # Not every file system numbers its files.
        return self.places[:, 2] if self.are_linked else np.arange(len(self))

    def on_disk(self) -> OnDisk:
        return OnDisk(self.names, self.places[:, 2], self.are_linked)


def file_number(status: os.stat_result) -> int:
    """A number of 64 bits that a file has under all its names."""
    return hash((status.st_dev, status.st_ino))


def check_size(size: int) -> int:
    """The size of a file; InputError if it is larger than any image may be."""
    if size > LARGEST_FILE:
        raise InputError(f"{size} bytes; expected an image of at most {LARGEST_FILE}")
    return size


def file_state(status: os.stat_result) -> str:
    """What changes when a file changes: its size, and the time of the last change in ns."""
    return file_state_of(status.st_size, status.st_mtime_ns)


def file_state_of(size: int, changed: int) -> str:
    """As `file_state`, from bytes and ns."""
    return f"{size} {changed}"


def check_unchanged(path: Path, status: os.stat_result, listed: str) -> None:
    """Raise InputError unless the state of an open file is the one with which it was listed."""
    if file_state(status) != listed:
        raise InputError(f"{path} changed after it was listed; type the same command again")


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


def is_archive(name: str) -> bool:
    """Whether a visible file is an archive, by its suffix."""
    return name.lower().endswith(ARCHIVE_SUFFIXES) and is_visible(name)


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
    names, places, folders, are_linked = [], [], [], root.is_symlink()
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
                places.append((0, 0, hash(str(root / inside))))
                continue
            if stat.S_ISDIR(status.st_mode):
                folders.append(inside)
                waiting.append((inside, is_linked or entry.is_symlink()))
            else:
                names.append(inside)
                places.append((status.st_size, status.st_mtime_ns, file_number(status)))
                are_linked |= is_linked or entry.is_symlink() or status.st_nlink > 1
    found = np.array(places, np.int64).reshape(-1, 3)
    return FolderMembers(tuple(names), found, top_folders((), folders), root, are_linked)


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
