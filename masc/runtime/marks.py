"""Marks of large artefacts that were verified: `.NAME.verified.json` beside a directory.

A mark holds the size, time and inode of the largest file in the directory and the hash of its meta.json, which holds
the checksums. As long as both are the same, the file is not read whole again."""

import contextlib
import logging
from pathlib import Path
from typing import Any

from masc.runtime.errors import InputError
from masc.runtime.files import hash_file, write_json
from masc.runtime.reading import Damaged, read_json

logger = logging.getLogger(__name__)


def state_of(path: Path, name: str) -> dict[str, Any]:
    """What changes when the file `name` or meta.json in the directory `path` change."""
    status = (path / name).stat()
    return {
        name: [status.st_size, status.st_mtime_ns, status.st_ino],
        "meta_sha256": hash_file(path / "meta.json"),
    }


def is_verified(path: Path, name: str) -> bool:
    """Whether the file `name` in the directory `path` was verified since it and meta.json were written."""
    try:
        return read_json(_mark_of(path)) == state_of(path, name)
    except (Damaged, OSError):  # there is no mark, or a file is not readable, which is then said
        return False


def remember(path: Path, state: dict[str, Any]) -> None:
    """Remember that the directory `path` was verified in this state, taken before it was read."""
    try:
        write_json(_mark_of(path), state)
    except InputError as error:
        logger.info("%s is verified each time it is opened, because that cannot be remembered: %s", path, error)


def forget(path: Path) -> None:
    """Let the directory `path` be verified when it is opened next, if its mark can be removed."""
    with contextlib.suppress(OSError):
        _mark_of(path).unlink(missing_ok=True)


def _mark_of(path: Path) -> Path:
    path = Path(path).resolve()  # "." has no name
    return path.with_name(f".{path.name}.verified.json")
