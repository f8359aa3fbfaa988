"""Files that may be damaged, of another kind, or hostile: whatever they hold, reading them returns a checked value or
raises `Damaged`.

A size that a file claims is compared with the bytes that are there before anything is allocated. Nothing is unpickled,
and no name in a file is imported. The parsers below these functions raise errors of any type for damaged bytes;
`_parsing` is the one place that catches them all."""

import codecs
import contextlib
import io
import json
import math
import os
import stat
import zipfile
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from masc.runtime.errors import InputError, MissingArtifact, printable

MIB = 2**20
MAX_YAML_VALUES = 100_000  # an alias of YAML can stand for any number of values
MAX_MEMBERS = 1000  # of a .npz
# Files that often stand in the place of a download: their first bytes, and what they are with what to do.
OTHER_KINDS = (
    (b"version https://git-lfs", "a pointer of git-lfs, to be replaced by `git lfs pull` in its repository"),
    (b"\x1f\x8b\x08", "a file compressed by gzip, to be unpacked by `gunzip`"),
    *((start, "a web page") for start in (b"<!doctype", b"<html", b"<head", b"<!--", b"<?xml")),
)
BLANK = codecs.BOM_UTF8 + codecs.BOM_UTF16_LE + b"\0 \t\r\n"  # bytes that may stand before text
BUFFER = 4 * MIB  # bytes inflated at once


class Damaged(InputError):
    """A file that is missing, cannot be read, or holds something else than it should.

    The message says what was expected, what was found and where; `advising` adds what to do."""


@contextlib.contextmanager
def advising(advice: str) -> Iterator[None]:
    """Add what to do to the message of a `Damaged` that is raised inside."""
    try:
        yield
    except Damaged as error:
        raise Damaged(f"{error}; {advice}") from error


@contextlib.contextmanager
def damaged_is_missing(kind: str, path: Path, remove: bool = False, **facts: Any) -> Iterator[None]:
    """Raise MissingArtifact, of the artefact `kind` at `path`, for a `Damaged` that is raised inside."""
    try:
        yield
    except Damaged as error:
        raise MissingArtifact(kind, path, str(error), remove=remove, **facts) from error


@contextlib.contextmanager
def _parsing(path: Path, expected: str) -> Iterator[None]:
    """Raise `Damaged` for any error that a parser raises inside."""
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise Damaged(f"expected {expected} in {path}, found more than the memory of this machine holds") from error
    except Exception as error:
        raise Damaged(
            f"expected {expected} in {path}, which is damaged or another kind of file ({reason(error, path)})"
        ) from error


def other_kind(path: Path) -> str | None:
    """What stands in the place of a download, by its first bytes, with its remedy; None if it is none of OTHER_KINDS.

    Raises `Damaged` as `open_file` does."""
    with open_file(path) as (file, _):
        start = file.read(256)
    text = start.replace(b"\0", b"").lstrip(BLANK).lower()  # UTF-16 has a zero byte beside each letter
    is_named = path.suffix in (".gz", ".tgz")  # gzip is its own kind
    found = (kind for begin, kind in OTHER_KINDS if start.startswith(begin) or text.startswith(begin))
    return next((kind for kind in found if not (is_named and "gzip" in kind)), None)


def reason(error: Exception, path: Path | None = None) -> str:
    """The message of an error in one line of at most 200 characters, all printable; its type if it has no message.

    If reading the file at `path` failed and it is one of OTHER_KINDS, that is the reason."""
    with contextlib.suppress(Damaged):
        if path is not None and (kind := other_kind(path)):
            return f"it is {kind}"
    return printable(" ".join(str(error).split())[:200] or type(error).__name__)


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file open for reading, and its size in bytes. Raises `Damaged` for anything else, such as a folder."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Damaged(f"expected a file at {path}, found a device or a pipe")
            yield file, status.st_size
    except FileNotFoundError as error:
        raise Damaged(f"no file at {path}") from error
    except IsADirectoryError as error:
        raise Damaged(f"expected a file at {path}, found a folder") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        if isinstance(error, InputError):
            raise
        raise Damaged(f"cannot read {path} ({getattr(error, 'strerror', None) or reason(error)})") from error


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # opening a pipe would wait for a writer


