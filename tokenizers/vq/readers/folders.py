"""Folders of class folders, and collections without classes (LSUN, FFHQ): as files, a zip, or tars.

If there is no separate validation split, one image in 50 is held out, chosen by a hash of its name."""

import hashlib
import logging
import os
import re
import shlex
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from masc.runtime.errors import InputError
from vq.readers.entries import parents
from vq.readers.members import IMAGE_SUFFIXES, Members, is_archive, is_image, is_visible, list_folder, top_folders
from vq.readers.stored import StoredImages
from vq.readers.tars import TarMembers, index_tars
from vq.readers.zips import list_zip

logger = logging.getLogger(__name__)
HELD_OUT_ONE_IN = 50
# Names of splits.
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
OTHER_SPLITS = tuple(name for names in SPLITS.values() for name in names)
# Categories of LSUN, scenes and objects, without its trains: their folder is named like a split.
LSUN_CATEGORIES = (
    *("bedroom", "bridge", "church_outdoor", "classroom", "conference_room", "dining_room", "kitchen", "living_room"),
    *("restaurant", "tower", "airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("dining_table", "dog", "horse", "motorbike", "person", "potted_plant", "sheep", "sofa", "tv-monitor"),
)
LSUN_NAME = re.compile(rf"({'|'.join(LSUN_CATEGORIES)})(?![a-z])", re.IGNORECASE)


def load_class_folders(root: Path, split: str, resolution: int) -> StoredImages:
    """Images with one folder for each class; the label is the place in the sorted folder names, as in ImageFolder.

    The classes are those of `train`. Raises InputError for an image outside of a class folder, a class folder without
    images, and a class that `train` does not have."""

    def class_of(name: str) -> str:
        folder, slash, _ = name.partition("/")
        if not slash:
            raise InputError(f"the image {name} of {root} is outside of the class folders; move it to CLASS/{name}")
        return folder

    everything = open_split(root, "train", class_of)
    class_names = _check_classes(everything, {class_of(name) for name in everything.names}, f"train of {root}")
    _refuse_wrappers(everything, class_names, root)
    members = everything if split == "train" else open_split(root, split, class_of)
    unknown = sorted({class_of(name) for name in members.names} - set(class_names))
    if unknown:
        is_look_alike = _look(unknown[0]) in map(_look, class_names)
        shown = ascii(unknown[0]) if is_look_alike else repr(unknown[0])
        raise InputError(
            f"{split} of {root} has the class {shown}, which train does not have; remove it, or add it to train"
        )
    _check_classes(members, {class_of(name) for name in members.names}, f"{split} of {root}")
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = np.array([label_of[class_of(name)] for name in members.names], np.int64)
    return StoredImages.of("folder", split, resolution, members, labels, tuple(class_names))


def _refuse_wrappers(members: Members, class_names: list[str], root: Path) -> None:
    """Raise InputError for a class folder that holds the true class folders, or splits of them."""
    inside = _folders_inside(members)
    for name in class_names:
        folders = inside[name]
        holds_folders = "" not in folders and (len(inside) == 1 or folders <= set(OTHER_SPLITS))
        if holds_folders or (len(inside) == 1 and name.lower() in OTHER_SPLITS):
            raise InputError(
                f"the folder {name!r} in train of {root} would be one class, but it holds folders or is named like a "
                f"split ({', '.join(sorted(folders - {''})[:5]) or name}); if these are classes or splits, name it "
                f"with {_data_path(root / name)}, or move them one level up, and pack an archive anew from inside of it"
            )


def _folders_inside(members: Members) -> dict[str, set[str]]:
    """The folders, in lower case, inside each folder at the top; an empty name stands for files in it."""
    inside: dict[str, set[str]] = {}
    for name in members.names:
        first, slash, rest = name.partition("/")
        if slash:
            inside.setdefault(first, set()).add(rest.partition("/")[0].lower() if "/" in rest else "")
    return inside


def _data_path(folder: Path) -> str:
    """The argument that names a folder. It may be inside an archive, and then has no path."""
    return f"DATA_PATH={shlex.quote(str(folder)) if folder.is_dir() else 'FOLDER'}"


def _check_classes(members: Members, with_images: set[str], where: str) -> list[str]:
    """The sorted names of the classes; InputError for a folder without images, or for two names that look the same."""
    empty = sorted(filter(is_visible, members.folders - with_images))
    if empty:
        raise InputError(
            f"{where} has class folders without images: {', '.join(map(repr, empty[:10]))}; add their images (which "
            f"end in {', '.join(IMAGE_SUFFIXES)}), or remove the folders"
        )
    looks: dict[str, str] = {}
    for name in sorted(with_images):
        other = looks.setdefault(_look(name), name)
        if other != name:
            raise InputError(f"{where} has the classes {other!a} and {name!a}, which look the same; merge them")
    return sorted(with_images)


def _look(name: str) -> str:
    """The name in the one form of Unicode that all names of the same look share."""
    return unicodedata.normalize("NFC", name)


def load_lsun(root: Path, split: str, resolution: int) -> StoredImages:
    """A category of LSUN; one class. The official lmdb must be exported first.

    Raises InputError if there are several categories."""
    if not any(root.glob("*.zip")) and (any(root.glob("**/data.mdb"))):
        raise InputError(
            f"{root} holds LSUN's lmdb. Reading it needs the package lmdb, which this project does not use. Export its "
            "images to a folder or to tars with LSUN's own data.py, and name that with DATA_PATH=FOLDER"
        )
    source = _load_collection("lsun", root, split, resolution)
    folders = {part for name in parents(source.keys) for part in name.split("/")}
    archives = source.members.archives if isinstance(source.members, TarMembers) else ()
    found = map(LSUN_NAME.match, (*folders, *(path.stem for path in archives)))
    categories = sorted({match[0].lower() for match in found if match})
    if len(categories) > 1:
        raise InputError(
            f"{split} of {root} holds several categories of LSUN: {', '.join(categories)}; name the folder or the tars "
            "of one with DATA_PATH=FOLDER, or read them as classes with data.source=folder"
        )
    return source


def load_ffhq(root: Path, split: str, resolution: int) -> StoredImages:
    """FFHQ's faces; one class. Raises InputError if a face is there in several versions, as in FFHQ's own download."""
    return _load_collection("ffhq", root, split, resolution, lambda name: PurePosixPath(name).stem)


def refuse_twice(names: Iterable[str], image_of: Callable[[str], str] | None, root: Path) -> None:
    """Raise InputError if two files are of one image: `image_of` gives the part of a name that is the image's own,
    without the suffix and without folders of versions. None: names tell nothing."""
    first_of: dict[str, str] = {}
    for name in names if image_of else ():
        key = image_of(name)
        if key in first_of:
            shared = PurePosixPath(os.path.commonpath([first_of[key], name])).parts
            version = root.joinpath(*PurePosixPath(first_of[key]).parts[: len(shared) + 1])
            raise InputError(
                f"{root} holds one image twice, as {first_of[key]} and as {name}; keep one, or name the folder of one "
                f"version with {_data_path(version)}"
            )
        first_of[key] = name


def _load_collection(
    name: str, root: Path, split: str, resolution: int, image_of: Callable[[str], str] | None = None
) -> StoredImages:
    """The images of one class. Raises InputError if the folders of splits are inside another folder."""
    members = open_split(root, split, lambda _: name, image_of)
    folders = _folders_inside(members)
    for folder, inside in folders.items():
        if inside <= set(OTHER_SPLITS):
            raise InputError(
                f"the folder {folder!r} in {split} of {root} holds the splits {', '.join(sorted(inside))}, which would "
                f"be mixed; name it with {_data_path(root / folder)}, or pack an archive anew from inside of it"
            )
    top = next(iter(folders), "")
    if len(folders) == 1 and not top.isdecimal() and (root / top).is_dir() and all("/" in one for one in members.names):
        logger.warning(
            "all images of %s are in its folder %s; if that folder is the set, name it with %s, because the images "
            "held out are chosen by their names below DATA_PATH",
            *(root, top, _data_path(root / top)),
        )
    return StoredImages.of(name, split, resolution, members, np.zeros(len(members)), (name,))


def open_split(
    root: Path, split: str, class_of: Callable[[str], str], image_of: Callable[[str], str] | None = None
) -> Members:
    """The images of a split: those in root/split, root/split.zip or root/*split*.tar, otherwise a share of `root`.

    `class_of` gives the class of an image by its name. One image of each class at least is for training. Raises
    InputError if `image_of` is the same for two names, as `refuse_twice`."""
    members = _find_split(root, split)
    if members is not None:
        refuse_twice(members.names, image_of, root)
        return members
    other = "val" if split == "train" else "train"
    if _find_split(root, other) is not None:
        raise InputError(
            f"{root} holds a {other} split but no {split}: expected {split}/, {split}.zip or *{split}*.tar"
        )
    members = open_images(root)
    splits = sorted(filter(is_visible, members.folders))
    if splits and all(name.lower() in OTHER_SPLITS for name in splits):
        raise InputError(f"{root} holds the folders {', '.join(splits)}; name them train and val")
    refuse_twice(members.names, image_of, root)
    held_out = np.array([is_held_out(name) for name in members.names])
    first_of: dict[str, int] = {}
    for row, name in enumerate(members.names):
        if not held_out[row]:
            first_of[class_of(name)] = -1
        else:
            first_of.setdefault(class_of(name), row)
    held_out[[row for row in first_of.values() if row >= 0]] = False
    share = members.take(np.flatnonzero(held_out == (split == "val")))
    return share if split == "train" else replace(share, folders=top_folders(share.names, ()))


def _find_split(root: Path, split: str) -> Members | None:
    """The images in the one place that is a split; InputError if there are two."""
    places = [root / split] if (root / split).exists() else []
    places += [path for path in root.iterdir() if path.name.lower() == f"{split}.zip"]
    tars = tars_of_split(root, split)
    if len(places) + bool(tars) > 1:
        names = ", ".join(path.name for path in (*places, *tars[:1]))
        raise InputError(f"{root} holds several places with images of {split}: {names}; keep one, move the others away")
    if places:
        return open_images(places[0])
    return _images(index_tars(tars).members, root) if tars else None


def tars_of_split(root: Path, split: str) -> list[Path]:
    """The tars in a folder with the word `split` in their names, sorted.

    Raises InputError for a tar that names both train and val."""
    found = []
    for path in sorted(path for path in root.iterdir() if path.suffix.lower() == ".tar" and is_visible(path.name)):
        # trainval.tar is not a train split.
        words = {name for name in ("train", "val") if re.search(_word(name), path.stem, re.IGNORECASE)}
        if len(words) > 1:
            raise InputError(f"{path} names both train and val; rename it, with the one that it holds in its name")
        if split in words:
            found.append(path)
    return found


def _word(split: str) -> str:
    return rf"(?<![a-z])({'|'.join(SPLITS[split])})(?![a-z])"


def is_held_out(name: str) -> bool:
    """Whether an image belongs to the validation split, by a hash of its name."""
    return int(hashlib.md5(name.encode()).hexdigest(), 16) % HELD_OUT_ONE_IN == 0


def open_images(place: Path) -> Members:
    """The images below a folder, in a zip or a tar, or in the zip or the tars that a folder holds.

    Raises InputError if there are no images, or if archives would not be read: several zips, other kinds, or archives
    beside images or in other archives."""
    packed = [place]
    if place.is_dir():
        loose = list_folder(place)
        packed = sorted(place / name for name in loose.names if is_archive(name) and "/" not in name)
        if not packed or any(map(is_image, loose.names)):
            return _images(loose, place)
    kinds = [path.suffix.lower() for path in packed]
    if set(kinds) == {".tar"}:
        return _images(index_tars(packed).members, place)
    if kinds != [".zip"]:
        names = ", ".join(path.name for path in packed[:10])
        raise InputError(f"{place} holds {names}; expected one zip or tars: unpack the others, or move them away")
    return _images(list_zip(packed[0]), place)


def _images(members: Members, place: Path) -> Members:
    """The images among the files; InputError if there are none, or an archive that would not be read."""
    packed = next(filter(is_archive, members.names), None)
    if packed is not None:
        raise InputError(
            f"{place} holds images and the archive {packed} beside them, which would not be read; unpack it, or move "
            "it away"
        )
    images = members.images()
    if not len(images):
        raise InputError(f"no images in {place}; name the folder, zip or tars that hold them")
    return images
