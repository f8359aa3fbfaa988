"""Import of codes in the layout of LlamaGen's extraction.

FoundationVision/LlamaGen (ce98ec4), autoregressive/train/extract_codes_c2i.py writes FOLDER/imagenet256_codes/0.npy,
1.npy ... (1, V, T) int64 with FOLDER/imagenet256_labels/0.npy ... (1,) int64; extract_codes_t2i.py writes
FOLDER/0.npy ... (1, T) int64 without labels. The number is the place of the image in ImageFolder's order.

LlamaGen's sampler fills up the last round of the processes, so a few of the first images are repeated at the end. They
are cut off at ILSVRC's number of images for ImageNet, and at `num_images` for other data."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from masc.runtime.artifacts import Codebook
from masc.runtime.codes import SHARD_SIZE, check_tokens, save_codes
from masc.runtime.errors import InputError
from masc.runtime.files import write_text
from masc.runtime.reading import advising, open_array
from masc.runtime.verify import verify_once
from vq.codes.shards import lock_codes
from vq.crops import FIVE, Views
from vq.data import DataConfig
from vq.interface import TokenizerConfig
from vq.readers.imagenet import NUM_IMAGES, wnids

NUMBER = re.compile(r"0|[1-9][0-9]{0,11}")  # the name of a file that is read
MAX_CLASSES = 1_000_000
CENTRE = {1: 0, 2: 0, 10: FIVE.index("centre")}  # number of views -> place of the centre crop


def import_codes(
    folders: list[Path],
    data: DataConfig,
    split: str,
    codebook: Codebook,
    path: Path,
    num_images: int | None = None,
    tokenizer: TokenizerConfig | None = None,
) -> int:
    """Write the codes of LlamaGen's `folders` to `path` and return the number of images.

    There is one folder for each crop range of ten-crop, otherwise one folder. Files from number `num_images` on are
    ignored; None means ILSVRC's number for ImageNet, and all files for other data. `tokenizer` is that of the codebook:
    the files must hold its number of tokens. Raises InputError if the folders hold different numbers of files and
    `num_images` does not say which are meant, and with the name of the file if a number is missing, or if a file is
    truncated or has another shape, a token outside of the codebook or a label outside of the classes."""
    if num_images is not None and num_images < 1:
        raise InputError(f"num_images must be 1 or more, found {num_images}")
    views = data.views(split)
    per_folder = 10 if views.crops == "ten-crop" else len(views.names)
    if len(folders) != len(views.names) // per_folder:
        raise InputError(
            f"data.crops={data.crops} with the ranges {list(views.crop_ranges)} needs a folder each, found "
            f"{len(folders)}; name them with folders=[...]"
        )
    if len({Path(folder).resolve() for folder in folders}) < len(folders):
        raise InputError(f"the same folder was named twice: {', '.join(map(str, folders))}; name one for each range")
    sets = [_Numbered(folder, f"{data.source}{data.resolution}") for folder in folders]
    expected = NUM_IMAGES[split] if num_images is None and data.source == "imagenet" else num_images
    for one in sets:
        one.check(expected or one.count, path.with_name(f"{path.name}-missing.txt"))
    count = expected or _common_count(sets)
    unlabelled = [one for one in sets if one.labels is None]
    is_labelled = not unlabelled
    if unlabelled and (data.source in ("imagenet", "folder") or len(unlabelled) < len(sets)):
        one = unlabelled[0]
        raise InputError(f"no labels beside {one.codes}: expected {one.folder}/{one.stem}_labels/0.npy; put them there")
    labels = _read_labels(sets, count) if is_labelled else np.zeros(count, np.int64)
    names = list(wnids()) if data.source == "imagenet" else [str(n) for n in range(int(labels.max()) + 1)]
    if labels.max() >= len(names):
        worst = int(labels.argmax())
        raise InputError(
            f"{sets[0].labels}/{worst}.npy holds the label {labels[worst]}, outside of 0..{len(names) - 1}"
        )
    if data.source == "imagenet" and num_images is None:
        _check_imagenet(labels, sets[0], split)
    config = {
        "imported": True,
        "source": data.source,
        "split": split,
        "resolution": data.resolution,
        "views": views.names,
        "images_sha256": "unknown: codes were imported",
        "tokenizer": codebook.meta.config,
        "tokenizer_sha256": codebook.meta.parents["tokenizer"],
    }
    with lock_codes(path):
        save_codes(
            path,
            _shards(sets, count, views, per_folder, codebook.num_tokens, _num_positions(tokenizer, data)),
            labels,
            np.arange(count),
            names,
            [],
            codebook.num_tokens,
            codebook.meta.sha256,
            config,
        )
        verify_once(path)  # from the disk, so that no training has to
    return count


def _common_count(sets: list["_Numbered"]) -> int:
    """The number of files in each folder of codes and labels; InputError if two differ."""
    folders = [folder for one in sets for folder in (one.codes, one.labels) if folder is not None]
    counts = {folder: len(_numbers(folder)) for folder in folders}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{count} in {folder}" for folder, count in counts.items())
        raise InputError(
            f"expected as many files in each folder of codes and labels, found {found}; extract the same images again, "
            "or name the number of images with num_images=N"
        )
    return sets[0].count


def _numbers(folder: Path) -> set[int]:
    """The numbers of the files in a folder."""
    return {int(file.stem) for file in folder.glob("*.npy") if NUMBER.fullmatch(file.stem)}


def _num_positions(tokenizer: TokenizerConfig | None, data: DataConfig) -> int | None:
    """Tokens of an image by a tokenizer; None without one."""
    if tokenizer is None:
        return None
    with torch.device("meta"):
        return (data.resolution // tokenizer.build().downsample) ** 2


def _check_imagenet(labels: np.ndarray, one: "_Numbered", split: str) -> None:
    """Raise InputError unless the labels are ILSVRC's in ImageFolder's order: every class, one after another."""
    follows, found = np.isin(np.diff(labels), (0, 1)), len(np.unique(labels))
    if found != len(wnids()) or not follows.all():
        where = "" if follows.all() else f", and their order breaks after {int((~follows).argmax())}.npy"
        raise InputError(
            f"the labels in {one.labels} are not those of ImageNet {split} in the order of its sorted class folders: "
            f"there are {found} classes{where}; import a part with num_images=N"
        )


class _Numbered:
    """A folder of files 0.npy, 1.npy ..., and the folder of their labels if there is one."""

    def __init__(self, folder: Path, stem: str):
        self.folder, self.stem = Path(folder), stem
        labelled = self.folder / f"{stem}_codes"
        self.codes = labelled if labelled.is_dir() else self.folder
        self.labels = self.folder / f"{stem}_labels" if labelled.is_dir() else None
        self.numbers = _numbers(self.codes)
        if not self.numbers:
            raise InputError(
                f"no codes of LlamaGen in {folder}: expected {stem}_codes/0.npy, or 0.npy; name the folder of its "
                "--code-path with folders=[FOLDER]"
            )

    @property
    def count(self) -> int:
        return max(self.numbers) + 1

    def check(self, count: int, listed: Path) -> None:
        """If any of the numbers 0..count-1 is missing, list them in the file `listed` and raise InputError."""
        if count > 10 * len(self.numbers) + 1000:
            raise InputError(
                f"expected {count} files 0.npy to {count - 1}.npy in {self.codes}, found {len(self.numbers)}; name the "
                "number of images with num_images=N"
            )
        missing = sorted(set(range(count)) - self.numbers)
        if missing:
            write_text(listed, "".join(f"{number}.npy\n" for number in missing))
            raise InputError(
                f"{len(missing)} of the {count} files 0.npy to {count - 1}.npy are missing in {self.codes}, the first "
                f"is {missing[0]}.npy; all are listed in {listed}. Extract them again, or name the number of images "
                "with num_images=N"
            )

    def read(self, folder: Path, number: int) -> np.ndarray:
        with advising("extract it again"):
            return open_array(folder / f"{number}.npy", "iu", None)


def _read_labels(sets: list[_Numbered], count: int) -> np.ndarray:
    """The labels of all images: (M,) int64. Raises InputError if two folders differ."""
    labels = np.empty((len(sets), count), np.int64)
    for row, one in enumerate(sets):
        for number in tqdm(range(count), desc=f"labels of {one.folder.name}", disable=None):
            label = one.read(one.labels, number)
            if label.size != 1 or not 0 <= int(label.ravel()[0]) < MAX_CLASSES:
                found = label.tolist() if label.size == 1 else f"{label.size} numbers"
                raise InputError(
                    f"{one.labels}/{number}.npy holds {found}, expected one label from 0 up, below {MAX_CLASSES}"
                )
            labels[row, number] = label.ravel()[0]
    differing = np.flatnonzero((labels != labels[0]).any(axis=0))
    if differing.size:
        raise InputError(
            f"the labels in {sets[0].labels} and {sets[-1].labels} differ, first in {differing[0]}.npy; extract the "
            "same images in the same order"
        )
    return labels[0]


def _shards(
    sets: list[_Numbered], count: int, views: Views, per_folder: int, num_tokens: int, num_positions: int | None
) -> Iterator[np.ndarray]:
    """Shards (B, V, T) one after another; T is `num_positions`, or that of the first file if it is None."""
    bar = tqdm(total=count, desc="codes", unit="image", disable=None)
    for start in range(0, count, SHARD_SIZE):
        rows = []
        for number in range(start, min(start + SHARD_SIZE, count)):
            parts, kept = [one.read(one.codes, number) for one in sets], []
            for part, one in zip(parts, sets, strict=True):
                file = one.codes / f"{number}.npy"
                if not part.size or not part.ndim:
                    raise InputError(f"{file} has shape {part.shape}, expected (1, {per_folder}, T); extract it again")
                num_positions = num_positions or part.shape[-1]
                found = part.reshape(-1, part.shape[-1])
                if views.crops == "center" and len(found) in CENTRE:
                    found = found[CENTRE[len(found)]][None]
                if found.shape != (per_folder, num_positions):
                    raise InputError(
                        f"{file} has shape {part.shape}, expected (1, {per_folder}, {num_positions}) for "
                        f"the views of data.crops={views.crops}"
                    )
                check_tokens(found, num_tokens, str(file))
                kept.append(found)
            rows.append(np.concatenate(kept))
            bar.update()
        yield np.stack(rows)
    bar.close()
