"""Packed codes: the tokens of many images in one memory-mapped file, with labels and groups.

A directory holds codes.npy (M images, V views, T positions; uint16, uint32 from N > 65,536), labels.npy, groups.npy,
used.npy (whether each token occurs), captions.json (for text conditioning), keys.txt (the name of each image),
failures.txt (images that could not be read, if any), the near codes of `near` (if they were asked for) and meta.json
with the class names and a checksum of each shard. `verify` compares the tokens with the checksums, and `marks`
remembers it."""

import contextlib
import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from masc.runtime.artifacts import hash_arrays
from masc.runtime.errors import InputError, MissingArtifact
from masc.runtime.files import hash_file, replacing, write_json, write_text
from masc.runtime.marks import forget
from masc.runtime.near import NEAR, NearCodes, NearMeta, open_near, write_near
from masc.runtime.npy import check_length, save_npy, write_npy
from masc.runtime.reading import Damaged, damaged_is_missing, open_array, read_json, read_text

logger = logging.getLogger(__name__)
FORMAT, VERSION = "masc-codes", 2
CODES = "codes.npy"
SHARD_SIZE = 1024  # images that share a checksum


@dataclass(frozen=True, eq=False)
class Codes:
    """Tokens of M images in V views, with labels, groups and names of the classes."""

    tokens: np.ndarray  # (M, V, T) uint16 or uint32, memory-mapped
    labels: np.ndarray  # (M,) int64
    groups: np.ndarray  # (M,) int64: variants of one image share a group
    class_names: list[str]
    num_tokens: int  # N
    codebook_sha256: str
    sha256: str  # SHA-256 of codes.npy
    config: dict[str, Any]
    is_used: np.ndarray | None = None  # (N,) bool: whether each token occurs; None in older codes
    path: Path = Path()  # their directory
    near: NearCodes | None = None  # (M, V, T, m), memory-mapped; None if they were not asked for
    near_sha256: str | None = None  # of the near codes

    def read(self, images: np.ndarray, views: np.ndarray | int) -> np.ndarray:
        """Tokens of images, each in its view: (B,), (B,) -> (B, T) int64.

        Raises InputError if the file was damaged since it was opened: it is shorter, or a token is not below N."""
        check_length(self.tokens)
        return self._checked(self.tokens[images, views], images, views, CODES)

    def read_near(
        self, images: np.ndarray, views: np.ndarray | int, count: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Near codes of images, each in its view, and their squared distances: (B,), (B,) -> (B, T, m) int64, float32.

        m is `count`, or all that there are if it is None. Raises MissingArtifact if there are fewer or none, InputError
        as `read`."""
        self.require_near(count or 1)
        for array in self.near:
            check_length(array)
        ids = self._checked(self.near.ids[images, views, :, :count], images, views, NEAR)
        return ids, self.near.distances[images, views, :, :count].astype(np.float32)

    def require_near(self, count: int) -> None:
        """Raise MissingArtifact unless there are `count` near codes of each token."""
        if self.near is None or self.near.ids.shape[-1] < count:
            found = "no" if self.near is None else f"only {self.near.ids.shape[-1]}"
            problem = f"{self.path} holds {found} near codes of each token"
            raise MissingArtifact("codes", self.path, problem, overrides={"near": count if count > 1 else 8})

    def _checked(self, tokens: np.ndarray, images: np.ndarray, views: np.ndarray | int, name: str) -> np.ndarray:
        """Tokens (B, ...) that were read from the file `name`, as int64; InputError if one is not below N."""
        if tokens.size and tokens.max() >= self.num_tokens:  # on a GPU the embedding would end in a device assert
            row = int((tokens >= self.num_tokens).reshape(len(tokens), -1).any(1).argmax())
            view = views if isinstance(views, int) else views[row]
            forget(self.path)
            raise InputError(
                f"image {images[row]}, view {view} of {self.path / name} holds the token {tokens[row].max()}, "
                f"outside the codebook of {self.num_tokens}, while it was read; the same command verifies all codes, "
                "and continues or says how to make them again"
            )
        return tokens.astype(np.int64)

    @property
    def num_images(self) -> int:
        return len(self.labels)

    @property
    def num_positions(self) -> int:
        return self.tokens.shape[2]


def code_type(num_tokens: int) -> np.dtype:
    """The smallest type for tokens below N that both NumPy and torch read."""
    return np.dtype(np.uint16 if num_tokens <= 2**16 else np.uint32)


def check_tokens(tokens: np.ndarray, num_tokens: int, where: str) -> None:
    """Raise InputError unless all tokens lie in 0..N-1."""
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < num_tokens:
        wrong = int(tokens.min()) if tokens.min() < 0 else int(tokens.max())
        raise InputError(f"token {wrong} is outside the codebook of {num_tokens} ({where})")


def save_codes(
    path: Path,
    tokens: np.ndarray | Iterable[np.ndarray],
    labels: np.ndarray,
    groups: np.ndarray,
    class_names: list[str],
    captions: list[Any],
    num_tokens: int,
    codebook_sha256: str,
    config: dict[str, Any],
    keys: Sequence[str] = (),
    failures: Sequence[str] = (),
    near: Iterable[NearCodes] | None = None,
) -> None:
    """Write a directory of codes.

    `tokens` is one array (M, V, T) below `num_tokens`, or its shards of any length one after another; labels (M,),
    groups (M,); captions and keys M or none; `failures` has a line for each image that could not be read; `near` are
    the near codes in the same shards."""
    if isinstance(tokens, np.ndarray):
        whole = tokens
        tokens = (whole[start : start + SHARD_SIZE] for start in range(0, len(whole), SHARD_SIZE))
    labels, groups = labels.astype(np.int64), groups.astype(np.int64)
    _check_labels(labels, class_names, path)
    _check_groups(groups, path)
    with replacing(path) as temporary:
        temporary.mkdir()
        written, file = _Written(num_tokens, str(path)), temporary / CODES
        with file.open("wb") as stream:
            shape = write_npy(stream, written.pack(tokens), len(labels), f"{path}/{CODES}")
        save_npy(temporary / "used.npy", written.is_used)
        save_npy(temporary / "labels.npy", labels)
        save_npy(temporary / "groups.npy", groups)
        write_json(temporary / "captions.json", captions)
        write_text(temporary / "keys.txt", "".join(f"{key}\n" for key in keys))
        if failures:
            write_text(temporary / "failures.txt", "".join(f"{line}\n" for line in failures))
        meta = {
            "format": FORMAT,
            "version": VERSION,
            "shape": list(shape),
            "num_tokens": num_tokens,
            "class_names": class_names,
            "codebook_sha256": codebook_sha256,
            "sha256": hash_file(file),
            "shards": written.shards,
            "used_sha256": hash_arrays({"used": written.is_used}),
            "order_sha256": hash_arrays({"labels": labels, "groups": groups}),
            "num_failures": len(failures),
            "config": config,
        }
        if near is not None:
            meta["near"] = write_near(temporary, near, len(labels))
        write_json(temporary / "meta.json", meta)


@dataclass
class _Written:
    """Checksums and used tokens, recorded while the tokens are written."""

    num_tokens: int  # N
    where: str
    shards: list[dict[str, Any]] = field(default_factory=list)  # number of images and SHA-256 of each shard's bytes
    is_used: np.ndarray = field(init=False)  # (N,) bool

    def __post_init__(self) -> None:
        self.is_used = np.zeros(self.num_tokens, np.bool_)

    def pack(self, shards: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The shards in the type of the file. Each is checked and recorded when it is read."""
        for shard in shards:
            check_tokens(shard, self.num_tokens, self.where)
            packed = np.ascontiguousarray(shard, code_type(self.num_tokens))
            self.shards.append({"images": len(packed), "sha256": hashlib.sha256(packed.data).hexdigest()})
            self.is_used[packed.ravel()] = True
            yield packed


def _check_labels(labels: np.ndarray, class_names: list[str], path: Path) -> None:
    if class_names and labels.size and not 0 <= labels.min() <= labels.max() < len(class_names):
        raise Damaged(
            f"labels in {path} run from {labels.min()} to {labels.max()}, but there are {len(class_names)} classes"
        )


def _check_groups(groups: np.ndarray, path: Path) -> None:
    if not groups.size:
        return
    low, high = groups.min(), groups.max()
    present = np.zeros(max(1, min(high + 1, len(groups))), np.bool_)
    if low >= 0 and high < len(groups):
        present[groups] = True
    if not present.all():
        raise Damaged(f"groups in {path} run from {low} to {high}, expected every number from 0 to the last")


@dataclass(frozen=True)
class Shard:
    """The checksum of a run of images in codes.npy."""

    images: int
    sha256: str  # of the bytes of their tokens


@dataclass(frozen=True)
class CodesMeta:
    """meta.json of a directory of codes."""

    format: str
    version: int
    shape: tuple[int, int, int]  # M images, V views, T positions
    num_tokens: int  # N
    class_names: list[str]
    codebook_sha256: str
    sha256: str  # of codes.npy
    shards: list[Shard]
    order_sha256: str  # of labels and groups
    num_failures: int
    config: dict[str, Any]
    used_sha256: str | None = None  # None in older codes, which have no used.npy
    near: NearMeta | None = None

    @property
    def num_near(self) -> int:
        """How many near codes of each token there are."""
        return 0 if self.near is None else self.near.count


def read_meta(path: Path) -> CodesMeta:
    """meta.json of a directory of codes; MissingArtifact if it is missing, damaged, or of another version."""
    file = Path(path) / "meta.json"
    if not file.exists():
        raise MissingArtifact("codes", path)
    with damaged_is_missing("codes", path):
        meta = read_json(file, CodesMeta)
        if (meta.format, meta.version) != (FORMAT, VERSION):
            raise Damaged(
                f"expected {FORMAT} version {VERSION} in {file}, found {meta.format!r} version {meta.version}"
            )
        if min(meta.shape) < 0 or not 1 <= meta.num_tokens <= 2**32:
            raise Damaged(f"{file} has the shape {meta.shape} and {meta.num_tokens} tokens, which no codes have")
        return meta


def has_codes(path: Path, near: int = 0) -> bool:
    """Whether there are codes, of `near` near codes of each token or more. MissingArtifact if meta.json, which is read
    for near codes only, is damaged."""
    return (path / "meta.json").exists() and (not near or read_meta(path).num_near >= near)


def load_codes(path: Path, codebook_sha256: str) -> Codes:
    """Open a directory of codes.

    Raises MissingArtifact if it is missing, damaged, of another version, or made with another codebook. Labels and
    groups are checked against their hash and the class names, the memory-mapped tokens against their shape;
    `masc.runtime.verify` reads them all."""
    path = Path(path)
    meta = read_meta(path)
    if meta.codebook_sha256 != codebook_sha256:
        raise MissingArtifact(
            "codes",
            path,
            f"{path} was made with the codebook {meta.codebook_sha256[:12]}, but the codebook in use is "
            f"{codebook_sha256[:12]}",
        )
    with damaged_codes(path, meta):
        tokens = open_tokens(path, meta)
        near = None if meta.near is None else open_near(path, meta.near, tokens)
        order = {name: open_array(path / f"{name}.npy", "i", (meta.shape[0],)) for name in ("labels", "groups")}
        if hash_arrays(order) != meta.order_sha256:
            raise Damaged(f"labels or groups in {path} were altered")
        _check_labels(order["labels"], meta.class_names, path)
        _check_groups(order["groups"], path)
        is_used = None
        if meta.used_sha256 is not None:
            is_used = open_array(path / "used.npy", "b", (meta.num_tokens,))
            if hash_arrays({"used": is_used}) != meta.used_sha256:
                raise Damaged(f"{path}/used.npy was altered")
    return Codes(
        tokens=tokens,
        **order,
        class_names=meta.class_names,
        num_tokens=meta.num_tokens,
        codebook_sha256=meta.codebook_sha256,
        sha256=meta.sha256,
        config=meta.config,
        is_used=is_used,
        path=path,
        near=near,
        near_sha256=None if meta.near is None else meta.near.sha256,
    )


def damaged_codes(path: Path, meta: CodesMeta) -> contextlib.AbstractContextManager[None]:
    """`damaged_is_missing` for codes; imported ones must be deleted before they are imported again."""
    is_imported = bool(meta.config.get("imported"))
    kind, near = "imported codes" if is_imported else "codes", {"near": meta.near.count} if meta.near else None
    return damaged_is_missing(kind, path, remove=is_imported, overrides=near)


def open_tokens(path: Path, meta: CodesMeta) -> np.ndarray:
    """The memory-mapped tokens; `Damaged` unless they have the shape and the type that meta.json says."""
    tokens = open_array(path / CODES, "u", meta.shape, mapped=True)
    expected = code_type(meta.num_tokens)
    if tokens.dtype != expected:
        raise Damaged(f"expected {expected} in {path}/{CODES} for {meta.num_tokens} tokens, found {tokens.dtype}")
    return tokens


def load_keys(path: Path) -> list[str]:
    """The name of each image in a directory of codes, or none; MissingArtifact if there are fewer or more."""
    meta = read_meta(path)
    with damaged_codes(path, meta):
        text = read_text(Path(path) / "keys.txt")
        keys = text.removesuffix("\n").split("\n") if text else []
        if keys and len(keys) != meta.shape[0]:
            raise Damaged(
                f"{path}/keys.txt holds {len(keys)} names, expected one for each of the {meta.shape[0]} images"
            )
    return keys


def token_counts(codes: Codes, images: np.ndarray | None = None) -> np.ndarray:
    """How often each token occurs, in one view of each image: (N,) int64. Image i gives view i modulo V.

    `images` are rows of some images; None: all.

    Reads one view of every image: 328 million tokens of ImageNet at 16 x 16."""
    counts = np.zeros(codes.num_tokens, np.int64)
    views = codes.tokens.shape[1]
    images = np.arange(codes.num_images) if images is None else images
    for start in range(0, len(images), SHARD_SIZE):
        rows = images[start : start + SHARD_SIZE]
        counts += np.bincount(codes.tokens[rows, rows % views].ravel(), minlength=codes.num_tokens)
    return counts


def used_tokens(codes: Codes) -> np.ndarray:
    """Whether each token occurs in any view of any image: (N,) bool.

    It is recorded when codes are written. Older codes are read until all tokens have been found."""
    if codes.is_used is not None:
        return codes.is_used
    is_used = np.zeros(codes.num_tokens, np.bool_)
    for start in tqdm(range(0, codes.num_images, SHARD_SIZE), desc="used tokens", disable=None, leave=False):
        is_used[codes.tokens[start : start + SHARD_SIZE].ravel()] = True
        if is_used.all():
            break
    return is_used
