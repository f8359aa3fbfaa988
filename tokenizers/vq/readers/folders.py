"""Folders of class folders, and collections without classes (LSUN, FFHQ): as files, a zip, or tars.

If there is no separate validation split, one image in 50 is held out, chosen by a hash of its name."""

import hashlib
import re
from pathlib import Path

import numpy as np

from masc.runtime.errors import InputError
from vq.readers.members import Members, list_folder, list_zip
from vq.readers.stored import StoredImages
from vq.readers.tars import index_tars

HELD_OUT_ONE_IN = 50


def load_class_folders(root: Path, split: str, resolution: int) -> StoredImages:
    """Images with one folder for each class; the label is the place in the sorted folder names, as in ImageFolder.

    The classes are those of `train`. Raises InputError for an image outside of a class folder, and for a class that
    `train` does not have."""
    everything = open_split(root, "train")
    class_names = sorted({_class_of(name, root) for name in everything.names})
    members = open_split(root, split)
    unknown = sorted({_class_of(name, root) for name in members.names} - set(class_names))
    if unknown:
        raise InputError(
            f"{split} of {root} has the class {unknown[0]!r}, which train does not have; remove it, or add it to train"
        )
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = np.array([label_of[_class_of(name, root)] for name in members.names], np.int64)
    return StoredImages.of("folder", split, resolution, members, labels, tuple(class_names))


def load_lsun(root: Path, split: str, resolution: int) -> StoredImages:
    """A scene category of LSUN; one class. The official lmdb must be exported first."""
    if not any(root.glob("*.zip")) and (any(root.glob("**/data.mdb"))):
        raise InputError(
            f"{root} holds LSUN's lmdb. Reading it needs the package lmdb, which this project does not use. Export its "
            "images to a folder or to tars with LSUN's own data.py, and name that with DATA_PATH=FOLDER"
        )
    return _load_collection("lsun", root, split, resolution)


def load_ffhq(root: Path, split: str, resolution: int) -> StoredImages:
    """FFHQ's faces; one class."""
    return _load_collection("ffhq", root, split, resolution)


def _load_collection(name: str, root: Path, split: str, resolution: int) -> StoredImages:
    members = open_split(root, split)
    return StoredImages.of(name, split, resolution, members, np.zeros(len(members)), (name,))


def _class_of(name: str, root: Path) -> str:
    folder, slash, _ = name.partition("/")
    if not slash:
        raise InputError(f"the image {name} of {root} is outside of the class folders; move it to CLASS/{name}")
    return folder


def open_split(root: Path, split: str) -> Members:
    """The images of a split: those in root/split, root/split.zip or root/*split*.tar, otherwise a share of `root`."""
    members = _find_split(root, split)
    if members is not None:
        return members
    if _find_split(root, "train") is not None:
        raise InputError(f"{root} holds a train split but no {split}: expected {split}/, {split}.zip or *{split}*.tar")
    members = open_images(root)
    return members.take([row for row, name in enumerate(members.names) if is_held_out(name) == (split == "val")])


def _find_split(root: Path, split: str) -> Members | None:
    for place in (root / split, root / f"{split}.zip"):
        if place.exists():
            return open_images(place)
    word = re.compile(rf"(?<![a-z]){split}(?![a-z])", re.IGNORECASE)  # trainval.tar is not a train split
    tars = sorted(tar for tar in root.glob("*.tar") if word.search(tar.stem))
    return index_tars(tars).members.images() if tars else None


def is_held_out(name: str) -> bool:
    """Whether an image belongs to the validation split, by a hash of its name."""
    return int(hashlib.md5(name.encode()).hexdigest(), 16) % HELD_OUT_ONE_IN == 0


def open_images(place: Path) -> Members:
    """The images below a folder, in a zip or a tar, or in the zip or the tars that a folder holds.

    Raises InputError if there are no images, several zips, or archives beside images."""
    archives = [*place.glob("*.tar"), *place.glob("*.zip")] if place.is_dir() else []
    if archives and len(list_folder(place).images()):
        raise InputError(f"{place} holds images and {archives[0].name} beside them; move away what should not be read")
    if place.suffix == ".zip":
        members = list_zip(place)
    elif place.suffix == ".tar":
        members = index_tars([place]).members
    elif tars := sorted(place.glob("*.tar")):
        members = index_tars(tars).members
    elif zips := sorted(place.glob("*.zip")):
        if len(zips) > 1:
            raise InputError(f"{place} holds several zips ({', '.join(path.name for path in zips)}); keep one")
        members = list_zip(zips[0])
    else:
        members = list_folder(place)
    images = members.images()
    if not len(images):
        raise InputError(f"no images in {place}; name the folder, zip or tars that hold them")
    return images
