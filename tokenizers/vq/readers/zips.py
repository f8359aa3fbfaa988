"""Random access to the files of a zip."""

import os
import stat
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from masc.runtime.errors import InputError
from vq.readers.entries import Entries, opening
from vq.readers.members import (
    Members,
    OnDisk,
    check_size,
    check_unchanged,
    file_state,
    regular_file,
    safe_name,
    top_folders,
)

# Methods of compression that zipfile inflates in bounded steps.
BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
LONGEST_LINK = 4096  # bytes of a target


@dataclass(frozen=True)
class ZipMembers(Members):
    """Files in a zip; places (M, 3) size, place in the zip's directory, CRC-32."""

    path: Path
    version: str  # `file_state` of the zip

    def read(self, index: int) -> bytes:
        archive = _open_zip(self.path, self.version, os.getpid())
        check_unchanged(self.path, os.fstat(archive.fp.fileno()), self.version)
        member = archive.infolist()[self.places[index, 1]]
        if member.compress_type not in BOUNDED:
            raise InputError(f"compressed by method {member.compress_type} in {self.path}; expected stored or deflated")
        with archive.open(member) as file:
            return file.read(check_size(member.file_size))

    def state(self, index: int) -> str:
        return str(self.places[index, 2])

    def numbers(self) -> np.ndarray:
        return self.places[:, 1]

    def on_disk(self) -> OnDisk:
        return OnDisk.of([self.path])


@lru_cache(maxsize=4)
def _open_zip(path: Path, version: str, process: int) -> zipfile.ZipFile:
    # Each process opens its own: forked workers would move a shared file position.
    file = path.open("rb")
    check_unchanged(path, os.fstat(file.fileno()), version)
    return zipfile.ZipFile(file)


def list_zip(path: Path) -> ZipMembers:
    """All files of a zip. A link to a file of it is that file, and a name that occurs twice stands for its last file,
    as when the zip is unpacked.

    Raises InputError if the zip is truncated, a name points outside of it, or a link leads to none of its files."""
    version, found = file_state(regular_file(path)), Entries[int]()
    with opening(path, "zip"):
        archive = _open_zip(path, version, os.getpid())
        members = archive.infolist()
        for place, member in enumerate(members):
            if not member.filename:
                continue
            name = safe_name(member.filename, path)
            if member.is_dir():
                found.folders.append(name)
            elif stat.S_ISLNK(member.external_attr >> 16):
                found.add_link(name, _target(archive, member))
            else:
                found.add_file(name, place)
    found.follow_links(path)
    places = [(members[place].file_size, place, members[place].CRC) for place in found.files.values()]
    places = np.array(places, np.int64).reshape(-1, 3)
    return ZipMembers(tuple(found.files), places, top_folders(found.files, found.folders), path, version)


def _target(archive: zipfile.ZipFile, link: zipfile.ZipInfo) -> str:
    if link.compress_type not in BOUNDED or link.file_size > LONGEST_LINK:
        raise ValueError(f"the link {link.filename!a} has no target")
    return archive.read(link).decode(errors="surrogateescape")
