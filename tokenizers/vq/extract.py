"""From images to packed codes, shared by processes and gone on with after an interruption.

The work is cut into shards of a fixed number of images, and these into fixed batches: the bytes of the result depend
neither on the number of processes nor on interruptions. A finished shard lies beside the result, in a folder
`.NAME.shards`, until all are joined.

What LlamaGen's autoregressive/train/extract_codes_c2i.py (FoundationVision/LlamaGen, ce98ec4) writes, view for view;
differs: it takes one image a batch, and begins anew when interrupted.

Shapes: B images, V views, S x S pixels, T positions."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from masc.artifacts import Codebook, InputError, load_npz, recover, save_npz, write_text
from masc.codes import SHARD_SIZE, code_type, load_codes, read_meta, save_codes
from masc.device import patient_state
from vq.crops import Views
from vq.images import ImageSource, to_tensor
from vq.interface import Tokenizer, device_of
from vq.readers.stored import UNREADABLE, StoredImages

logger = logging.getLogger(__name__)
SHARD_VERSION = 1


@dataclass(kw_only=True)
class ExtractConfig:
    """How codes are extracted."""

    batch_size: int = 64  # views at a time on the device
    shard_size: int = SHARD_SIZE  # images that are done again after an interruption, at most
    num_workers: int | None = None  # that decode pictures; None: a process's share of the cores
    # Of the pictures of a split: the run stops beyond it. One is let pass however small the split, unless it is 0.
    max_failed_share: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("batch_size", "shard_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"extraction.{name} must be positive, found {getattr(self, name)}")
        if not 0 <= self.max_failed_share <= 1:
            raise ValueError(f"extraction.max_failed_share must lie in 0..1, found {self.max_failed_share}")

    def allowed(self, num_images: int) -> int:
        """How many pictures may be missing or unreadable."""
        return max(int(self.max_failed_share * num_images), 1 if self.max_failed_share else 0)

    def workers(self, images: ImageSource, num_processes: int) -> int:
        if self.num_workers is not None:
            return self.num_workers
        local = int(os.environ.get("LOCAL_WORLD_SIZE", num_processes))
        return len(os.sched_getaffinity(0)) // local if isinstance(images, StoredImages) else 0


@torch.no_grad()
def extract_codes(
    model: Tokenizer,
    images: ImageSource,
    views: Views,
    codebook: Codebook,
    path: Path,
    settings: ExtractConfig | None = None,
) -> None:
    """Write the codes of some views of every picture, unless they are there; all processes call it alike.

    Raises InputError if the pictures do not fit the tokenizer, or if more of them are missing or unreadable than
    settings allow; the message names the file that lists them."""
    settings, state, resolution = settings or ExtractConfig(), patient_state(), images.pixels.shape[1]
    if resolution % model.downsample:
        raise InputError(
            f"the images of {images.name} have {resolution} pixels a side, the tokenizer takes multiples of "
            f"{model.downsample}; choose DATA and TOKENIZER that agree"
        )
    config = {
        "source": images.name,
        "split": images.split,
        "resolution": resolution,
        "views": views.names,
        "images_sha256": images.sha256,
        "tokenizer": codebook.meta.config,
        "tokenizer_sha256": codebook.meta.parents["tokenizer"],
    }
    if not len(images):
        raise InputError(
            f"{images.name} has no {images.split} pictures; add some, or leave {images.split} out of splits"
        )
    shards = _Shards(path.with_name(f".{path.name}.shards"), images, config, codebook, settings)
    if state.is_main_process:
        recover(path)
        for leftover in path.parent.glob(f".{path.name}.*.partial"):  # of a process that died while it joined
            shutil.rmtree(leftover)
    state.wait_for_everyone()
    done = _is_done(path, codebook, config, images)
    state.wait_for_everyone()
    if state.is_main_process:
        shards.clear(everything=done)
    state.wait_for_everyone()
    if done:
        return
    own = range(state.process_index, shards.count, state.num_processes)
    # What is left is dealt anew, so that all have as much to do after an interruption.
    todo = sorted(gather_object([shard for shard in own if not shards.is_done(shard)]))
    todo = todo[state.process_index :: state.num_processes]
    shards.check_failures()  # pictures that are missing count from the start
    state.wait_for_everyone()
    _fill(shards, todo, model, _Decoded(images, views, resolution), settings.workers(images, state.num_processes))
    state.wait_for_everyone()
    if state.is_main_process:
        _join(shards, images, codebook, path, config)
        shutil.rmtree(shards.folder)
        shards.failures_file.unlink(missing_ok=True)
    state.wait_for_everyone()


def _is_done(path: Path, codebook: Codebook, config: dict[str, Any], images: ImageSource) -> bool:
    """Whether the codes of these images are at `path`. Imported ones are kept, whatever the images."""
    try:
        found = load_codes(path, codebook.meta.sha256, make="")
    except InputError:
        return False
    if found.config.get("imported"):
        logger.info("%s holds imported codes, which are kept; delete them to extract anew: rm -r %s", path, path)
        return True
    if found.config != config:
        return False
    row_of = {key: row for row, key in enumerate(images.keys)}
    rows = [row_of.get(key) for key in (path / "keys.txt").read_text().splitlines()]
    readable = len(images) + len(images.missing) - read_meta(path, "")["num_failures"]
    return len(rows) == readable and None not in rows and np.array_equal(found.labels, images.labels[rows])


@dataclass(frozen=True)
class _Shards:
    """The finished part of an extraction."""

    folder: Path
    images: ImageSource
    config: dict[str, Any]
    codebook: Codebook
    settings: ExtractConfig

    @property
    def count(self) -> int:
        return -(-len(self.images) // self.settings.shard_size)

    def rows(self, shard: int) -> range:
        start = shard * self.settings.shard_size
        return range(start, min(start + self.settings.shard_size, len(self.images)))

    def file(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}.npz"

    def failures(self, shard: int) -> dict[int, str]:
        """Row and reason of each picture of a shard that could not be read."""
        file = self.file(shard).with_suffix(".failures.json")
        return {int(row): reason for row, reason in json.loads(file.read_text())} if file.exists() else {}

    def parents(self, shard: int) -> dict[str, str]:
        """What a shard is made from: it is made anew if any of it changes."""
        rows, settings = self.rows(shard), self.settings
        made_by = {key: value for key, value in self.config.items() if key != "images_sha256"}
        made_by |= {"batch_size": settings.batch_size, "shard_size": settings.shard_size}
        return {
            "codebook": self.codebook.meta.sha256,
            "config": hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest(),
            "images": self.images.identity(slice(rows.start, rows.stop)),
        }

    def clear(self, everything: bool) -> None:
        """Remove what cannot be gone on with: shards with unreadable pictures, which may be mended by now, and
        those of a larger set; or all of them."""
        if everything:
            shutil.rmtree(self.folder, ignore_errors=True)
        for file in self.folder.glob("*.failures.json"):
            file.with_name(f"{file.name.partition('.')[0]}.npz").unlink(missing_ok=True)
            file.unlink()
        for file in self.folder.glob("*.npz"):
            if int(file.stem) >= self.count:
                file.unlink()

    def is_done(self, shard: int) -> bool:
        """Whether a finished shard was made from the same images by the same config."""
        if not self.file(shard).exists():
            return False
        try:
            _, meta = load_npz(self.file(shard), "codes-shard", SHARD_VERSION, make="")
        except InputError as error:
            logger.warning("%s; it is made anew", error)
            return False
        if meta.parents != self.parents(shard):
            logger.warning("%s was made from other images or another config; it is made anew", self.file(shard))
            return False
        return True

    def save(self, shard: int, tokens: np.ndarray, failures: dict[int, str]) -> None:
        """Write the tokens (B, V, T) of the readable pictures of a shard; raise InputError if too many are not."""
        if failures:  # before the tokens: a shard that is there has its failures beside it
            write_text(self.file(shard).with_suffix(".failures.json"), json.dumps(sorted(failures.items())))
        tokens = tokens.astype(code_type(self.codebook.num_tokens))
        save_npz(self.file(shard), "codes-shard", SHARD_VERSION, {"tokens": tokens}, {}, self.parents(shard))
        if failures:
            self.check_failures()

    def load(self, shard: int) -> np.ndarray:
        return load_npz(self.file(shard), "codes-shard", SHARD_VERSION, "make codes")[0]["tokens"]

    def list_failures(self) -> list[str]:
        """A line for each picture that is missing or could not be read, in any process."""
        lines = [f"{name}: missing" for name in self.images.missing]
        for file in sorted(self.folder.glob("*.failures.json")):
            lines += [f"{self.images.keys[row]}: {reason}" for row, reason in json.loads(file.read_text())]
        return lines

    @property
    def failures_file(self) -> Path:
        return self.folder.with_name(f"{self.images.split}-failures.txt")

    def check_failures(self) -> None:
        """Raise InputError, having listed them, if more pictures are missing or unreadable than allowed."""
        total = len(self.images) + len(self.images.missing)
        lines, allowed = self.list_failures(), self.settings.allowed(total)
        if len(lines) > allowed:
            write_text(self.failures_file, "".join(f"{line}\n" for line in lines))
            raise InputError(
                f"{len(lines)} of the {total} pictures of {self.images.name} {self.images.split} are missing or cannot "
                f"be read, more than the {allowed} allowed; the first is {lines[0]}. All that were found are listed in "
                f"{self.failures_file}. Mend them and type the same command, which goes on where it was; or "
                'allow more with ARGS="extraction.max_failed_share=0.01"'
            )


@dataclass(frozen=True)
class _Decoded(Dataset):
    """Views of pictures by number: (V, S, S, 3) uint8, or why the picture cannot be read."""

    images: ImageSource
    views: Views
    resolution: int

    def __getitem__(self, row: int) -> np.ndarray | str:
        try:
            picture = self.images.picture(row)
        except UNREADABLE as error:
            return " ".join(f"{type(error).__name__}: {error}".split())
        return self.views(picture, self.resolution)


def _collate(decoded: list[np.ndarray | str]) -> tuple[Tensor | None, dict[int, str]]:
    """The readable pictures (B, V, S, S, 3) uint8, and the others by place in the batch."""
    views = [torch.from_numpy(item) for item in decoded if isinstance(item, np.ndarray)]
    failures = {place: item for place, item in enumerate(decoded) if isinstance(item, str)}
    return torch.stack(views) if views else None, failures


def _fill(shards: _Shards, todo: list[int], model: Tokenizer, decoded: _Decoded, num_workers: int) -> None:
    """Make the shards `todo`, decoding ahead over their borders."""
    num_views = len(decoded.views.names)
    step = max(1, shards.settings.batch_size // num_views)
    batches = [
        (shard, list(rows[start : start + step]))
        for shard, rows in ((shard, shards.rows(shard)) for shard in todo)
        for start in range(0, len(rows), step)
    ]
    loader = DataLoader(
        decoded, batch_sampler=[rows for _, rows in batches], num_workers=num_workers, collate_fn=_collate
    )
    device = device_of(model)
    num_positions = (decoded.resolution // model.downsample) ** 2
    tokens, failures = [], {}
    bar = tqdm(
        total=sum(len(rows) for _, rows in batches),
        desc=f"codes {shards.images.split}",
        unit="image",
        disable=None if PartialState().is_main_process else True,
    )
    for (shard, rows), (views, unreadable) in zip(batches, loader, strict=True):
        failures |= {rows[place]: reason for place, reason in unreadable.items()}
        if views is not None:
            pixels = views.flatten(0, 1).numpy()
            found = model.encode(to_tensor(pixels).to(device)).cpu().numpy()
            tokens.append(found.reshape(len(views), num_views, num_positions))
        bar.update(len(rows))
        if rows[-1] == shards.rows(shard)[-1]:
            none = np.empty((0, num_views, num_positions), np.int64)
            shards.save(shard, np.concatenate([none, *tokens]), failures)
            tokens, failures = [], {}
    bar.close()


def _join(shards: _Shards, images: ImageSource, codebook: Codebook, path: Path, config: dict[str, Any]) -> None:
    failed = [row for shard in range(shards.count) for row in shards.failures(shard)]
    rows = np.setdiff1d(np.arange(len(images)), failed)
    if not rows.size:
        raise InputError(f"none of the {len(images)} {images.split} pictures of {images.name} can be read")

    def tokens() -> Iterator[np.ndarray]:
        return (shards.load(shard) for shard in tqdm(range(shards.count), desc="joining shards", disable=None))

    save_codes(
        path,
        tokens(),
        images.labels[rows],
        np.unique(images.groups[rows], return_inverse=True)[1],
        list(images.class_names),
        [images.captions[row] for row in rows] if images.captions else [],
        codebook.num_tokens,
        codebook.meta.sha256,
        config,
        keys=[images.keys[row] for row in rows],
        failures=shards.list_failures(),
    )
