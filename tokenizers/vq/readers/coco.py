"""MS COCO: images with their captions and image ids; one class.

FOLDER/annotations/captions_train2017.json    (or directly in FOLDER; 2014 as well), with
FOLDER/train2017/*.jpg                        (or train2017.zip)"""

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from masc.runtime.errors import InputError
from masc.runtime.reading import MIB, Damaged, read_json
from vq.readers.folders import open_images
from vq.readers.stored import StoredImages

logger = logging.getLogger(__name__)
LARGEST_ANNOTATIONS = 1024 * MIB


def load_coco(root: Path, split: str, resolution: int) -> StoredImages:
    """The images that a split's captions name, in the order of their image ids.

    Captions are {"image_id": int, "captions": [str, ...]}, in the order of their own ids. Images without a file are
    listed in `missing`; images without captions, and files that are not listed, are counted in warnings. Raises
    InputError if a file is missing or broken, or if the folder holds two years of it."""
    file = find_annotations(root, split)
    images_of = file.stem.removeprefix("captions_")
    place = root / images_of
    place = place if place.exists() else root / f"{images_of}.zip"
    if not place.exists():
        raise InputError(
            f"no images of COCO at {root / images_of} or {place}; download them from cocodataset.org to there"
        )
    images, captions = read_annotations(file)
    members = open_images(place)
    row_of: dict[str, int] = {}
    for row, name in enumerate(members.names):
        other = row_of.setdefault(name.rpartition("/")[2], row)
        if other != row:
            raise InputError(
                f"{place} holds the images {members.names[other]} and {name}, which have one name; keep one"
            )
    there = [image_id for image_id, name in sorted(images.items()) if name in row_of]
    unlisted = sorted(row_of.keys() - set(images.values()))
    silent = [images[image_id] for image_id in there if image_id not in captions]
    for what, names in (("left out because they are not listed", unlisted), ("without captions", silent)):
        if names:
            logger.warning(
                "%s: %d of the images in %s are %s, the first is %a", file, len(names), place, what, names[0]
            )
    return StoredImages.of(
        "coco",
        split,
        resolution,
        members.take([row_of[images[image_id]] for image_id in there]),
        np.zeros(len(there)),
        ("coco",),
        tuple(
            {"image_id": image_id, "captions": [text for _, text in captions.get(image_id, [])]} for image_id in there
        ),
        tuple(name for _, name in sorted(images.items()) if name not in row_of),
    )


def find_annotations(root: Path, split: str) -> Path:
    """The captions file of a split. The split names the year (val2014), or the folder holds one year only (val).

    Raises InputError unless exactly one file is found."""
    files = sorted([*root.glob(f"annotations/captions_{split}*.json"), *root.glob(f"captions_{split}*.json")])
    if len(files) != 1:
        others = sorted([*root.glob("annotations/captions_*.json"), *root.glob("captions_*.json")])
        found = ", ".join(map(str, files or others)) or "none"
        wanted = split if split[-1:].isdigit() else f"{split}YEAR"
        raise InputError(f"expected one file annotations/captions_{wanted}.json in {root}, found {found}")
    return files[0]


@dataclass
class _Image:
    id: int
    file_name: str


@dataclass
class _Caption:
    id: int
    image_id: int
    caption: str


@dataclass
class _Annotations:
    """The keys of a captions file of COCO that are read."""

    images: list[_Image]
    annotations: list[_Caption]


def read_annotations(file: Path) -> tuple[dict[int, str], dict[int, list[tuple[int, str]]]]:
    """File names by image id, and captions by image id; a caption is its own id and its text, in the order of ids.

    Captions of images that the file does not list are left out with a warning. Raises InputError if the file is damaged
    or holds something else, or if an id or a file name occurs twice."""
    try:
        content = read_json(file, _Annotations, at_most=LARGEST_ANNOTATIONS)
    except Damaged as error:
        raise InputError(
            f"{file} is not a captions file of COCO, or it is truncated ({error}); download it again"
        ) from error
    for what, values in (
        ("image id", [image.id for image in content.images]),
        ("file name", [image.file_name for image in content.images]),
        ("caption id", [caption.id for caption in content.annotations]),
    ):
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            raise InputError(f"{file} holds the {what} {twice[0]!r} twice; download it again")
    images = {image.id: image.file_name for image in content.images}
    lost = [caption.id for caption in content.annotations if caption.image_id not in images]
    if lost:
        logger.warning(
            "%s: %d of the %d captions are left out because their images are not in its list of images, the first is "
            "the caption %d",
            *(file, len(lost), len(content.annotations), lost[0]),
        )
    captions: dict[int, list[tuple[int, str]]] = {}
    for one in sorted(content.annotations, key=lambda caption: caption.id):
        captions.setdefault(one.image_id, []).append((one.id, one.caption.strip()))
    return images, captions
