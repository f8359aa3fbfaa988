"""Files and directories that are written completely or not at all, by any number of processes at once.

A process writes under a temporary name, `.NAME.0.partial`, and holds the lock of `.NAME.0.partial.lock` meanwhile. A
second process that writes the same target takes the next number. A temporary whose lock nobody holds was left by a
dead process, whatever its number and machine; the next write into the folder removes it. On a file system without
locks that is done once the lock's file is a day old. Before it gets its name, what was written is flushed to the disk,
and the name after it, so that a power cut leaves the old or the new as well."""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masc.runtime.errors import InputError
from masc.runtime.locks import claim, release
from masc.runtime.reading import open_file
from masc.runtime.writing import flush, flush_all, make_folder, writing

if TYPE_CHECKING:
    from torch import Tensor

LONGEST = 200  # bytes of a name that its temporary names repeat; file systems allow 255
LEFTOVER = re.compile(r"(\..+\.\d+\.partial)(\.lock)?", re.DOTALL)
CROWDED = 100  # files; a larger folder is searched for leftovers once a process
_crowded: set[Path] = set()


@contextlib.contextmanager
def replacing(path: Path, is_flushed: bool = True) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it on success and removed on failure.

    With `is_flushed` the disk holds what was written before it is renamed; without, a power cut may leave a file of the
    right name and the wrong content, which is for small parts of a larger work that are checked when they are read.

    An existing directory is first renamed; `recover` restores it if the process dies before the second rename. Raises
    InputError, with the cause, if the system refuses a write, if a directory is in the place of a file or a file in the
    place of a directory, and if `path` is a link: a link in a downloaded run may name any folder of the user. Links
    above `path` are followed."""
    path = Path(path)
    with writing(path):
        if path.is_symlink():
            raise InputError(
                f"{path} is a link to {path.readlink()}, and nothing behind a link is replaced; remove the link. For "
                "another disk, link the folder above it"
            )
        make_folder(path.parent)
        if path.parent not in _crowded:
            remove_leftovers(path.parent)
        with _temporary(path) as temporary:
            yield temporary
            if is_flushed:
                flush_all(temporary)
            _publish(temporary, path, is_flushed)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A name beside `path` that no other process uses; what has this name at the end is removed."""
    for number in itertools.count():
        temporary = path.with_name(f".{_short(path.name)}.{number}.partial")
        lock = _lock_of(temporary)
        if (held := claim(lock)) is not None:
            break
    try:
        _remove(temporary)  # a dead process may have left it
        yield temporary
    finally:
        with contextlib.suppress(OSError):  # hides no error, and the next start removes what stays
            _remove(temporary)
        release(lock, held)


def _short(name: str) -> str:
    """The name, or ~ and a hash in the place of a long one."""
    return name if len(os.fsencode(name)) <= LONGEST else f"~{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}"


def _lock_of(temporary: Path) -> Path:
    return temporary.with_name(f"{temporary.name}.lock")


def _remove(path: Path) -> None:
    """Delete a file, a link or a directory, if there is one."""
    try:
        path.unlink(missing_ok=True)
    except OSError:  # a directory, unless the system refuses it
        if not path.is_dir():
            raise
        shutil.rmtree(path)


def remove_leftovers(folder: Path) -> None:
    """Remove what dead processes left in a folder while they wrote. What cannot be removed stays."""
    names = []
    with contextlib.suppress(FileNotFoundError, PermissionError), os.scandir(folder) as entries:
        names = [entry.name for entry in entries]
    if len(names) > CROWDED:
        _crowded.add(folder)
    hidden = (name for name in names if name[0] == ".")
    for temporary in {folder / found[1] for found in map(LEFTOVER.fullmatch, hidden) if found}:
        lock = _lock_of(temporary)
        with contextlib.suppress(OSError):  # of another user, or on a read-only disk
            if (held := claim(lock)) is not None:
                try:
                    _remove(temporary)
                finally:
                    release(lock, held)


def _publish(temporary: Path, path: Path, is_flushed: bool) -> None:
    """Rename what was written to `path`."""
    if not temporary.is_dir():
        temporary.replace(path)
        if is_flushed:
            flush(path.parent)
        return
    aside = _aside(path)
    for attempt in itertools.count():
        try:
            if path.is_dir():
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
            temporary.rename(path)
            break
        except OSError as error:  # another process wrote or restored the directory in between
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST) or attempt == 100:
                raise
    if is_flushed:
        flush(path.parent)  # before the old one is removed
    with contextlib.suppress(OSError):  # there is none, or another process removed it
        aside.rename(temporary)  # half removed, it must not be restored


def _aside(path: Path) -> Path:
    return path.with_name(f".{_short(path.name)}.old")


def recover(path: Path) -> Path:
    """Restore the directory `path` if `replacing` had renamed it when its process died. Returns where it is now.

    That is `path`, also if there is none, or its place beside `path` where nothing can be renamed, as on a read-only
    disk. Everyone who looks for such a directory does so through this function."""
    path = Path(path)
    with contextlib.suppress(PermissionError):  # raised again by whoever opens its files
        aside = _aside(path)
        if not os.path.lexists(path) and aside.exists():
            try:
                aside.rename(path)
            except OSError:  # nothing can be renamed here, or another process restored or wrote it in between
                return path if path.exists() else aside
    return path


def recover_all(folder: Path) -> None:
    """Restore every directory in a folder as `recover` does; for those who list the folder."""
    for aside in Path(folder).glob(".[!~]*.old"):
        recover(aside.with_name(aside.name.removeprefix(".").removesuffix(".old")))


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, completely or not at all; InputError for a name that is not UTF-8 in the text."""
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        near = ascii(text[max(0, error.start - 30) : error.end + 10])
        raise InputError(
            f"{path} cannot hold the name {near}, which is not UTF-8; rename that file or folder"
        ) from error
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file completely or not at all, keys in the given order."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def save_safetensors(path: Path, tensors: "dict[str, Tensor]", metadata: dict[str, str] | None = None) -> None:
    """Write tensors to `path`, under a name of `replacing`, with the permissions of any other file.

    The library's own function leaves the file readable by its owner only."""
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata={"format": "pt", **(metadata or {})})
    if path.stat().st_mode != mode:
        path.chmod(mode)


def save_torch(path: Path, content: Any) -> None:
    """Write `content` with torch.save to `path`, under a name of `replacing`."""
    import torch

    with path.open("wb") as file:  # torch does not name the error of a write to a path
        torch.save(content, file)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes; `Damaged` if it cannot be read."""
    with open_file(path) as (file, _):
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_name(name: str, key: str) -> None:
    """Raise ValueError unless `name` can be that of one file or folder, without a path; `key` is the config key.

    A name in a run's config becomes part of a path, which must not lead elsewhere."""
    if Path(name).name != name or name in ("", "..") or not name.isprintable():
        raise ValueError(f"{key} must be the name of a folder, without a path, found {name!r}")