def read_bytes(path: Path, at_most: int = 1024 * MIB) -> bytes:
    """The bytes of a file; `Damaged` if it is missing, cannot be read, or is larger than `at_most` bytes."""
    with open_file(path) as (file, size):
        if size > at_most:
            raise Damaged(f"expected at most {at_most} bytes in {path}, found {size}")
        return file.read(size)


def read_text(path: Path, at_most: int = 1024 * MIB) -> str:
    """The text of a file in UTF-8; `Damaged` if it is missing, too large, or something else."""
    data = read_bytes(path, at_most)
    _refuse_utf16(data, path)
    with _parsing(path, "text in UTF-8"):
        return data.decode("utf-8")


def _refuse_utf16(data: bytes, path: Path) -> None:
    """Raise `Damaged` for text that begins with the byte order mark of UTF-16."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise Damaged(f"expected text in UTF-8 in {path}, found UTF-16; save it as UTF-8")


def read_json(path: Path, schema: Any = dict[str, Any], at_most: int = 64 * MIB) -> Any:
    """The content of a JSON file as a `schema`: a dataclass, a TypedDict or an annotation such as `list[str]`.

    No value is converted to another type. Unknown keys are dropped by a dataclass. Raises `Damaged` with the place of
    the first value that does not fit."""
    return parse_json(read_bytes(path, at_most), schema, path)


def parse_json(data: str | bytes, schema: Any, path: Path) -> Any:
    """JSON text as a `schema`, as `read_json` does; `path` is the file in messages.

    Bytes are text in UTF-8, with or without a byte order mark."""
    from pydantic import ValidationError

    if isinstance(data, bytes):
        _refuse_utf16(data, path)
        data = data.removeprefix(codecs.BOM_UTF8)
    with _parsing(path, "JSON"):
        try:
            return _adapter(schema).validate_json(data, strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            place = ".".join(map(str, first["loc"]))
            found = f" at {place}, found {first['input']!r:.60}" if place else ""
            raise Damaged(f"{path} does not hold what it should ({first['msg']}{found})") from error


def check_json(content: Any, schema: Any, path: Path) -> Any:
    """A value made of plain types as a `schema`, as `read_json` does; `path` is the file in messages."""
    with _parsing(path, "plain values"):
        text = json.dumps(content)
    return parse_json(text, schema, path)


@cache
def _adapter(schema: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(schema)


def read_yaml(path: Path, at_most: int = MIB // 16) -> dict[str, Any]:
    """The mapping in a YAML file, made of plain values with text as keys.

    Raises `Damaged` for a tag of another language, an alias that repeats values without end, or any other content."""
    text = read_text(path, at_most)
    with _parsing(path, "YAML of plain values"):
        content = _load_yaml(text)
    if not isinstance(content, dict):
        raise Damaged(f"expected YAML of keys and values in {path}, found {_kind(content)}")
    waiting, count = [content], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > MAX_YAML_VALUES:
            raise Damaged(f"expected at most {MAX_YAML_VALUES} values in {path}, found more")
        if isinstance(value, dict):
            strange = [key for key in value if not isinstance(key, str)]
            if strange:
                raise Damaged(f"expected text as keys in {path}, found {strange[0]!r}")
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
        elif not isinstance(value, str | int | float | None):
            raise Damaged(f"expected plain values in {path}, found {_kind(value)}")
    return content


def _load_yaml(text: str) -> Any:
    """The content of YAML text without tags of Python and without merge keys: a few of these take hours to expand."""
    import yaml

    class Loader(yaml.SafeLoader):
        def flatten_mapping(self, node: yaml.MappingNode) -> None:
            if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
                raise ValueError("a merge key, <<")

    return yaml.load(text, Loader)  # of SafeLoader's kind


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


Shape = tuple[int | None, ...]  # of an array; None: any length


def open_array(path: Path, kinds: str, shape: Shape | None, mapped: bool = False) -> np.ndarray:
    """The array in a .npy file, memory-mapped and read-only if `mapped`.

    `kinds` are the letters of NumPy's kinds that are allowed, such as `iu`; any shape is allowed if `shape` is None.
    Raises `Damaged` for another type or shape, and for a header that does not fit the size of the file."""
    with open_file(path) as (file, size):
        with _parsing(path, "an array in NumPy's format"):
            found, order, dtype = _read_header(file)
        _check_array(path, dtype, found, kinds, shape)
        count, start = math.prod(found), file.tell()
        if start + count * dtype.itemsize != size:
            raise Damaged(
                f"expected {start + count * dtype.itemsize} bytes in {path} for {dtype} {found}, found {size}; "
                "it is truncated, or its header is wrong"
            )
        if mapped and count:
            with _parsing(path, "an array in NumPy's format"):
                return np.memmap(path, dtype, "r", start, found, order)
        return np.fromfile(file, dtype, count).reshape(found, order=order)


def check_array(path: Path, array: np.ndarray, kinds: str, shape: Shape) -> np.ndarray:
    """The array unchanged; `Damaged` if its type is none of `kinds` or its shape is another. `path` is its file."""
    _check_array(path, array.dtype, array.shape, kinds, shape)
    return array


def _check_array(path: Path, dtype: np.dtype, found: tuple[int, ...], kinds: str, shape: Shape | None) -> None:
    lengths = found if shape is None else shape
    fits = len(found) == len(lengths) and all(
        wanted in (None, there) for wanted, there in zip(lengths, found, strict=True)
    )
    if dtype.kind not in kinds or not fits:
        names = {"iu": "whole numbers", "u": "whole numbers from 0 up", "f": "floats", "b": "booleans", "U": "text"}
        wanted = names.get(kinds, f"numbers of NumPy's kinds {kinds}")
        of_shape = "" if shape is None else f" of shape {_shape_text(shape)}"
        raise Damaged(f"expected {wanted}{of_shape} in {path}, found {dtype} {found}")


def _shape_text(shape: Shape) -> str:
    return f"({', '.join('any' if length is None else str(length) for length in shape)})"


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], str, np.dtype]:
    """Shape, order (C or F) and type of the array whose .npy file begins here. Raises errors of any type."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version} of the format")
    shape, is_fortran, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError("Python objects, which are never read")
    if min(shape, default=0) < 0:
        raise ValueError(f"the shape {shape}")
    return tuple(map(int, shape)), "F" if is_fortran else "C", dtype


