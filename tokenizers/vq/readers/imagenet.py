"""ILSVRC 2012 in any of its usual layouts, with labels in the order of the sorted WNIDs.

    FOLDER/train/n01440764/*.JPEG             class folders (val likewise)
    FOLDER/ILSVRC2012_img_train.tar           the official tar of 1,000 tars, read in place
    FOLDER/ILSVRC2012_img_val.tar             the official tar (or val/*.JPEG), with the devkit for its labels:
    FOLDER/ILSVRC2012_devkit_t12.tar.gz       (or unpacked)
    FOLDER/*train*.tar, FOLDER/*val*.tar      WebDataset shards (or train/*.tar): image and .cls or .json

The label is the index of torchvision's ImageFolder, as in FoundationVision/LlamaGen (ce98ec4, dataset/imagenet.py).
Where a name also holds the WNID, the label is checked against it, so that labels in another order are refused."""

import io
import logging
import re
import tarfile
from collections.abc import Iterable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from masc.runtime.errors import InputError
from masc.runtime.reading import MIB, open_file, parse_json, read_bytes, reason
from vq.readers.folders import refuse_twice, tars_of_split
from vq.readers.members import Members, is_visible, list_folder
from vq.readers.stored import StoredImages
from vq.readers.tars import TarIndex, index_tars

logger = logging.getLogger(__name__)
NUM_IMAGES = {"train": 1_281_167, "val": 50_000}
WNID = re.compile(r"(?:^|/)(n\d{8})(?=[_/.]|$)")
VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})")
DEVKIT = "ILSVRC2012_devkit_t12"
LARGEST_DEVKIT_FILE = 64 * MIB


@cache
def wnids() -> tuple[str, ...]:
    """The 1,000 WNIDs of ILSVRC 2012, sorted: the class of each label."""
    return tuple((resources.files("vq.readers") / "imagenet_wnids.txt").read_text(encoding="utf-8").split())


@cache
def _label_of() -> dict[str, int]:
    return {wnid: label for label, wnid in enumerate(wnids())}


def load_imagenet(root: Path, split: str, resolution: int) -> StoredImages:
    """The `train` or `val` images below `root`.

    Raises InputError if one of the 1,000 classes is missing, if there is another class, if an image is there twice, or
    if a label contradicts a WNID."""
    folder, tar = root / split, root / f"ILSVRC2012_img_{split}.tar"
    if (folder / tar.name).exists():
        tar = folder / tar.name
    inside = sorted(folder.glob("*.tar"))
    beside = [path for path in tars_of_split(root, split) if not path.name.startswith("ILSVRC2012_img_")]
    labels = None
    if folder.is_dir() and any(path.is_dir() for path in folder.iterdir()):
        members = list_folder(folder).images()
    elif tar.exists():
        members = index_tars([tar]).members.images()
    elif inside and all(WNID.fullmatch(path.stem) for path in inside):  # the official tar, unpacked once
        members = index_tars(inside).members.images()
    elif inside or beside:
        members, labels = _labelled_samples(index_tars(inside or beside))
    elif folder.is_dir():
        members = list_folder(folder).images()
    else:
        raise InputError(
            f"no {split} images of ImageNet in {root}: expected {split}/ with a folder a class, {tar.name}, or "
            f"shards *{split}*.tar; name the folder that holds them with DATA_PATH=FOLDER"
        )
    if labels is None:
        refuse_twice(members.names, _image_of, root)
        labels = _labels_by_name(root, members)
    _check_classes(labels, f"{split} of {root}")
    missing = _missing(split, members, root)
    return StoredImages.of("imagenet", split, resolution, members, labels, wnids(), missing=missing)


def _image_of(name: str) -> str:
    """The image that a file name names: by its number in the official validation set, otherwise without its suffix."""
    number = VAL_NAME.search(name)
    return number[0] if number else name.rpartition(".")[0]


def _labels_by_name(root: Path, members: Members) -> np.ndarray:
    labels, truth = np.empty(len(members), np.int64), None
    for row, name in enumerate(members.names):
        wnid, number = WNID.search(name), VAL_NAME.search(name)
        if wnid is not None:
            if wnid[1] not in _label_of():
                raise InputError(
                    f"{wnid[1]} ({name} in {root}) is not one of the 1,000 classes of ILSVRC 2012; "
                    "remove it, or read the folder with data.source=folder"
                )
            others = sorted(set(WNID.findall(name)) - {wnid[1]})
            if others:
                raise InputError(f"{name} in {root} names the classes {wnid[1]} and {others[0]}; move it to its class")
            labels[row] = _label_of()[wnid[1]]
        elif number is not None:
            truth = _ground_truth(root) if truth is None else truth
            if not 1 <= int(number[1]) <= len(truth):
                raise InputError(
                    f"{name} in {root} has no label: the devkit holds labels of {len(truth)} images; remove the image"
                )
            labels[row] = truth[int(number[1]) - 1]
        else:
            raise InputError(
                f"{name} in {root} has no class: expected folders named by WNID, such as n01440764/; "
                "read a folder of other class folders with data.source=folder"
            )
    return labels


