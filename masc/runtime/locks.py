"""A lock between processes, held on a file."""

import contextlib
import errno
import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from masc.runtime.errors import InputError

logger = logging.getLogger(__name__)
# What file systems without flock answer: some of Lustre, some of NFS.
UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextlib.contextmanager
def lock_file(path: Path, busy: str | None = None) -> Iterator[None]:
    """Hold the lock on the file `path`, which is created if it is missing and whose bytes are left alone.

    If another process holds the lock, raise InputError with the message `busy`; without `busy`, wait. The lock ends
    with its process. On a file system without locks, log one warning and continue without a lock."""
    # filelock's own fallback, a file that marks the lock, would outlive a killed process.
    lock = FileLock(path, blocking=busy is None, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(busy) from error
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        _warn_once(path.parent)
    try:
        yield
    finally:
        lock.release()


@cache
def _warn_once(folder: Path) -> None:
    logger.warning("the file system of %s has no file locks: do not write to it from two processes at once", folder)
