"""Extraction of packed codes from images, by one or several processes, resumed after an interruption.

The work is cut into shards of a fixed number of images, and a shard into fixed batches. The bytes of the result
therefore do not depend on the number of processes or on interruptions. Finished shards lie beside the result, in the
folder `.NAME.shards`, until all are joined.

The views are those of LlamaGen's autoregressive/train/extract_codes_c2i.py (FoundationVision/LlamaGen, ce98ec4).
Differs: LlamaGen takes one image a batch and starts again after an interruption.

Shapes: B images, V views, S x S pixels, T positions."""

import contextlib
import logging
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
from masc.runtime.captions import CAPTIONS_AT_MOST
from masc.runtime.codes import load_codes, load_keys, read_meta, save_codes
from masc.runtime.device import from_main, patient_state
from masc.runtime.errors import InputError, MissingArtifact, removal
from masc.runtime.files import recover, remove_leftovers, write_json
from masc.runtime.near import pack_distances
from masc.runtime.reading import Damaged, read_json, reason
from masc.runtime.run import differences, flatten
from masc.runtime.verify import verify_codes, verify_once
from vq.codes.shards import ExtractConfig, Shards, lock_codes
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
    near: int = 0,
) -> None:
    """Write the codes of the given views of every image to `path`, unless they are there. Every process calls this.

    With `near` the codes hold at least so many near codes of each token (`masc.runtime.near`). Codes that hold fewer,
    are damaged, or were made from other images or by another config, are made again. Raises InputError as
    `check_images` and `check_near`, if another launch makes these codes, or if more images are missing or unreadable
    than the settings allow; the message then names the file that lists them."""
    settings, state = settings or ExtractConfig(), patient_state()
    check_images(images, model)
    check_near(near, model, codebook)
    config = {
        "source": images.name,
        "split": images.split,
        "resolution": images.pixels.shape[1],
        "views": views.names,
        "images_sha256": images.sha256,
        "tokenizer": codebook.meta.config,
        "tokenizer_sha256": codebook.meta.parents["tokenizer"],
    }
    shards = Shards(path.with_name(f".{path.name}.shards"), images, config, codebook, settings, near)
    with contextlib.ExitStack() as held:
        if from_main(lambda: _begin(held, shards, path)):
            return
        own = range(state.process_index, shards.count, state.num_processes)
        # The remaining shards are divided again, so that after an interruption all processes have equal work.
        todo = sorted(gather_object([shard for shard in own if not shards.is_done(shard)]))
        todo = todo[state.process_index :: state.num_processes]
        shards.check_failures()  # missing images count from the start
        state.wait_for_everyone()
        decoded = _Decoded(images, views, config["resolution"])
        _fill(shards, todo, model, decoded, settings.workers(images, state.num_processes))
        state.wait_for_everyone()
        if state.is_main_process:
            _join(shards, path)
            verify_once(path)  # from the disk, so that no training has to
            shards.clear(everything=True)
        state.wait_for_everyone()


def check_images(images: ImageSource, model: Tokenizer) -> None:
    """Raise InputError if there are no images, or if their size does not fit the tokenizer."""
    resolution = images.pixels.shape[1]
    if resolution % model.downsample:
        raise InputError(
            f"the images of {images.name} have {resolution} pixels a side, but the tokenizer takes multiples of "
            f"{model.downsample}; choose another DATA or TOKENIZER"
        )
    if not len(images):
        raise InputError(f"{images.name} has no {images.split} images; add some, or leave {images.split} out of splits")


def check_near(near: int, model: Tokenizer, codebook: Codebook) -> None:
    """Raise InputError if the tokenizer cannot give `near` near codes of a token; 0 is none."""
    if not 0 <= near <= codebook.num_tokens:
        raise InputError(f"near must lie in 0..{codebook.num_tokens}, the number of tokens, found {near}")
    if near and getattr(model, "encode_near", None) is None:
        raise InputError(
            f"near={near} asks for the codes nearest to the encoder's output, but {type(model).__name__} does not find "
            "tokens by distance, or its class has no encode_near; choose another TOKENIZER, or near=0"
        )


def _begin(held: contextlib.ExitStack, shards: Shards, path: Path) -> bool:
    """Whether the codes are at `path` already. Otherwise lock `path` and remove the shards that cannot be reused."""
    recover(path)
    try:
        held.enter_context(lock_codes(path))
    except InputError:  # another launch, or a read-only disk
        if not _is_done(path, shards):
            raise
        return True
    remove_leftovers(path.parent)
    is_done = _is_done(path, shards)
    shards.clear(everything=is_done)
    return is_done


