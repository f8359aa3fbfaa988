"""Damaged copies of a sound file: cut, altered or replaced bytes, and JSON whose values have other types."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

HEADER = 2048  # bytes at the start in which half of the damage lies: there the size and type of everything stands
STRANGE = [
    *(None, True, -1, 0, 10**15, 2**70, 1.5, float("nan"), float("inf")),
    *("", "x", "\ud800", [], [None], {}, {"a": [[]]}),
]
OTHER_FILES = [
    *(b"", b"\0", b"\xff" * 100, b"PK\x03\x04", b"\x1f\x8b\x08\x00", b"\x93NUMPY", b"\x89PNG\r\n\x1a\n"),
    *(b"\xff\xd8\xff\xe0", b"null", b"[]", b"{}", b"1", b'"x"', b"[" * 100_000, b"{" * 5_000, b"9" * 10_000),
    *(b"- a\n- b\n", b"a: &a [*a]\n", b"\x80\x04."),
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
