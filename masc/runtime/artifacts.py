"""Files that one stage writes and others read: versioned, hashed, written completely or not at all.

The header of every artefact holds its format version, the config that made it and the SHA-256 of its inputs. Nothing
is unpickled."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


class InputError(ValueError):
    """An error that the user can correct: a missing file, a value out of range, a mismatch.

    The message says what was expected, what was found, where, and what to do. Scripts print it without a traceback."""


class MissingArtifact(InputError):
    """An artefact that is missing, or that must be made again: truncated, altered, or made from other inputs.

    The message says what is wrong and where. `scripts/stage.py` adds the command that makes the artefact: it finds the
    command by `kind` and fills it with `facts` (tokenizer, data, tree, k, ...) and `overrides` (config values). A fact
    that is None is left out of the command. A caller that knows more facts adds them by `naming`."""

    def __init__(
        self,
        kind: str,
        path: Path,
        problem: str = "",
        *,
        remove: bool = False,
        overrides: dict[str, Any] | None = None,
        first: Sequence["MissingArtifact"] = (),
        **facts: Any,
    ):
        """`problem` is the message, by default that there is no `kind` at `path`. `remove` says that the file or folder
        at `path` must be deleted before the command; the commands of `first` come before this one."""
        super().__init__(problem or f"no {kind} at {path}")
        self.kind, self.path, self.remove = kind, Path(path), remove
        self.facts, self.overrides, self.first = facts, overrides or {}, first

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle: processes send errors to one another."""
        return _missing_artifact, (self.kind, self.path, str(self), self.remove, self.overrides, self.first, self.facts)

    @classmethod
    def all_of(cls, problem: str, missing: Sequence["MissingArtifact"]) -> "MissingArtifact":
        """One error for several artefacts, in the order in which they must be made."""
        *first, last = missing
        options = {"remove": last.remove, "overrides": last.overrides, "first": first}
        return cls(last.kind, last.path, problem, **options, **last.facts)


def _missing_artifact(
    kind: str,
    path: Path,
    problem: str,
    remove: bool,
    overrides: dict[str, Any],
    first: Sequence[MissingArtifact],
    facts: dict[str, Any],
) -> MissingArtifact:
    return MissingArtifact(kind, path, problem, remove=remove, overrides=overrides, first=first, **facts)


@contextlib.contextmanager
def naming(overrides: dict[str, Any] | None = None, **facts: Any) -> Iterator[None]:
    """Add facts and overrides to a MissingArtifact that is raised inside; those that it has already stay."""
    try:
        yield
    except MissingArtifact as error:
        error.facts = facts | error.facts
        error.overrides = (overrides or {}) | error.overrides
        raise


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


def hash_arrays(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 over names, types, shapes and bytes. It identifies an artefact independently of its file."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Meta:
    """The header of an artefact."""

    kind: str
    sha256: str
    config: dict[str, Any] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)  # kind of parent -> its SHA-256
    about: dict[str, Any] = field(default_factory=dict)  # how it was made; never compared


def save_npz(
    path: Path,
    kind: str,
    version: int,
    arrays: dict[str, np.ndarray],
    config: dict[str, Any],
    parents: dict[str, str],
    about: dict[str, Any] | None = None,
) -> Meta:
    """Write an artefact as one .npz file and return its header."""
    meta = Meta(kind, hash_arrays(arrays), config, parents, about or {})
    header = json.dumps({"format": f"masc-{kind}", "version": version, **vars(meta)})
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, header=np.array(header), **arrays)
    return meta


def load_npz(path: Path, kind: str, version: int) -> tuple[dict[str, np.ndarray], Meta]:
    """The arrays and the header of an artefact written by `save_npz`.

    Raises MissingArtifact if the file is missing, truncated, of another kind or version, or altered."""
    path = Path(path)
    if not path.exists():
        raise MissingArtifact(kind, path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        header = json.loads(str(arrays.pop("header")))
    except (zipfile.BadZipFile, EOFError, OSError, KeyError, ValueError) as error:
        problem = f"{path} is not a {kind} of this project, or is truncated ({error})"
        raise MissingArtifact(kind, path, problem) from error
    if header.get("format") != f"masc-{kind}" or header.get("version") != version:
        raise MissingArtifact(
            kind,
            path,
            f"expected a masc-{kind} of format version {version}, found {header.get('format')!r} version "
            f"{header.get('version')} in {path}",
        )
    meta = Meta(kind, header["sha256"], header["config"], header["parents"], header.get("about", {}))
    if hash_arrays(arrays) != meta.sha256:
        raise MissingArtifact(kind, path, f"the contents of {path} do not match its own SHA-256")
    return arrays, meta


def reuse_npz(
    path: Path, kind: str, version: int, config: dict[str, Any], parents: dict[str, str]
) -> tuple[dict[str, np.ndarray], Meta] | None:
    """Arrays and header at `path` if the config and the parents are the same; None if the artefact must be made."""
    try:
        arrays, meta = load_npz(path, kind, version)
    except InputError:
        return None
    return (arrays, meta) if (meta.config, meta.parents) == (config, parents) else None


def require_parent(meta: Meta, kind: str, sha256: str, where: Path) -> None:
    """Raise MissingArtifact unless the artefact `meta` was made from the `kind` whose SHA-256 is given."""
    if meta.parents.get(kind) != sha256:
        raise MissingArtifact(
            meta.kind,
            where,
            f"the {meta.kind} was made from the {kind} {str(meta.parents.get(kind))[:12]}, but the {kind} in use is "
            f"{sha256[:12]} ({where}); make the {meta.kind} again",
        )


@dataclass(frozen=True)
class Codebook:
    """The effective vectors of a tokenizer, as the quantizer compares them; they may differ from its raw weights."""

    vectors: np.ndarray  # (N, d) float32
    meta: Meta

    VERSION = 1

    @property
    def num_tokens(self) -> int:
        return len(self.vectors)

    @staticmethod
    def save(path: Path, vectors: np.ndarray, config: dict[str, Any], parents: dict[str, str]) -> "Codebook":
        """Write the vectors (N, d); raises InputError unless they are finite, two-dimensional, N >= 2."""
        vectors = check_vectors(vectors, str(path))
        return Codebook(vectors, save_npz(path, "codebook", 1, {"vectors": vectors}, config, parents))

    @staticmethod
    def load(path: Path) -> "Codebook":
        """The codebook at `path`; MissingArtifact if there is none that can be read."""
        arrays, meta = load_npz(path, "codebook", Codebook.VERSION)
        return Codebook(check_vectors(arrays["vectors"], str(path)), meta)


def check_vectors(vectors: np.ndarray, where: str) -> np.ndarray:
    """The vectors as float32 (N, d), N >= 2, all finite; InputError otherwise."""
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or len(vectors) < 2 or vectors.dtype.kind != "f":
        raise InputError(
            "a codebook must be a float array (N, d) with at least 2 rows, "
            f"found {vectors.dtype} {vectors.shape} in {where}"
        )
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        raise InputError(
            f"codebook row {int(bad.argmax())} and {int(bad.sum()) - 1} others are not finite in {where}; "
            "the tokenizer that made it is broken"
        )
    return np.ascontiguousarray(vectors, np.float32)
