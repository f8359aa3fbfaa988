"""Extraction of packed codes from images, by one or several processes, resumed after an interruption.

The work is cut into shards of a fixed number of images, and a shard into fixed batches. The bytes of the result
therefore do not depend on the number of processes or on interruptions. Finished shards lie beside the result, in the
folder `.NAME.shards`, until all are joined.

The views are those of LlamaGen's autoregressive/train/extract_codes_c2i.py (FoundationVision/LlamaGen, ce98ec4).
Differs: LlamaGen takes one image a batch and starts again after an interruption.

Shapes: B images, V views, S x S pixels, T positions."""

import logging
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

from masc.runtime.artifacts import Codebook
from masc.runtime.codes import load_codes, read_meta, save_codes
from masc.runtime.device import patient_state
from masc.runtime.errors import InputError, MissingArtifact, removal
from masc.runtime.files import recover, remove_leftovers
from vq.codes.shards import ExtractConfig, Shards
from vq.crops import Views
from vq.images import ImageSource
from vq.interface import Tokenizer, device_of
from vq.pixels import to_tensor
from vq.readers.stored import UnreadableImage, decoding

logger = logging.getLogger(__name__)


@torch.no_grad()
def extract_codes(
    model: Tokenizer,
    images: ImageSource,
    views: Views,
    codebook: Codebook,
    path: Path,
    settings: ExtractConfig | None = None,
) -> None:
    """Write the codes of the given views of every image to `path`, unless they are there. Every process calls this.

    Raises InputError if the images do not fit the tokenizer, or if more images are missing or unreadable than the
    settings allow; the message then names the file that lists them."""
    settings, state, resolution = settings or ExtractConfig(), patient_state(), images.pixels.shape[1]
    if resolution % model.downsample:
        raise InputError(
            f"the images of {images.name} have {resolution} pixels a side, but the tokenizer takes multiples of "
            f"{model.downsample}; choose another DATA or TOKENIZER"
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
        raise InputError(f"{images.name} has no {images.split} images; add some, or leave {images.split} out of splits")
    shards = Shards(path.with_name(f".{path.name}.shards"), images, config, codebook, settings)
    if state.is_main_process:
        recover(path)
        remove_leftovers(path.parent)
    state.wait_for_everyone()
    done = _is_done(path, codebook, config, images)
    state.wait_for_everyone()
    if state.is_main_process:
        shards.clear(everything=done)
    state.wait_for_everyone()
    if done:
        return
    own = range(state.process_index, shards.count, state.num_processes)
    # The remaining shards are divided again, so that after an interruption all processes have equal work.
    todo = sorted(gather_object([shard for shard in own if not shards.is_done(shard)]))
    todo = todo[state.process_index :: state.num_processes]
    shards.check_failures()  # missing images count from the start
    state.wait_for_everyone()
    _fill(shards, todo, model, _Decoded(images, views, resolution), settings.workers(images, state.num_processes))
    state.wait_for_everyone()
    if state.is_main_process:
        _join(shards, images, codebook, path, config)
        shutil.rmtree(shards.folder)
        shards.failures_file.unlink(missing_ok=True)
    state.wait_for_everyone()


def _is_done(path: Path, codebook: Codebook, config: dict[str, Any], images: ImageSource) -> bool:
    """Whether the codes of these images are at `path`. Imported codes count as those of any images."""
    try:
        meta = read_meta(path)
    except InputError:
        return False
    if meta.config.get("imported"):  # only the user may replace them
        try:
            load_codes(path, codebook.meta.sha256)
        except MissingArtifact as error:
            raise MissingArtifact("imported codes", path, str(error), remove=True) from error
        logger.info(
            "%s holds imported codes, which are kept; to extract codes instead, delete them with %s",
            path,
            removal(path),
        )
        return True
    try:
        found = load_codes(path, codebook.meta.sha256)
    except InputError:
        return False
    if found.config != config:
        return False
    row_of = {key: row for row, key in enumerate(images.keys)}
    rows = [row_of.get(key) for key in (path / "keys.txt").read_text().splitlines()]
    readable = len(images) + len(images.missing) - meta.num_failures
    return len(rows) == readable and None not in rows and np.array_equal(found.labels, images.labels[rows])


@dataclass(frozen=True)
class _Decoded(Dataset):
    """Views of images by number: (V, S, S, 3) uint8, or the reason why the image cannot be read."""

    images: ImageSource
    views: Views
    resolution: int

    def __getitem__(self, row: int) -> np.ndarray | str:
        try:
            with decoding(self.images.keys[row]):
                return self.views(self.images.image(row), self.resolution)
        except UnreadableImage as error:
            return error.cause


def _collate(decoded: list[np.ndarray | str]) -> tuple[Tensor | None, dict[int, str]]:
    """The readable images (B, V, S, S, 3) uint8, and the reasons of the others by place in the batch."""
    views = [torch.from_numpy(item) for item in decoded if isinstance(item, np.ndarray)]
    failures = {place: item for place, item in enumerate(decoded) if isinstance(item, str)}
    return torch.stack(views) if views else None, failures


def _fill(shards: Shards, todo: list[int], model: Tokenizer, decoded: _Decoded, num_workers: int) -> None:
    """Write the shards `todo`. Images of the next shard are decoded before a shard ends."""
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


def _join(shards: Shards, images: ImageSource, codebook: Codebook, path: Path, config: dict[str, Any]) -> None:
    failed = [row for shard in range(shards.count) for row in shards.failures(shard)]
    rows = np.setdiff1d(np.arange(len(images)), failed)
    if not rows.size:
        raise InputError(
            f"none of the {len(images)} {images.split} images of {images.name} can be read; check data.path"
        )

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
