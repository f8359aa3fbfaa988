"""Damaged copies of a sound file, and the law of every reader: whatever a file holds, reading it returns a sound value
or raises one InputError. No other error, no endless wait, no memory beyond what the file's size allows.

The tests named test_damage.py damage every kind of file that the project reads a few hundred to a few thousand times,
with fixed seeds: cut, altered or replaced bytes, files of other kinds, and JSON whose values have other types. What is
read from a file whose bytes were damaged is, where a hash covers it, what was written."""

import copy
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from masc.runtime.errors import InputError

HEADER = 2048  # bytes at the start in which half of the damage lies: there the size and type of everything stands
STRANGE = [
    *(None, True, -1, 0, 10**15, 2**70, 1.5, float("nan"), float("inf")),
    *("", "x", "\ud800", [], [None], {}, {"a": [[]]}),
]
# YAML that a trusting reader expands for hours.
MERGES = b"a0: &a0 {%s}\n" % b", ".join(b"k%d: 1" % key for key in range(10)) + b"".join(
    b"a%d: &a%d {<<: [%s]}\n" % (level, level, b", ".join([b"*a%d" % (level - 1)] * 10)) for level in range(1, 12)
)
OTHER_FILES = [
    *(b"", b"\0", b"\xff" * 100, b"PK\x03\x04", b"\x1f\x8b\x08\x00", b"\x93NUMPY", b"\x89PNG\r\n\x1a\n"),
    *(b"\xff\xd8\xff\xe0", b"null", b"[]", b"{}", b"1", b'"x"', b"[" * 100_000, b"{" * 5_000, b"9" * 10_000),
    *(b"- a\n- b\n", b"a: &a [*a]\n", MERGES, b"\x80\x04."),
]


def damaged(whole: bytes, rng: np.random.Generator, count: int) -> Iterator[bytes]:
    """`count` copies, each with one damage at a random place; before them, files of other kinds and the lengths that
    cut the file in an early byte."""
    yield from OTHER_FILES
    for length in range(0, min(len(whole), 64), 7):
        yield whole[:length]
    for _ in range(count):
        place = int(rng.integers(min(len(whole), HEADER) if rng.random() < 0.5 else len(whole)))
        length = int(rng.integers(1, 16))
        head, span, tail = whole[:place], whole[place : place + length], whole[place + length :]
        match rng.integers(7):
            case 0:
                yield head
            case 1:
                yield head + bytes([span[0] ^ 1 << int(rng.integers(8))]) + span[1:] + tail
            case 2:
                yield head + rng.bytes(len(span)) + tail
            case 3:
                yield head + bytes(len(span)) + tail
            case 4:
                yield head + tail
            case 5:
                yield head + span + span + tail
            case 6:
                yield whole + rng.bytes(length)


def retyped(content: Any) -> Iterator[Any]:
    """Copies of plain data in which one value, at any depth, is of another type or lies, or is missing."""
    for place in _places(content):
        for value in STRANGE:
            yield _with(content, place, value)
        if place:
            yield _with(content, place, _with)


def _places(content: Any, before: tuple = ()) -> Iterator[tuple]:
    """The path of every value; of a long list, of its first and last item."""
    yield before
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _places(value, (*before, key))
    elif isinstance(content, list):
        for index in sorted({0, len(content) - 1} & set(range(len(content)))):
            yield from _places(content[index], (*before, index))


def _with(content: Any, place: tuple, value: Any) -> Any:
    """A copy with another value at a place; `_with` itself stands for no value."""
    if not place:
        return value
    changed = copy.deepcopy(content)
    holder = changed
    for key in place[:-1]:
        holder = holder[key]
    if value is _with:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value
    return changed


def retyped_json(whole: bytes) -> Iterator[bytes]:
    """Copies of a JSON file, as `retyped`."""
    return (json.dumps(content).encode("utf-8", "surrogatepass") for content in retyped(json.loads(whole)))


@dataclass(frozen=True)
class Kind:
    """A kind of file: its place, what reads it, and what must come back unless the read fails."""

    path: Path
    read: Callable[[], Any]
    count: int = 1000  # damaged copies
    is_json: bool = False
    is_hashed: bool = False  # the read returns the contents, which a hash protects


def survives(kind: Kind, copies: Iterator[bytes]) -> tuple[int, int]:
    """Read every copy; return how many were read and how many refused."""
    whole, read, refused = kind.path.read_bytes(), 0, 0
    sound = repr(kind.read()) if kind.is_hashed else None
    try:
        for number, copy in enumerate(copies):
            kind.path.unlink(missing_ok=True)
            kind.path.write_bytes(copy)
            try:
                found = kind.read()
            except InputError as error:
                assert 0 < len(str(error)) < 4000, (number, copy[:200])
                refused += 1
            except Exception as error:
                pytest.fail(f"copy {number} of {kind.path.name} raises {type(error).__name__}: {error}\n{copy[:300]!r}")
            else:
                assert sound is None or repr(found) == sound, (number, copy[:200])
                read += 1
    finally:
        kind.path.write_bytes(whole)
    return read, refused


def check(kind: Kind) -> None:
    """Damage the bytes of a kind of file, and its values if it is JSON; the sound file is read before and after."""
    kind.read()
    _, refused = survives(kind, damaged(kind.path.read_bytes(), np.random.default_rng(0), kind.count))
    assert refused, "no damage was noticed: is the file read?"
    if kind.is_json:
        structure = Kind(kind.path, kind.read)
        survives(structure, retyped_json(kind.path.read_bytes()))
    kind.read()


def npz_with_headers(path: Path) -> Iterator[bytes]:
    """Copies of an artefact whose header is another: the arrays and their hash stay sound."""
    with np.load(path) as archive:
        arrays = dict(archive)
    for header in retyped(json.loads(str(arrays.pop("header")))):
        file = io.BytesIO()
        np.savez(file, header=np.array(json.dumps(header)), **arrays)
        yield file.getvalue()


def plain(value: Any) -> Any:
    """Arrays as lists, so that two reads compare."""
    return value.tolist() if isinstance(value, np.ndarray) else value
