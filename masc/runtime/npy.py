"""Arrays in NumPy's format: written, large ones a part at a time, and read from a mapped file."""

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from masc.runtime.errors import InputError


def write_npy(file: BinaryIO, parts: Iterable[np.ndarray], num_rows: int, where: str) -> tuple[int, ...]:
    """Write `parts` (B, ...) one after another as one array (num_rows, ...), and return its shape.

    `where` names the file in messages. Raises InputError if a part has rows of another shape or type than the first, or
    if there are not `num_rows` rows."""
    writer = NpyWriter(file, num_rows, where)
    for part in parts:
        writer.append(part)
    return writer.finish()


class NpyWriter:
    """What `write_npy` does, for a caller that writes several files at once."""

    def __init__(self, file: BinaryIO, num_rows: int, where: str):
        self.file, self.num_rows, self.where = file, num_rows, where
        self.first, self.written = None, 0

    def append(self, part: np.ndarray) -> None:
        """Write the next rows."""
        if self.first is None:
            self.first = part[:0]
            header = {"descr": part.dtype.str, "fortran_order": False, "shape": (self.num_rows, *part.shape[1:])}
            np.lib.format.write_array_header_1_0(self.file, header)
        if (part.shape[1:], part.dtype) != (self.first.shape[1:], self.first.dtype):
            there, here = (f"{one.dtype} {one.shape[1:]}" for one in (self.first, part))
            raise InputError(f"a part of {self.where} has rows of {here}, the first has {there}")
        self.file.write(np.ascontiguousarray(part).data)
        self.written += len(part)

    def finish(self) -> tuple[int, ...]:
        """The shape of the array."""
        if self.first is None or self.written != self.num_rows:
            raise InputError(f"there are {self.written} rows for {self.where}, expected {self.num_rows}")
        return (self.num_rows, *self.first.shape[1:])


def save_npy(path: Path, array: np.ndarray) -> None:
    """Write one array (M, ...) to `path`, under a name of `replacing`.

    np.save does not say why the system refuses a write."""
    with path.open("wb") as file:
        write_npy(file, [array], len(array), str(path))


def check_length(mapped: np.ndarray) -> None:
    """Raise InputError if the file of a memory-mapped array was shortened since it was opened.

    The system kills a process that reads beyond the end of a mapped file. Arrays in memory pass."""
    if not isinstance(mapped, np.memmap):
        return
    size, expected = mapped.base.size(), mapped.offset + mapped.nbytes
    if size < expected:
        raise InputError(
            f"{mapped.filename} was shortened from {expected} to {size} bytes while it was read; the same command says "
            "how to repair it"
        )
