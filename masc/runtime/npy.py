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
    first, written = None, 0
    for part in parts:
        if first is None:
            first = part
            header = {"descr": part.dtype.str, "fortran_order": False, "shape": (num_rows, *part.shape[1:])}
            np.lib.format.write_array_header_1_0(file, header)
        if (part.shape[1:], part.dtype) != (first.shape[1:], first.dtype):
            there, here = (f"{one.dtype} {one.shape[1:]}" for one in (first, part))
            raise InputError(f"a part of {where} has rows of {here}, the first has {there}")
        file.write(np.ascontiguousarray(part).data)
        written += len(part)
    if first is None or written != num_rows:
        raise InputError(f"there are {written} rows for {where}, expected {num_rows}")
    return (num_rows, *first.shape[1:])


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
