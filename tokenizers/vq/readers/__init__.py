"""Image sources by name: `load_images` opens the embedded one or one on disk."""

from pathlib import Path

from masc.runtime.artifacts import InputError
from vq.images import ImageSource
from vq.readers.coco import load_coco
from vq.readers.folders import load_class_folders, load_ffhq, load_lsun
from vq.readers.imagenet import load_imagenet

READERS = {  # of the sources on disk: (folder, split, resolution) -> StoredImages
    "imagenet": load_imagenet,
    "folder": load_class_folders,
    "coco": load_coco,
    "lsun": load_lsun,
    "ffhq": load_ffhq,
}


def load_images(name: str, split: str, resolution: int, path: str | None = None) -> ImageSource:
    """The split (`train` or `val`) of the image source called `name`, at `resolution` pixels a side.

    `path` is the folder that holds it; only `twemoji`, which comes with a package, needs none."""
    if name == "twemoji":
        from vq.readers.twemoji import Twemoji

        return Twemoji.load(split, resolution)
    if path is None:
        raise InputError(f'the images of {name} have no place; name their folder with ARGS="data.path=FOLDER"')
    if not Path(path).is_dir():
        raise InputError(f'no folder {path} with the images of {name}; name it with ARGS="data.path=FOLDER"')
    if split not in ("train", "val"):
        raise ValueError(f"{name} has the splits train and val, not {split!r}")
    if name not in READERS:
        raise InputError(f"no reader for the image source {name!r}; there are twemoji, {', '.join(READERS)}")
    return READERS[name](Path(path), split, resolution)
