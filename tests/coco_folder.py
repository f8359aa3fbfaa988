"""COCO in small, in exactly the official layout: annotations/captions_val2014.json and val2014/."""

import json
import os

import numpy as np
from PIL import Image

WORDS = ["a", "photo", "of", "two", "cats", "and", "the", "dog", "on", "green", "mat", "in", "rain", "under", "trees"]


def file_name(image_id, split="val2014"):
    return f"COCO_{split}_{image_id:012d}.jpg"


def make_coco(root, ids=range(3, 63, 3), split="val2014", seed=0, reverse=False):
    """Images of two sizes, the first grey; five captions each, their ids in no order, some with line breaks."""
    rng = np.random.default_rng(seed)
    places = rng.permutation(5 * len(ids))
    images = [{"license": 1, "file_name": file_name(i, split), "height": 40, "width": 30, "id": i} for i in ids]
    annotations = [
        {"image_id": image_id, "id": 1000 + int(places[5 * row + n]), "caption": f" {image_id} {words}.\n"}
        for row, image_id in enumerate(ids)
        for n, words in enumerate(" ".join(rng.choice(WORDS, 6)) for _ in range(5))
    ]
    annotations[0]["caption"] = f"{ids[0]} two\nlines"
    if reverse:
        images, annotations = images[::-1], annotations[::-1]
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    content = {"info": {"year": 2014}, "licenses": [], "images": images, "annotations": annotations}
    (root / "annotations" / f"captions_{split}.json").write_text(json.dumps(content))
    (root / split).mkdir(exist_ok=True)
    for row, image_id in enumerate(ids):
        shape = (40, 30) if row % 2 else (24, 50)
        image = Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
        path = root / split / file_name(image_id, split)
        (image if row else image.convert("L")).save(path)
        os.utime(path, (0, 0))  # the time is a part of an image's identity: what is made twice is the same
    return root
