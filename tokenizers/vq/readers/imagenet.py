"""ILSVRC 2012 in any of its usual layouts, with labels in the order of the sorted WNIDs.

    FOLDER/train/n01440764/*.JPEG             class folders (val likewise)
    FOLDER/ILSVRC2012_img_train.tar           the official tar of 1,000 tars, read in place
    FOLDER/ILSVRC2012_img_val.tar             the official tar (or val/*.JPEG), with the devkit for its labels:
    FOLDER/ILSVRC2012_devkit_t12.tar.gz       (or unpacked)
    FOLDER/*train*.tar, FOLDER/*val*.tar      WebDataset shards (or train/*.tar): image and .cls or .json

The label is the index of torchvision's ImageFolder, as in FoundationVision/LlamaGen (ce98ec4, dataset/imagenet.py).
Where a name also holds the WNID, the label is checked against it, so that labels in another order are refused."""

import io
import json
import re
import tarfile
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np

from masc.runtime.errors import InputError
from vq.readers.members import Members, is_image, list_folder
from vq.readers.stored import StoredImages
from vq.readers.tars import TarIndex, index_tars

NUM_IMAGES = {"train": 1_281_167, "val": 50_000}
WNID = re.compile(r"(?:^|/)(n\d{8})(?=[_/.]|$)")
VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})")
DEVKIT = "ILSVRC2012_devkit_t12"


@cache
def wnids() -> tuple[str, ...]:
    """The 1,000 WNIDs of ILSVRC 2012, sorted: the class of each label."""
    return tuple((resources.files("vq.readers") / "imagenet_wnids.txt").read_text().split())


@cache
def _label_of() -> dict[str, int]:
    return {wnid: label for label, wnid in enumerate(wnids())}


def load_imagenet(root: Path, split: str, resolution: int) -> StoredImages:
    """The `train` or `val` images below `root`.

    Raises InputError if one of the 1,000 classes is missing, if there is another class, or if a label contradicts a
    WNID."""
    folder, tar = root / split, root / f"ILSVRC2012_img_{split}.tar"
    if (folder / tar.name).exists():
        tar = folder / tar.name
    inside = sorted(folder.glob("*.tar"))
    beside = sorted(path for path in root.glob(f"*{split}*.tar") if not path.name.startswith("ILSVRC2012_img_"))
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
        labels = _labels_by_name(root, members)
    _check_classes(labels, f"{split} of {root}")
    missing = _missing(split, members, root)
    return StoredImages.of("imagenet", split, resolution, members, labels, wnids(), missing=missing)


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
            labels[row] = _label_of()[wnid[1]]
        elif number is not None:
            truth = _ground_truth(root) if truth is None else truth
            if int(number[1]) > len(truth):
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
    try:
        if folder.is_dir():
            truth, meta = ((folder / name).read_bytes() for name in names)
        elif archive.exists():
            with tarfile.open(archive) as tar:
                truth, meta = (tar.extractfile(f"{DEVKIT}/{name}").read() for name in names)
        else:
            raise InputError(
                f"the validation images of {root} are not in class folders, and {archive.name} with their labels is "
                f"missing; put it into {root}"
            )
    except (tarfile.TarError, OSError, EOFError, KeyError) as error:
        raise InputError(
            f"the devkit in {root} is truncated or not the official one ({error}); download it again"
        ) from error
    synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    label_of_id = {
        int(number): _label_of()[str(wnid)]
        for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)
        if str(wnid) in _label_of()  # the others are inner nodes of WordNet
    }
    return np.array([label_of_id[int(line)] for line in truth.split()], np.int64)


def _labelled_samples(index: TarIndex) -> tuple[Members, np.ndarray]:
    """Images of WebDataset shards and their labels: (M,) int64."""
    members, sidecars = index.members, {}
    for row, text in index.texts.items():
        sidecars.setdefault(_sample(members, row), {})[members.names[row].rpartition(".")[2]] = text
    rows = [row for row, name in enumerate(members.names) if is_image(name)]
    labels = np.empty(len(rows), np.int64)
    for place, row in enumerate(rows):
        archive = members.archives[members.places[row, 1]]
        labels[place] = _sample_label(members.names[row], sidecars.get(_sample(members, row), {}), archive)
    return members.take(rows), labels


def _sample(members: Members, row: int) -> tuple[int, str]:
    # In WebDataset the files of one sample share the part of their name before the first dot.
    folder, slash, file = members.names[row].rpartition("/")
    return int(members.places[row, 1]), folder + slash + file.partition(".")[0]


def _sample_label(name: str, sidecars: dict[str, bytes], archive: Path) -> int:
    try:
        described = json.loads(sidecars.get("json", b"{}"))
        label = int(sidecars["cls"]) if "cls" in sidecars else int(described["label"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"the sample {name} of {archive} has no label: expected a .cls file beside it, or a .json with `label`"
        ) from error
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
