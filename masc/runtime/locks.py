"""Locks between processes, held on files. A lock ends with its process, so no lock outlives a killed one."""

import contextlib
import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from masc.runtime.errors import InputError
from masc.runtime.writing import make_folder, writing

logger = logging.getLogger(__name__)
# What file systems without flock answer: some of Lustre, some of NFS.
UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
BUSY = (errno.EAGAIN, errno.EACCES)
PAUSE = 0.05  # seconds between two looks at a lock that another process holds
_held: set[int] = set()  # open files of the locks of this process
ABANDONED = 24 * 3600  # seconds; without locks, a file of this age counts as left behind


@contextlib.contextmanager
def lock_file(path: Path, busy: str | None = None, waiting: str | None = None) -> Iterator[None]:
    """Hold the lock on the file `path`, which is created if it is missing and whose bytes are left alone.

    If another process holds the lock, raise InputError with the message `busy`; without `busy`, log `waiting` and wait.
    On a file system without locks, log one warning and continue without a lock. Raises InputError if the file cannot be
    opened."""
    make_folder(Path(path).parent)
    with writing(path):
        while (descriptor := _open_locked(path, busy)) is None:
            if waiting is not None:
                logger.info(waiting)
                waiting = None
            time.sleep(PAUSE)
    _held.add(descriptor)
    try:
        yield
    finally:
        _let_go(descriptor)


def _open_locked(path: Path, busy: str | None) -> int | None:
    """The open file with its lock; None if the caller must try again."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        is_held = _flock(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            os.close(descriptor)
            raise
        _warn_once(Path(path).parent)
        return descriptor
    if is_held and _is_at(descriptor, path):
        return descriptor
    os.close(descriptor)
    if not is_held and busy is not None:
        raise InputError(busy)
    return None


def claim(path: Path) -> int | None:
    """Create the file `path` and hold its lock: the open file, or None if a living process has claimed it.

    `release` ends the claim. A file that a dead process left is taken over; on a file system without locks, only once
    it is a day old. Raises OSError if the file cannot be created."""
    while True:
        is_new = True
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            is_new = False
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            except FileNotFoundError:  # released since
                continue
            except PermissionError:  # of another user
                return None
        try:
            is_held = _flock(descriptor)
        except OSError:  # no locks here; a write does not fail for that
            is_held = is_new or time.time() - os.fstat(descriptor).st_mtime > ABANDONED
        if is_held and _is_at(descriptor, path):
            _held.add(descriptor)
            return descriptor
        os.close(descriptor)
        if not is_held:
            return None


def release(path: Path, descriptor: int) -> None:
    """Delete the file of a claim and end the claim."""
    with contextlib.suppress(OSError):  # the next start removes what stays
        Path(path).unlink()
    _let_go(descriptor)


def _let_go(descriptor: int) -> None:
    """Close the file of a lock, unless it is closed because this process was forked from the one that holds it."""
    if descriptor in _held:
        _held.remove(descriptor)
        os.close(descriptor)


def _forget() -> None:
    """Close the files of all locks. A forked process, such as one that decodes images, would keep them locked after the
    death of the process that holds them."""
    for descriptor in list(_held):
        _let_go(descriptor)


os.register_at_fork(after_in_child=_forget)


def _flock(descriptor: int) -> bool:
    """Take the lock on an open file, unless another process holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in BUSY:
            raise
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`: another process may have deleted or replaced it since."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


@cache
def _warn_once(folder: Path) -> None:
    logger.warning("the file system of %s has no file locks: do not write to it from two processes at once", folder)