def _ground_truth(root: Path) -> np.ndarray:
    """Labels of the validation images by number, from the devkit: (50,000,) int64."""
    from scipy.io import loadmat

    archive, folder = root / f"{DEVKIT}.tar.gz", root / DEVKIT
    names = ("data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat")
    if not folder.is_dir() and not archive.exists():
        raise InputError(
            f"the validation images of {root} are not in class folders, and {archive.name} with their labels is "
            f"missing; put it into {root}"
        )
    try:
        if folder.is_dir():
            truth, meta = (read_bytes(folder / name, LARGEST_DEVKIT_FILE) for name in names)
        else:
            with open_file(archive) as (file, _), tarfile.open(fileobj=file) as tar:
                truth, meta = (tar.extractfile(f"{DEVKIT}/{name}").read(LARGEST_DEVKIT_FILE) for name in names)
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        label_of_id = {
            int(number): _label_of()[str(wnid)]
            for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)
            if str(wnid) in _label_of()  # the others are inner nodes of WordNet
        }
        return np.array([label_of_id[int(line)] for line in truth.split()], np.int64)
    except Exception as error:  # tarfile, gzip and loadmat raise errors of many types for damaged bytes
        raise InputError(
            f"the devkit in {root} is truncated or not the official one ({reason(error, archive)}); download it again"
        ) from error


def _labelled_samples(index: TarIndex) -> tuple[Members, np.ndarray]:
    """Images of WebDataset shards and their labels: (M,) int64.

    The label of an image has the same name but for the suffix. If there is none, it is that of the sample, whose files
    share the part of their name before the first dot in WebDataset. Labels without an image are left out with a
    warning. Raises InputError for a sample with two images or two labels, because nothing says which belong
    together."""
    members = index.members
    rows = members.image_rows()
    images, texts = (_by_stem_and_key(members, some) for some in (rows, index.texts))
    labels, used = np.empty(len(rows), np.int64), set()
    for place, row in enumerate(rows):
        stem, key = _stem_and_key(members, row)
        shared = stem if stem in texts else key
        beside = texts.get(shared, [])
        used.update(beside)
        kinds = [_suffix(members.names[text]) for text in beside]
        archive = members.archives[members.places[row, 1]]
        if beside and (len(images[shared]) > 1 or len(set(kinds)) < len(kinds)):
            found = ", ".join(members.names[one] for one in [*images[shared], *beside][:6])
            raise InputError(
                f"expected one image and one label for each sample of {archive}, found {found}; name the files of a "
                "sample alike but for the suffix"
            )
        sidecars = {kind: index.texts[text] for kind, text in zip(kinds, beside, strict=True)}
        labels[place] = _sample_label(members.names[row], sidecars, archive)
    unused = [members.names[text] for text in sorted(index.texts.keys() - used) if is_visible(members.names[text])]
    if unused:
        logger.warning(
            "%s: %d labels (.cls, .json) are left out because their samples have no image, the first is %a",
            *(members.archives[0].parent, len(unused), unused[0]),
        )
    return members.take(rows), labels


Place = tuple[int, str]  # number of an archive, and a name in it


def _by_stem_and_key(members: Members, rows: Iterable[int]) -> dict[Place, list[int]]:
    """The files of `rows` by their name without suffix, and by that before the first dot."""
    found: dict[Place, list[int]] = {}
    for row in rows:
        for place in set(_stem_and_key(members, row)):
            found.setdefault(place, []).append(row)
    return found


def _stem_and_key(members: Members, row: int) -> tuple[Place, Place]:
    archive, (folder, slash, file) = int(members.places[row, 1]), members.names[row].rpartition("/")
    return (archive, folder + slash + file.rpartition(".")[0]), (archive, folder + slash + file.partition(".")[0])


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _sample_label(name: str, sidecars: dict[str, bytes], archive: Path) -> int:
    described = parse_json(sidecars.get("json", b"{}"), dict[str, Any], archive / name)
    stored = sidecars["cls"].decode(errors="replace").strip() if "cls" in sidecars else described.get("label")
    if not re.fullmatch(r"[0-9]{1,9}", str(stored)):
        found = "no label" if stored is None else f"the label {stored!r:.60}"
        raise InputError(
            f"the sample {name} of {archive} has {found}: expected a whole number in a .cls file beside it, or as "
            "`label` in a .json"
        )
    label, other = int(stored), f"{described.get('label')}"
    if re.fullmatch(r"-?[0-9]{1,9}(\.[0-9]+)?", other) and float(other) != label:
        raise InputError(
            f"the sample {name} of {archive} has the label {label} in its .cls and {other} in its .json; correct one"
        )
    if not 0 <= label < len(wnids()):
        raise InputError(f"the sample {name} of {archive} has the label {label}, outside of 0..{len(wnids()) - 1}")
    wnid = WNID.search(f"{described.get('filename', '')}") or WNID.search(name)
    if wnid is not None and wnid[1] != wnids()[label]:
        raise InputError(
            f"the sample {name} of {archive} has the label {label}, which is {wnids()[label]} in the order of the "
            f"sorted WNIDs, but its name says {wnid[1]}: these shards number the classes in another order; relabel them"
        )
    return label


def _check_classes(labels: np.ndarray, where: str) -> None:
    absent = np.setdiff1d(np.arange(len(wnids())), labels)
    if absent.size:
        raise InputError(
            f"{absent.size} of the {len(wnids())} classes of ILSVRC 2012 are missing in {where}, the first is "
            f"{wnids()[absent[0]]}; read a subset with data.source=folder"
        )


def _missing(split: str, members: Members, root: Path) -> tuple[str, ...]:
    """A line for each image of the official set that is missing."""
    expected = NUM_IMAGES[split]
    if len(members) > expected:
        raise InputError(
            f"{split} of {root} holds {len(members)} images, but ILSVRC 2012 has {expected}: remove copies, or read "
            "another set with data.source=folder"
        )
    numbers = [VAL_NAME.search(name) for name in members.names]
    if split == "val" and all(numbers):
        there = {int(number[1]) for number in numbers}
        return tuple(f"ILSVRC2012_val_{n:08d}.JPEG" for n in range(1, expected + 1) if n not in there)
    return ("an image of unknown name",) * (expected - len(members))
