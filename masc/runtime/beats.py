"""Beats by which the launcher of several processes sees that each of them makes progress.

A launcher gives each process two counters in memory that both share: one of its rests, one of its beats since the last
rest. It expects each beat to be followed by another, unless a rest comes. After a rest the process may be silent for as
long as it takes: the first step compiles, a validation or a save begins. In a process without a launcher nothing
happens."""

import mmap
import struct

PLACE = struct.Struct("QQ")  # the counters of one process: rests, beats since the last rest

_counters: memoryview | None = None


def connect(file: int, index: int) -> None:
    """Count the beats of this process at place `index` of the file, which its launcher has opened."""
    global _counters
    _counters = memoryview(mmap.mmap(file, 0)).cast("Q")[2 * index : 2 * index + 2]


def beat() -> None:
    """Say that this process makes progress, and will soon say so again: after a micro-batch."""
    if _counters is not None:
        _counters[1] += 1


def rest() -> None:
    """Say that what follows may take long: until the next beat nobody waits for one."""
    if _counters is not None:
        _counters[1] = 0
        _counters[0] += 1
