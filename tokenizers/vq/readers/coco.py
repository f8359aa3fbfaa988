"""MS COCO: images with their captions and image ids; one class.

FOLDER/annotations/captions_train2017.json    (or directly in FOLDER; 2014 as well), with
FOLDER/train2017/*.jpg                        (or train2017.zip)"""

import json
from pathlib import Path

import numpy as np

from masc.runtime.errors import InputError
from vq.readers.folders import open_images
from vq.readers.stored import StoredImages


def load_coco(root: Path, split: str, resolution: int) -> StoredImages:
    """The images that a split's captions name, in the order of their image ids.

    Captions are {"image_id": int, "captions": [str, ...]}, in the order of their own ids. Images without a file are
    listed in `missing`. Raises InputError if a file is missing or broken, or if the folder holds two years of it."""
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
    row_of = {name.rpartition("/")[2]: row for row, name in enumerate(members.names)}
    there = [image_id for image_id, name in sorted(images.items()) if name in row_of]
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


def read_annotations(file: Path) -> tuple[dict[int, str], dict[int, list[tuple[int, str]]]]:
    """File names by image id, and captions by image id; a caption is its own id and its text, in the order of ids."""
    try:
        content = json.loads(file.read_text())
        images = {int(image["id"]): str(image["file_name"]) for image in content["images"]}
        captions: dict[int, list[tuple[int, str]]] = {}
        for annotation in sorted(content["annotations"], key=lambda annotation: annotation["id"]):
            caption = int(annotation["id"]), annotation["caption"].strip()
            captions.setdefault(int(annotation["image_id"]), []).append(caption)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file} is not a captions file of COCO, or it is truncated ({error!r}); download it again"
        ) from error
    return images, captions
