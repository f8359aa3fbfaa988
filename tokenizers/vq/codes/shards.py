"""Finished part of an extraction of codes: shards on disk, and the images that could not be read.

Shapes: B images, V views, T positions, m near codes of a token."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from masc.runtime.artifacts import Codebook, Meta, load_npz, save_npz
from masc.runtime.codes import SHARD_SIZE, code_type
from masc.runtime.errors import InputError, MissingArtifact
from masc.runtime.files import write_text
from masc.runtime.locks import lock_file
from masc.runtime.near import NearCodes
from masc.runtime.reading import Damaged, advising, read_json
from vq.images import ImageSource
from vq.readers.stored import StoredImages

logger = logging.getLogger(__name__)
SHARD_VERSION = 1
Failures = list[tuple[int, str]]  # rows of unreadable images, and the reasons
SHARD_SCHEMA = {"tokens": ("u", (None, None, None))}
NEAR_SCHEMA = SHARD_SCHEMA | {"near": ("u", (None,) * 4), "near_distances": ("f", (None,) * 4)}


@dataclass(kw_only=True)
class ExtractConfig:
    """Settings of the extraction of codes."""

    batch_size: int = 64  # views on the device at once
    shard_size: int = SHARD_SIZE  # most images that an interruption loses
    num_workers: int | None = None  # processes that decode images; None: a process's share of the cores
    # Maximum share of missing or unreadable images in a split. One is always tolerated unless this is 0.
    max_failed_share: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("batch_size", "shard_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"extraction.{name} must be positive, found {getattr(self, name)}")
        if not 0 <= self.max_failed_share <= 1:
            raise ValueError(f"extraction.max_failed_share must lie in 0..1, found {self.max_failed_share}")

    def allowed(self, num_images: int) -> int:
        """Maximum number of missing or unreadable images."""
        return max(int(self.max_failed_share * num_images), 1 if self.max_failed_share else 0)

    def workers(self, images: ImageSource, num_processes: int) -> int:
        if self.num_workers is not None:
            return self.num_workers
        local = int(os.environ.get("LOCAL_WORLD_SIZE", num_processes))
        return len(os.sched_getaffinity(0)) // local if isinstance(images, StoredImages) else 0


def lock_codes(path: Path) -> contextlib.AbstractContextManager[None]:
    """Hold the lock on the making of the codes at `path`; InputError if another launch holds it."""
    busy = f"another launch makes the codes at {path}; wait for it, or stop it first"
    return lock_file(path.with_name(f".{path.name}.lock"), busy=busy)


@dataclass(frozen=True)
class Shards:
    """The finished part of an extraction."""

    folder: Path
    images: ImageSource
    config: dict[str, Any]
    codebook: Codebook
    settings: ExtractConfig
    near: int = 0  # m, near codes of each token

    @property
    def token_type(self) -> np.dtype:
        return code_type(self.codebook.num_tokens)

    def empty(self, num_views: int, num_positions: int) -> dict[str, np.ndarray]:
        """The arrays of a shard without images."""
        shape = (0, num_views, num_positions)
        arrays = {"tokens": np.empty(shape, self.token_type)}
        if self.near:
            arrays["near"] = np.empty((*shape, self.near), self.token_type)
            arrays["near_distances"] = np.empty((*shape, self.near), np.float16)
        return arrays

    @property
    def count(self) -> int:
        return -(-len(self.images) // self.settings.shard_size)

    def rows(self, shard: int) -> range:
        start = shard * self.settings.shard_size
        return range(start, min(start + self.settings.shard_size, len(self.images)))

    def file(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}.npz"

    def failures(self, shard: int) -> dict[int, str]:
        """Reasons of a shard's unreadable images, by row."""
        file = self.file(shard).with_suffix(".failures.json")
        return self._read_failures(file) if file.exists() else {}

    def _read_failures(self, file: Path) -> dict[int, str]:
        with advising("type the same command again, which makes that shard anew"):
            found = dict(read_json(file, Failures))
            if found.keys() - set(range(len(self.images))):
                raise Damaged(f"{file} lists images beyond the {len(self.images)} of {self.images.split}")
        return found

    def parents(self, shard: int) -> dict[str, str]:
        """Hashes of everything a shard is made from. If one changes, the shard is made again."""
        rows, settings = self.rows(shard), self.settings
        made_by = {key: value for key, value in self.config.items() if key != "images_sha256"}
        made_by |= {"batch_size": settings.batch_size, "shard_size": settings.shard_size}
        made_by |= {"near": self.near} if self.near else {}
        return {
            "codebook": self.codebook.meta.sha256,
            "config": hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest(),
            "images": self.images.identity(slice(rows.start, rows.stop)),
        }

    def clear(self, everything: bool) -> None:
        """Remove shards that cannot be reused: those with unreadable images (they may be readable now) and those of a
        larger set; with `everything`, all."""
        if everything:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.failures_file.unlink(missing_ok=True)
        for file in self.folder.glob("*.failures.json"):
            file.with_name(f"{file.name.partition('.')[0]}.npz").unlink(missing_ok=True)
            file.unlink()
        for file in self.folder.glob("*.npz"):
            if not file.stem.isdecimal() or int(file.stem) >= self.count:
                file.unlink()

    def is_done(self, shard: int) -> bool:
        """Whether a finished shard was made from the same images by the same config."""
        if not self.file(shard).exists():
            return False
        try:
            _, meta = self._read(shard)
        except InputError as error:
            logger.warning("%s; it is made again", error)
            return False
        if meta.parents != self.parents(shard):
            logger.warning("%s was made from other images or another config; it is made again", self.file(shard))
            return False
        return True

    def _read(self, shard: int) -> tuple[dict[str, np.ndarray], Meta]:
        schema = NEAR_SCHEMA if self.near else SHARD_SCHEMA
        return load_npz(self.file(shard), "codes-shard", SHARD_VERSION, schema)

    def save(self, shard: int, arrays: dict[str, np.ndarray], failures: dict[int, str]) -> None:
        """Write the arrays of a shard's readable images, as in SHARD_SCHEMA, or in NEAR_SCHEMA with near codes.

        Raises InputError if too many images are unreadable."""
        if failures:  # before the tokens, so that no shard is without its failures
            write_text(self.file(shard).with_suffix(".failures.json"), json.dumps(sorted(failures.items())))
        save_npz(self.file(shard), "codes-shard", SHARD_VERSION, arrays, {}, self.parents(shard))
        if failures:
            self.check_failures()

    def load(self, shard: int) -> np.ndarray:
        """Tokens (B, V, T) of a shard. Raises MissingArtifact for the codes if its file is missing or broken."""
        return self._load(shard)["tokens"]

    def load_near(self, shard: int) -> NearCodes:
        """Near codes of a shard; errors as `load`."""
        arrays = self._load(shard)
        return NearCodes(arrays["near"], arrays["near_distances"])

    def _load(self, shard: int) -> dict[str, np.ndarray]:
        try:
            return self._read(shard)[0]
        except MissingArtifact as error:
            raise MissingArtifact("codes", self.file(shard), str(error)) from error

    def list_failures(self) -> list[str]:
        """A line for each missing or unreadable image, of all processes."""
        lines = [f"{name}: missing" for name in self.images.missing]
        for file in sorted(self.folder.glob("*.failures.json")):
            lines += [f"{self.images.keys[row]}: {reason}" for row, reason in self._read_failures(file).items()]
        return lines

    @property
    def failures_file(self) -> Path:
        return self.folder.with_name(f"{self.images.split}-failures.txt")

    def check_failures(self) -> None:
        """If more images are missing or unreadable than allowed, list them in a file and raise InputError."""
        total = len(self.images) + len(self.images.missing)
        lines, allowed = self.list_failures(), self.settings.allowed(total)
        if len(lines) > allowed:
            write_text(self.failures_file, "".join(f"{line}\n" for line in lines))
            raise InputError(
                f"{len(lines)} of the {total} images of {self.images.name} {self.images.split} are missing or cannot "
                f"be read, more than the {allowed} allowed; the first is {lines[0]}. {self.failures_file} lists those "
                "found so far. Repair them and type the same command, which continues where it stopped; or allow more "
                'with ARGS="extraction.max_failed_share=0.01"'
            )
