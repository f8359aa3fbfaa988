"""Random access to tars: the place of each member is found once and stored beside the tars.

For WebDataset shards, and for ImageNet's tar of tars without unpacking its 138 GB."""

import hashlib
import logging
import posixpath
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from masc.runtime.artifacts import Schema, reuse_npz, save_npz
from masc.runtime.errors import InputError
from masc.runtime.reading import MIB, open_file, reason
from vq.readers.members import TarMembers, file_state, regular_file, safe_name, top_folders

logger = logging.getLogger(__name__)
SIDECARS = (".cls", ".json")  # files of WebDataset that are small and read with the index
LARGEST_SIDECAR = MIB
KIND, VERSION = "tar-index", 2
SCHEMA: Schema = {
    "names": ("u", (None,)),  # UTF-8, joined by zero bytes
    "places": ("i", (None, 3)),
    "folders": ("u", (None,)),
    "text_rows": ("i", (None,)),
    "text_sizes": ("i", (None,)),
    "texts": ("u", (None,)),
}


@dataclass(frozen=True)
class TarIndex:
    """The files of some tars, and the contents of their sidecars by row."""

    members: TarMembers
    texts: dict[int, bytes]


def index_tars(archives: list[Path]) -> TarIndex:
    """The members of uncompressed tars and of tars inside them (as `inner/member`), in the order stored.

    A link to a file of the same tar is that file, and a name that occurs twice in a tar stands for its last file, as
    when the tar is unpacked. The index is kept as .masc-index-*.npz beside the tars, and used while their sizes and
    times stay the same. Raises InputError with the name of the tar if it is truncated, a name points outside of it, or
    a link leads to a folder."""
    sizes = [regular_file(archive).st_size for archive in archives]
    states = tuple(file_state(archive.stat()) for archive in archives)
    names = "\n".join(archive.name for archive in archives).encode(errors="surrogateescape")
    cache = archives[0].parent / f".masc-index-{hashlib.sha256(names).hexdigest()[:12]}.npz"
    found = _load(cache, archives, sizes, states)
    if found is None:
        found = _scan(archives, sizes, states)
        _save(cache, found)
    _warn_of_gaps(archives)
    return found


def _warn_of_gaps(archives: list[Path]) -> None:
    """Log a warning if numbers are missing in the names of shards, such as 1 in 000.tar, 002.tar."""
    numbers: dict[str, set[int]] = {}
    for archive in archives:
        if number := re.search(r"\d{1,9}$", archive.stem):
            numbers.setdefault(archive.stem[: number.start()], set()).add(int(number[0]))
    for stem, there in numbers.items():
        missing = max(there) - min(there) + 1 - len(there)
        if 0 < missing < len(there):  # otherwise the numbers are not those of a series
            first = next(number for number in range(min(there), max(there)) if number not in there)
            logger.warning(
                "%s: %d of the numbers in the names %s*.tar are missing, the first is %d",
                archives[0].parent,
                missing,
                stem,
                first,
            )


@dataclass
class _Contents:
    """What one tar holds."""

    files: dict[str, tuple[int, int, bytes | None]] = field(default_factory=dict)  # size, offset, text of a sidecar
    links: dict[str, str] = field(default_factory=dict)  # name -> name of the target
    folders: list[str] = field(default_factory=list)


def _scan(archives: list[Path], sizes: list[int], states: tuple[str, ...]) -> TarIndex:
    names, places, texts, folders = [], [], {}, set()
    bar = tqdm(total=sum(sizes), desc="index of tars", unit="B", unit_scale=True, disable=None)
    for number, archive in enumerate(archives):
        found, done = _Contents(), bar.n
        try:
            with open_file(archive) as (file, _), tarfile.open(fileobj=file, mode="r:") as tar:
                _read(tar, archive, "", 0, found, lambda offset, done=done: bar.update(done + offset - bar.n))
            _resolve_links(found, archive)
        except InputError:
            raise
        except Exception as error:  # tarfile raises errors of many types for damaged bytes
            raise InputError(
                f"{archive} is not a tar, or it is truncated ({reason(error)}); download it again"
            ) from error
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
    tar: tarfile.TarFile,
    archive: Path,
    prefix: str,
    start: int,
    found: _Contents,
    advance: Callable[[int], object],
) -> None:
    """Add the members of a tar to `found`: their names after `prefix`, their offsets after `start` bytes."""
    for member in tar:
        name = prefix + safe_name(member.name, archive)
        if member.isdir():
            found.folders.append(name)
        elif member.issym():
            found.links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
        elif member.islnk():
            found.links[name] = prefix + safe_name(member.linkname, archive)
        elif member.isfile() and not member.issparse():  # the bytes of a sparse file do not lie together
            if not prefix and name.endswith(".tar"):
                inside = f"{name.removesuffix('.tar')}/"
                with tar.extractfile(member) as data, tarfile.open(fileobj=data, mode="r:") as inner:
                    _read(inner, archive / name, inside, member.offset_data, found, advance)
            else:
                is_sidecar = name.lower().endswith(SIDECARS) and member.size <= LARGEST_SIDECAR
                text = tar.extractfile(member).read() if is_sidecar else None
                found.files[name] = (member.size, start + member.offset_data, text)
                advance(start + member.offset_data)
    # tarfile takes a truncated or overwritten header for the end. The true end is a block of zeros.
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        what = f"its member {prefix.removesuffix('/')}.tar" if prefix else "it"
        raise tarfile.ReadError(f"{what} ends early, at byte {tar.offset}")


def _resolve_links(found: _Contents, archive: Path) -> None:
    """Give the links of a tar the files that they lead to."""
    folders, lost = {posixpath.dirname(name) for name in found.files} | set(found.folders), []
    for name, target in found.links.items():
        if target in found.files:
            found.files[name] = found.files[target]
        elif target in folders:
            raise InputError(
                f"{archive} holds the link {name} to its folder {target}, whose images would be missing under "
                f"{name}; pack the tar with tar --dereference"
            )
        else:
            lost.append(name)
    if lost:
        logger.warning("%s: %d links lead to no file of it and are left out, first %a", archive, len(lost), lost[0])


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
