"""Packed codes: the tokens of many images in one memory-mapped file, with labels and groups.

A directory of codes.npy (M images, V views, T positions; uint16, uint32 from N > 65,536), labels.npy,
groups.npy, captions.json (for text conditioning; nothing reads it yet) and meta.json."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from masc.artifacts import InputError, hash_arrays, hash_file, replacing, write_json

FORMAT, VERSION = "masc-codes", 1


@dataclass(frozen=True, eq=False)
class Codes:
    """Tokens of M images in V views, with what is needed to draw and to name them."""

    tokens: np.ndarray  # (M, V, T) uint16 or uint32, memory-mapped
    labels: np.ndarray  # (M,) int64
    groups: np.ndarray  # (M,) int64: variants of one picture share a group
    class_names: list[str]
    num_tokens: int  # N
    codebook_sha256: str
    sha256: str  # of codes.npy
    config: dict[str, Any]

    @property
    def num_images(self) -> int:
        return len(self.labels)

    @property
    def num_positions(self) -> int:
        return self.tokens.shape[2]

    @property
    def grid(self) -> int:
        return round(self.num_positions**0.5)


def save_codes(
    path: Path,
    tokens: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    class_names: list[str],
    captions: list[str],
    num_tokens: int,
    codebook_sha256: str,
    config: dict[str, Any],
) -> None:
    """Write a directory of codes: tokens (M, V, T) below num_tokens, labels (M,), groups (M,), captions (M or none)."""
    if tokens.size and int(tokens.max()) >= num_tokens:
        raise InputError(f"token {int(tokens.max())} is outside the codebook of {num_tokens} ({path})")
    with replacing(path) as temporary:
        temporary.mkdir()
        np.save(temporary / "codes.npy", tokens.astype(np.uint16 if num_tokens <= 2**16 else np.uint32))
        np.save(temporary / "labels.npy", labels.astype(np.int64))
        np.save(temporary / "groups.npy", groups.astype(np.int64))
        write_json(temporary / "captions.json", captions)
        meta = {
            "format": FORMAT,
            "version": VERSION,
            "shape": list(tokens.shape),
            "num_tokens": num_tokens,
            "class_names": list(class_names),
            "codebook_sha256": codebook_sha256,
            "sha256": hash_file(temporary / "codes.npy"),
            "order_sha256": hash_arrays({"labels": labels.astype(np.int64), "groups": groups.astype(np.int64)}),
            "config": config,
        }
        write_json(temporary / "meta.json", meta)


def load_codes(path: Path, codebook_sha256: str, make: str) -> Codes:
    """Open a directory of codes; `make` is the command that makes it.

    Raises InputError if it is missing, truncated, of another version, or made with another codebook. Labels and
    groups are checked against their hash, the memory-mapped tokens against their shape."""
    path = Path(path)
    if not (path / "meta.json").exists():
        raise InputError(f"no codes at {path}; make them with `{make}`")
    try:
        meta = json.loads((path / "meta.json").read_text())
        tokens = np.load(path / "codes.npy", mmap_mode="r")
        order = {name: np.load(path / f"{name}.npy") for name in ("labels", "groups")}
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} holds no codes, or truncated ones ({error}); remake them with `{make}`") from error
    if meta.get("format") != FORMAT or meta.get("version") != VERSION:
        raise InputError(f"expected {FORMAT} version {VERSION} in {path}/meta.json; remake them with `{make}`")
    if meta["codebook_sha256"] != codebook_sha256:
        raise InputError(
            f"{path} was made with the codebook {meta['codebook_sha256'][:12]}, but the codebook in use is "
            f"{codebook_sha256[:12]}; remake it with `{make}`"
        )
    if list(tokens.shape) != meta["shape"]:
        raise InputError(
            f"{path}/codes.npy has shape {list(tokens.shape)}, its meta.json says {meta['shape']}; "
            f"remake it with `{make}`"
        )
    if hash_arrays(order) != meta.get("order_sha256"):
        raise InputError(f"labels or groups in {path} were altered; remake them with `{make}`")
    return Codes(
        tokens=tokens,
        **order,
        class_names=meta["class_names"],
        num_tokens=meta["num_tokens"],
        codebook_sha256=meta["codebook_sha256"],
        sha256=meta["sha256"],
        config=meta["config"],
    )
