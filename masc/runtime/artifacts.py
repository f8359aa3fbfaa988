"""Artefacts that one stage writes and others read: versioned and hashed.

The header of every artefact holds its format version, the config that made it and the SHA-256 of its inputs. Nothing
is unpickled."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from masc.runtime.errors import InputError, MissingArtifact
from masc.runtime.files import replacing
from masc.runtime.reading import Damaged, Shape, check_array, damaged_is_missing, parse_json, read_npz


def hash_arrays(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 over names, types, shapes and bytes. It identifies an artefact independently of its file."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()


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


Schema = Mapping[str, tuple[str, Shape]]  # name of an array -> kinds and shape, as `open_array` takes them


@dataclass(frozen=True)
class _Header(Meta):
    """The header as it is stored."""

    format: str = ""
    version: int = 0


def load_npz(
    path: Path, kind: str, version: int, schema: Schema, *others: Schema
) -> tuple[dict[str, np.ndarray], Meta]:
    """The arrays and the header of an artefact written by `save_npz`; the arrays are as in `schema` or one of `others`.

    Raises MissingArtifact if the file is missing, damaged, of another kind or version, or altered."""
    path = Path(path)
    if not path.exists():
        raise MissingArtifact(kind, path)
    with damaged_is_missing(kind, path):
        arrays = read_npz(path, at_most=0)  # `save_npz` does not compress
        header = _header_of(arrays, path)
        if (header.format, header.version) != (f"masc-{kind}", version):
            raise Damaged(
                f"expected a masc-{kind} of format version {version}, found {header.format!r} version "
                f"{header.version} in {path}"
            )
        schemas = (schema, *others)
        names = [sorted(one) for one in schemas]
        if sorted(arrays) not in names:
            raise Damaged(f"expected the arrays {' or '.join(map(str, names))} in {path}, found {sorted(arrays)}")
        for name, (kinds, shape) in schemas[names.index(sorted(arrays))].items():
            check_array(path, arrays[name], kinds, shape)
        if hash_arrays(arrays) != header.sha256:
            raise Damaged(f"the contents of {path} do not match its own SHA-256")
    return arrays, Meta(kind, header.sha256, header.config, header.parents, header.about)


def _header_of(arrays: dict[str, np.ndarray], path: Path) -> _Header:
    """The header among the arrays of an artefact, which is taken out of them."""
    if "header" not in arrays:
        raise Damaged(f"{path} is not an artefact of this project: it has no header")
    return parse_json(str(check_array(path, arrays.pop("header"), "U", ())), _Header, path)


def reuse_npz(
    path: Path, kind: str, version: int, config: dict[str, Any], parents: dict[str, str], *schemas: Schema
) -> tuple[dict[str, np.ndarray], Meta] | None:
    """Arrays and header at `path` if the config and the parents are the same; None if the artefact must be made."""
    try:
        arrays, meta = load_npz(path, kind, version, *schemas)
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
    SCHEMA: ClassVar[Schema] = {"vectors": ("f", (None, None))}

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
        arrays, meta = load_npz(path, "codebook", Codebook.VERSION, Codebook.SCHEMA)
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
