"""Random access to tars: the place of each member is found once and stored beside the tars.

For WebDataset shards, and for ImageNet's tar of tars without unpacking its 138 GB."""

import hashlib
import itertools
import logging
import os
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from masc.runtime.artifacts import Schema, reuse_npz, save_npz
from masc.runtime.errors import InputError
from masc.runtime.reading import MIB, open_file
from vq.readers.entries import Entries, opening, parents
from vq.readers.members import (
    Members,
    OnDisk,
    check_size,
    check_unchanged,
    file_number,
    file_state,
    is_visible,
    regular_file,
    safe_name,
    top_folders,
)

logger = logging.getLogger(__name__)
SIDECARS = (".cls", ".json")  # files of WebDataset that are small and read with the index
LARGEST_SIDECAR = MIB
LARGEST_TAR = 2**44  # bytes
KIND, VERSION = "tar-index", 3
SCHEMA: Schema = {
    "names": ("u", (None,)),  # UTF-8, joined by zero bytes
    "places": ("i", (None, 3)),
    "folders": ("u", (None,)),
    "text_rows": ("i", (None,)),
    "text_sizes": ("i", (None,)),
    "texts": ("u", (None,)),
}


@dataclass(frozen=True)
class TarMembers(Members):
    """Files in uncompressed tars, or in tars inside them; places (M, 3) size, archive, offset."""

    archives: tuple[Path, ...]
    states: tuple[str, ...]  # of `file_state`, of each archive

    def read(self, index: int) -> bytes:
        size, archive, offset = (int(value) for value in self.places[index])
        with self.archives[archive].open("rb", buffering=0) as file:
            check_unchanged(self.archives[archive], os.fstat(file.fileno()), self.states[archive])
            data = os.pread(file.fileno(), check_size(size), offset)
        if len(data) < size:
            raise EOFError(f"{self.archives[archive]} ends within {self.names[index]}")
        return data

    def state(self, index: int) -> str:
        return self.states[self.places[index, 1]]

    def numbers(self) -> np.ndarray:
        return self.places[:, 1] * LARGEST_TAR + self.places[:, 2]

    def on_disk(self) -> OnDisk:
        return OnDisk.of(self.archives)


@dataclass(frozen=True)
class TarIndex:
    """The files of some tars, and the contents of their sidecars by row."""

    members: TarMembers
    texts: dict[int, bytes]


def index_tars(archives: list[Path]) -> TarIndex:
    """The members of uncompressed tars and of tars inside them (as `inner/member`), in the order stored.

    A link to a file of the same tar is that file, and a name that occurs twice in a tar stands for its last file, as
    when the tar is unpacked. The index is kept as .masc-index-*.npz beside the tars, and used while their sizes and
    times stay the same. Raises InputError with the name of the tar if it is truncated, a name points outside of it, a
    link leads to none of its files, or a member is no plain file; and if two tars are one file."""
    statuses = [regular_file(archive) for archive in archives]
    sizes, states = [status.st_size for status in statuses], tuple(map(file_state, statuses))
    first_of: dict[int, Path] = {}
    for archive, number in zip(archives, map(file_number, statuses), strict=True):
        if (other := first_of.setdefault(number, archive)) != archive:
            raise InputError(
                f"{other} and {archive} are one file because of a link: its images would be read twice; remove the link"
            )
    names = "\n".join(archive.name for archive in archives).encode(errors="surrogateescape")
    cache = archives[0].parent / f".masc-index-{hashlib.sha256(names).hexdigest()[:12]}.npz"
    found = _load(cache, archives, sizes, states)
    if found is None:
        found = _scan(archives, sizes, states)
        _save(cache, found)
    _warn_of_gaps(archives)
    return found


def _warn_of_gaps(archives: list[Path]) -> None:
    """Log a warning if numbers are missing in the names of shards, such as 1 in 000.tar, 002.tar; in names such as
    000-of-004.tar, the last ones too."""
    numbers: dict[tuple[str, str], set[int]] = {}  # by what stands before and after the number
    for archive in archives:
        if found := re.fullmatch(r"(.*?)(\d{1,9})((?:-of-\d{1,9})?)", archive.stem):
            numbers.setdefault((found[1], found[3]), set()).add(int(found[2]))
    for (before, after), there in numbers.items():
        first, count = min(there), max(there) - min(there) + 1
        if after:
            count = int(after.removeprefix("-of-"))
            first = 1 if count in there else 0
        missing = count - len(there)
        # Without the number of all shards, names with more gaps than shards are not those of a series.
        if missing > 0 and (after or missing < len(there)):
            logger.warning(
                "%s: %d of the numbers in the names %s*%s.tar are missing, the first is %d",
                archives[0].parent,
                missing,
                before,
                after,
                next(number for number in itertools.count(first) if number not in there),
            )


Place = tuple[int, int, bytes | None]  # size, offset, text of a sidecar


def _scan(archives: list[Path], sizes: list[int], states: tuple[str, ...]) -> TarIndex:
    names, places, texts, folders = [], [], {}, set()
    bar = tqdm(total=sum(sizes), desc="index of tars", unit="B", unit_scale=True, disable=None)
    for number, archive in enumerate(archives):
        done = bar.n
        with (
            opening(archive, "tar"),
            open_file(archive) as (file, _),
            tarfile.open(fileobj=file, mode="r:") as tar,
        ):
            found = _read(tar, archive, "", 0, lambda offset, done=done: bar.update(done + offset - bar.n))
        for name, (size, offset, text) in found.files.items():
            if text is not None:
                texts[len(names)] = text
            names.append(name)
            places.append((size, number, offset))
        folders |= top_folders(found.files, found.folders)
        bar.update(done + sizes[number] - bar.n)
    bar.close()
    found = np.array(places, np.int64).reshape(-1, 3)
    return TarIndex(TarMembers(tuple(names), found, frozenset(folders), tuple(archives), states), texts)


