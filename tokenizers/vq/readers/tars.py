"""Random access to tars: the place of each member is found once and stored beside the tars.

For WebDataset shards, and for ImageNet's tar of tars without unpacking its 138 GB."""

import hashlib
import logging
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from masc.runtime.errors import InputError
from masc.runtime.files import replacing
from vq.readers.members import TarMembers, safe_name

logger = logging.getLogger(__name__)
SIDECARS = (".cls", ".json")  # files of WebDataset that are small and read with the index
VERSION = 1


@dataclass(frozen=True)
class TarIndex:
    """The files of some tars, and the contents of their sidecars by row."""

    members: TarMembers
    texts: dict[int, bytes]


def index_tars(archives: list[Path]) -> TarIndex:
    """The members of uncompressed tars and of tars inside them (as `inner/member`), in the order stored.

    The index is kept as .masc-index-*.npz beside the tars and used while their sizes and times stay the same.
    Raises InputError with the name of the tar if it is truncated or a name points outside of it."""
    stats = [archive.stat() for archive in archives]
    state = [[stat.st_size, stat.st_mtime_ns] for stat in stats]
    names_hash = hashlib.sha256("\n".join(archive.name for archive in archives).encode()).hexdigest()[:12]
    cache = archives[0].parent / f".masc-index-{names_hash}.npz"
    found = _load(cache, archives, state)
    if found is None:
        found = _scan(archives, sum(stat.st_size for stat in stats))
        _save(cache, found, state)
    return found


def _scan(archives: list[Path], total: int) -> TarIndex:
    names, places, texts = [], [], {}
    bar = tqdm(total=total, desc="index of tars", unit="B", unit_scale=True, disable=None)
    done = 0
    for number, archive in enumerate(archives):
        try:
            for name, size, offset, text in _members(archive):
                if text is not None:
                    texts[len(names)] = text
                names.append(name)
                places.append((size, number, offset))
                bar.update(done + offset - bar.n)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise InputError(f"{archive} is not a tar, or it is truncated ({error}); download it again") from error
        done += archive.stat().st_size
    bar.close()
    members = TarMembers(tuple(names), np.array(places, np.int64).reshape(-1, 3), tuple(archives))
    return TarIndex(members, texts)


def _members(archive: Path) -> Iterator[tuple[str, int, int, bytes | None]]:
    with tarfile.open(archive, "r:") as outer:
        for member in outer:
            name = safe_name(member.name, archive)
            if not member.isfile():
                continue
            if name.endswith(".tar"):
                with outer.extractfile(member) as data, tarfile.open(fileobj=data, mode="r:") as inner:
                    for one in inner:
                        inside = safe_name(one.name, archive / name)
                        if one.isfile():
                            yield (
                                f"{name.removesuffix('.tar')}/{inside}",
                                one.size,
                                member.offset_data + one.offset_data,
                                None,
                            )
                    _check_end(inner, f"its member {name}")
                continue
            text = outer.extractfile(member).read() if name.endswith(SIDECARS) else None
            yield name, member.size, member.offset_data, text
        _check_end(outer, "it")


def _check_end(tar: tarfile.TarFile, what: str) -> None:
    # tarfile takes a truncated or overwritten header for the end. The true end is a block of zeros.
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"{what} ends early, at byte {tar.offset}")


def _save(cache: Path, index: TarIndex, state: list[list[int]]) -> None:
    rows = sorted(index.texts)
    arrays = {
        "version": np.array(VERSION),
        "state": np.array(state, np.int64),
        "names": np.frombuffer("\n".join(index.members.names).encode(), np.uint8),
        "places": index.members.places,
        "text_rows": np.array(rows, np.int64),
        "text_sizes": np.array([len(index.texts[row]) for row in rows], np.int64),
        "texts": np.frombuffer(b"".join(index.texts[row] for row in rows), np.uint8),
    }
    try:
        with replacing(cache) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        logger.warning("the index of the tars cannot be stored (%s); it is built again each time", error)


def _load(cache: Path, archives: list[Path], state: list[list[int]]) -> TarIndex | None:
    try:
        with np.load(cache, allow_pickle=False) as stored:
            arrays = dict(stored)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    if int(arrays["version"]) != VERSION or not np.array_equal(arrays["state"], state):
        return None
    names = bytes(arrays["names"]).decode().split("\n") if arrays["names"].size else []
    content, ends = bytes(arrays["texts"]), np.cumsum(arrays["text_sizes"])
    texts = {
        int(row): content[end - size : end]
        for row, size, end in zip(arrays["text_rows"], arrays["text_sizes"], ends, strict=True)
    }
    return TarIndex(TarMembers(tuple(names), arrays["places"], tuple(archives)), texts)
