"""Marks of large artefacts that were verified: `.NAME.verified.json` beside a directory.

A mark holds the size, time and inode of the large files in the directory and the hash of its meta.json, which holds
the checksums. As long as all are the same, the files are not read whole again."""

import contextlib
import logging
from pathlib import Path
from typing import Any

from masc.runtime.errors import InputError
from masc.runtime.files import hash_file, write_json
from masc.runtime.reading import Damaged, read_json

logger = logging.getLogger(__name__)


def state_of(path: Path, *names: str) -> dict[str, Any]:
    """What changes when the files `names` or meta.json in the directory `path` change."""
    found = {name: (path / name).stat() for name in names}
    return {
        **{name: [status.st_size, status.st_mtime_ns, status.st_ino] for name, status in found.items()},
        "meta_sha256": hash_file(path / "meta.json"),
    }


def is_verified(path: Path, *names: str) -> bool:
    """Whether the files `names` in the directory `path` were verified since they and meta.json were written."""
    try:
        return read_json(_mark_of(path)) == state_of(path, *names)
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