def _read(
    tar: tarfile.TarFile, archive: Path, prefix: str, start: int, advance: Callable[[int], object]
) -> Entries[Place]:
    """The members of a tar and of the tars in it: their names after `prefix`, their offsets after `start` bytes."""
    found, packed = Entries[Place](), {}
    for member in tar:
        name = prefix + safe_name(member.name, archive)
        if member.isdir():
            found.folders.append(name)
        elif member.issym():
            found.add_link(name, member.linkname)
        elif member.islnk():
            found.add_hard_link(name, prefix + safe_name(member.linkname, archive))
        elif member.issparse() or not member.isfile():  # the bytes of a sparse file do not lie together
            if is_visible(name):
                what = "stored as a sparse file" if member.issparse() else "a pipe, a device or of unknown type"
                raise InputError(f"{archive} holds {name!a}, which is {what}; pack it again as a file, without tar -S")
        elif not prefix and name.lower().endswith(".tar"):
            inside = name[: -len(".tar")]
            if inside in packed:
                raise InputError(f"{archive} holds two tars with the name {inside!a}; keep one")
            with tar.extractfile(member) as data, tarfile.open(fileobj=data, mode="r:") as inner:
                packed[inside] = _read(inner, archive, f"{inside}/", member.offset_data, advance)
        else:
            is_sidecar = name.lower().endswith(SIDECARS) and member.size <= LARGEST_SIDECAR
            text = tar.extractfile(member).read() if is_sidecar else None
            found.add_file(name, (member.size, start + member.offset_data, text))
            advance(start + member.offset_data)
    _check_end(tar, archive, prefix)
    found.follow_links(archive)
    both = sorted(packed.keys() & parents(found.files)) if packed else []
    if both:
        raise InputError(f"{archive} holds the folder {both[0]!a} and a tar of the same name; keep one")
    for inner in packed.values():
        found.files |= inner.files
        found.folders += inner.folders
    return found


def _check_end(tar: tarfile.TarFile, archive: Path, prefix: str) -> None:
    """Raise an error unless a tar that was read ends in zeros: a block of them is its end, and no other tar follows.

    tarfile takes a truncated or overwritten header for the end."""
    what = f"its member {prefix.removesuffix('/')}.tar" if prefix else "it"
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"{what} ends early, at byte {tar.offset}")
    while rest := tar.fileobj.read(MIB):
        if rest.count(0) < len(rest):
            raise InputError(
                f"{archive} cannot be read whole: {what} holds more after its end at byte {tar.offset}, as when tars "
                "are joined by cat; keep them apart, or join them with tar --concatenate"
            )


def _save(cache: Path, index: TarIndex) -> None:
    rows, members = sorted(index.texts), index.members
    arrays = {
        "names": _pack(members.names),
        "places": members.places,
        "folders": _pack(sorted(members.folders)),
        "text_rows": np.array(rows, np.int64),
        "text_sizes": np.array([len(index.texts[row]) for row in rows], np.int64),
        "texts": np.frombuffer(b"".join(index.texts[row] for row in rows), np.uint8),
    }
    try:
        save_npz(cache, KIND, VERSION, arrays, {"states": list(members.states)}, {})
    except (OSError, InputError) as error:
        logger.warning("the index of the tars cannot be stored (%s); it is built again each time", error)


def _pack(names: tuple[str, ...] | list[str]) -> np.ndarray:
    return np.frombuffer("\0".join(names).encode(errors="surrogateescape"), np.uint8)


def _unpack(packed: np.ndarray) -> tuple[str, ...]:
    return tuple(bytes(packed).decode(errors="surrogateescape").split("\0")) if packed.size else ()


def _load(cache: Path, archives: list[Path], sizes: list[int], states: tuple[str, ...]) -> TarIndex | None:
    """The stored index; None if it must be built: missing, damaged, of other tars, or with places outside of them."""
    stored = reuse_npz(cache, KIND, VERSION, {"states": list(states)}, {}, SCHEMA)
    if stored is None:
        return None
    arrays, _ = stored
    names, places, rows = _unpack(arrays["names"]), arrays["places"], arrays["text_rows"]
    ends = np.cumsum(arrays["text_sizes"])
    is_sound = (
        len(names) == len(places)
        and (places >= 0).all()
        and (places[:, 1] < len(archives)).all()
        and (places[:, 0] + places[:, 2] <= np.array(sizes)[places[:, 1]]).all()
        and len(rows) == len(ends)
        and ((rows >= 0) & (rows < len(names))).all()
        and (arrays["text_sizes"] >= 0).all()
        and len(arrays["texts"]) == (ends[-1] if ends.size else 0)
    )
    if not is_sound:
        return None
    content = bytes(arrays["texts"])
    texts = {
        int(row): content[end - size : end] for row, size, end in zip(rows, arrays["text_sizes"], ends, strict=True)
    }
    members = TarMembers(names, places, frozenset(_unpack(arrays["folders"])), tuple(archives), states)
    return TarIndex(members, texts)
