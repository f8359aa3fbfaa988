"""Beats by which the launcher of several processes sees that each of them makes progress.

A launcher gives each process three numbers in memory that both share: its rests, its beats since the last rest, and the
writes that must not be cut short. It expects each beat to be followed by another, unless a rest comes. After a rest the
process may be silent for as long as it takes: the first step compiles, a validation or a save begins. In a process
without a launcher nothing happens."""

import contextlib
import mmap
import struct
from collections.abc import Iterator

PLACE = struct.Struct("QQQ")  # the numbers of one process: rests, beats since the last rest, writes under way

_counters: memoryview | None = None


def connect(file: int, index: int) -> None:
    """Count the beats of this process at place `index` of the file, which its launcher has opened."""
    global _counters
    _counters = memoryview(mmap.mmap(file, 0)).cast("Q")[3 * index : 3 * index + 3]


def beat() -> None:
    """Say that this process makes progress, and will soon say so again: after a micro-batch."""
    if _counters is not None:
        _counters[1] += 1


def rest() -> None:
    """Say that what follows may take long: until the next beat nobody waits for one."""
    if _counters is not None:
        _counters[1] = 0
        _counters[0] += 1


def is_writing() -> bool:
    """Whether this process writes something that must not be cut short."""
    return _counters is not None and _counters[2] > 0


@contextlib.contextmanager
def writes() -> Iterator[None]:
    """Inside, this process writes what would be lost if it were ended now: its launcher gives it more time."""
    if _counters is not None:
        _counters[2] += 1
    try:
        yield
    finally:
        if _counters is not None:
            _counters[2] -= 1