def _is_done(path: Path, shards: Shards) -> bool:
    """Whether the codes of the images are at `path`, complete and undamaged. Imported codes count as those of any
    images."""
    images, codebook = shards.images, shards.codebook
    try:
        meta = read_meta(path)
    except InputError:
        return False
    is_imported = bool(meta.config.get("imported"))  # only the user may replace them
    if is_imported and shards.near:
        raise InputError(
            f"{path} holds imported codes, which have no near codes; delete them with {removal(path)} to extract codes "
            f"with near={shards.near}"
        )
    try:
        verify_codes(path)
        found, keys = load_codes(path, codebook.meta.sha256), load_keys(path)
    except MissingArtifact as error:
        if is_imported:
            raise MissingArtifact("imported codes", path, str(error), remove=True) from error
        logger.warning("%s; the codes are made again", error)
        return False
    if is_imported:
        logger.info(
            "%s holds imported codes, which are kept; to extract codes instead, delete them with %s",
            path,
            removal(path),
        )
        return True
    if meta.num_near < shards.near:
        logger.warning("%s holds %d near codes of a token, not %d; it is made again", path, meta.num_near, shards.near)
        return False
    if not _is_made_by(found.config, shards, path):
        return False
    readable = len(images) + len(images.missing) - meta.num_failures
    every = enumerate(zip(images.keys, images.labels, strict=True))
    rows = [next((row for row, there in every if there == one), -1) for one in zip(keys, found.labels, strict=True)]
    if len(rows) != readable or -1 in rows:
        return False
    _update_captions(path, images, rows)
    return True


def _update_captions(path: Path, images: ImageSource, rows: list[int]) -> None:
    """Write the captions of the images `rows` unless they are there: the tokens do not depend on them."""
    captions = [images.captions[row] for row in rows] if images.captions else []
    try:
        found = read_json(path / "captions.json", list[Any], at_most=CAPTIONS_AT_MOST)
    except Damaged:
        found = None
    if found != captions:
        write_json(path / "captions.json", captions)
        logger.info("the captions in %s were damaged or others; they are written again", path)


def _is_made_by(found: dict[str, Any], shards: Shards, path: Path) -> bool:
    """Whether codes with the config `found` are those that the config of `shards` makes."""
    lines = differences(flatten(found), flatten(shards.config))
    earlier = shards.images.earlier_sha256
    if earlier is not None and found == shards.config | {"images_sha256": earlier}:
        logger.warning(
            "%s was made by an earlier version, which recorded the names and sizes of the images but not when they "
            "were changed; it is kept. If an image was replaced by one of the same size, delete it with %s",
            path,
            removal(path),
        )
        return True
    if lines:
        logger.warning("%s was made by another config; it is made again:\n%s", path, lines)
    return not lines


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
    none = shards.empty(num_views, num_positions)
    encoded, failures = [none], {}
    bar = tqdm(
        total=sum(len(rows) for _, rows in batches),
        desc=f"codes {shards.images.split}",
        unit="image",
        disable=None if PartialState().is_main_process else True,
    )
    for (shard, rows), (views, unreadable) in zip(batches, _watched(loader), strict=True):
        failures |= {rows[place]: reason for place, reason in unreadable.items()}
        if views is not None:
            found = _encode(model, to_tensor(views.flatten(0, 1).numpy()).to(device), shards)
            shape = (len(views), num_views, num_positions)
            encoded.append({name: array.reshape(*shape, *array.shape[2:]) for name, array in found.items()})
        bar.update(len(rows))
        if rows[-1] == shards.rows(shard)[-1]:
            shards.save(shard, {name: np.concatenate([part[name] for part in encoded]) for name in none}, failures)
            encoded, failures = [none], {}
    bar.close()


def _encode(model: Tokenizer, images: Tensor, shards: Shards) -> dict[str, np.ndarray]:
    """The arrays of a shard for images (B, 3, S, S): tokens (B, T), near codes and their distances (B, T, m)."""
    token_type = shards.token_type
    if not shards.near:
        return {"tokens": model.encode(images).cpu().numpy().astype(token_type)}
    ids, distances = (found.cpu().numpy() for found in model.encode_near(images, shards.near))
    ids = ids.astype(token_type)
    return {"tokens": ids[..., 0], "near": ids, "near_distances": pack_distances(distances)}


def _watched(loader: DataLoader) -> Iterator[Any]:
    """The batches of a loader; InputError if one of its processes dies or cannot hand over a batch."""
    try:
        yield from loader
    except RuntimeError as error:  # torch raises it with one of these words
        if not any(words in str(error) for words in ("DataLoader worker", "shared memory", "No space left")):
            raise
        raise InputError(
            f"a process that decodes images died ({reason(error)}): the memory or /dev/shm is too small; use fewer "
            'processes with ARGS="extraction.num_workers=1", or none with 0'
        ) from error


def _join(shards: Shards, path: Path) -> None:
    images = shards.images
    failed = [row for shard in range(shards.count) for row in shards.failures(shard)]
    rows = np.setdiff1d(np.arange(len(images)), failed)
    if not rows.size:
        raise InputError(
            f"none of the {len(images)} {images.split} images of {images.name} can be read; check data.path"
        )

    def shown(what: str) -> Iterator[int]:
        return tqdm(range(shards.count), desc=f"joining {what}", disable=None)

    save_codes(
        path,
        (shards.load(shard) for shard in shown("shards")),
        images.labels[rows],
        np.unique(images.groups[rows], return_inverse=True)[1],
        list(images.class_names),
        [images.captions[row] for row in rows] if images.captions else [],
        shards.codebook.num_tokens,
        shards.codebook.meta.sha256,
        shards.config,
        keys=[images.keys[row] for row in rows],
        failures=shards.list_failures(),
        near=(shards.load_near(shard) for shard in shown("near codes")) if shards.near else None,
    )