def read_npz(path: Path, names: Collection[str] | None = None, at_most: int = 1024 * MIB) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name: all, or those of `names` that it holds.

    Raises `Damaged` if a header does not fit the size of its member, before that is read, and if compressed members are
    larger than `at_most` bytes together: a few kilobytes can be inflated to gigabytes."""
    arrays: dict[str, np.ndarray] = {}
    with (
        open_file(path) as (file, size),
        _parsing(path, "arrays in NumPy's npz format"),
        zipfile.ZipFile(file) as archive,
    ):
        members, stored, inflated = archive.infolist(), 0, 0
        if len(members) > MAX_MEMBERS:
            raise Damaged(f"expected at most {MAX_MEMBERS} arrays in {path}, found {len(members)}")
        for member in members:
            name = member.filename.removesuffix(".npy")
            if names is not None and name not in names:
                continue
            if name in arrays:
                raise Damaged(f"{path} holds two arrays with the name {name!r}")
            if member.compress_type == zipfile.ZIP_STORED:
                stored += member.file_size
            else:
                inflated += member.file_size
            if inflated and not at_most:
                raise Damaged(f"the arrays in {path} are compressed, which this project never does; save them again")
            if stored > size or inflated > at_most:
                raise Damaged(
                    f"the members of {path} claim {stored + inflated} bytes; expected at most the {size} bytes of the "
                    f"file, or {at_most} if they are compressed"
                )
            with archive.open(member) as stream:
                arrays[name] = _read_member(stream, member.file_size)
    return arrays


def _read_member(stream: IO[bytes], size: int) -> np.ndarray:
    """The array of a member with `size` bytes, header included. Raises errors of any type."""
    counted = io.BufferedReader(stream, BUFFER)
    shape, order, dtype = _read_header(counted)
    header = counted.tell()
    if header + math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"its header claims {dtype} {shape}, its member has {size} bytes")
    array = np.empty(shape, dtype, order)
    rest = memoryview(array.reshape(-1, order="A").view(np.uint8)) if array.size else memoryview(b"")
    while rest:
        count = counted.readinto(rest[:BUFFER])
        if not count:
            raise EOFError(f"{len(rest)} bytes are missing")
        rest = rest[count:]
    if counted.read(1):
        raise ValueError("a member is longer than its header says")
    return array
