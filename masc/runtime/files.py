"""Files that are written completely or not at all."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from masc.runtime.errors import InputError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it on success and removed on failure.

    An existing directory is first renamed; `recover` restores it if the process dies before the second rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        if path.is_dir():
            aside = _aside(path)
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            temporary.rename(path)
            shutil.rmtree(aside)
        else:
            temporary.replace(path)
    except Exception as error:
        if _is_full(error):
            raise InputError(
                f"no space left while writing {path} "
                f"({shutil.disk_usage(path.parent).free / 2**20:.0f} MiB free on its disk); nothing was kept. "
                "Free some space and run the same command again: it continues from its last files"
            ) from error
        raise
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def recover(path: Path) -> None:
    """Restore the directory that `replacing` had renamed when its process died."""
    if not path.exists() and _aside(path).exists():
        _aside(path).rename(path)


def _is_full(error: Exception) -> bool:
    """Whether a write failed because the disk is full; safetensors and torch say so only in the message."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    words = ("No space left", "os error 28", "File too large", "os error 27", "inline_container")
    return any(word in str(error) for word in words)


def write_text(path: Path, text: str) -> None:
    """Write a text file completely or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file completely or not at all, keys in the given order."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
