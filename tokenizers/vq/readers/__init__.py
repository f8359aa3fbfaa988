"""Image sources by name; `load_images` opens one."""

from collections.abc import Callable
from pathlib import Path

from masc.runtime.errors import InputError
from vq.images import ImageSource
from vq.readers.coco import load_coco
from vq.readers.folders import load_class_folders, load_ffhq, load_lsun
from vq.readers.imagenet import load_imagenet
from vq.readers.links import warn_of_shared
from vq.readers.stored import StoredImages
from vq.readers.twemoji import load_twemoji

# Sources inside an installed package: (split, resolution) -> ImageSource.
EMBEDDED: dict[str, Callable[[str, int], ImageSource]] = {"twemoji": load_twemoji}
# Sources on disk: (folder, split, resolution) -> StoredImages.
ON_DISK: dict[str, Callable[[Path, str, int], StoredImages]] = {
    "imagenet": load_imagenet,
    "folder": load_class_folders,
    "coco": load_coco,
    "lsun": load_lsun,
    "ffhq": load_ffhq,
}
SOURCES = (*EMBEDDED, *ON_DISK)


def load_images(name: str, split: str, resolution: int, path: str | None = None) -> ImageSource:
    """The split (`train` or `val`) of the image source `name`, at `resolution` pixels a side.

    `path` is the folder of a source on disk. Raises InputError if it is missing or `name` is none of SOURCES."""
    if split not in ("train", "val"):
        raise ValueError(f"{name} has the splits train and val, not {split!r}")
    if name in EMBEDDED:
        return EMBEDDED[name](split, resolution)
    if name not in ON_DISK:
        raise InputError(f"there is no image source {name!r}; choose one of {', '.join(SOURCES)}")
    if path is None:
        raise InputError(f"the folder with the images of {name} is not named; name it with DATA_PATH=FOLDER")
    try:
        if not Path(path).is_dir():
            raise InputError(f"no folder {path} with the images of {name}; name it with DATA_PATH=FOLDER")
        source = ON_DISK[name](Path(path), split, resolution)
        warn_of_shared(source.members, Path(path), split)
        return source
    except OSError as error:
        raise InputError(
            f"cannot read {error.filename or path} ({error.strerror}), so images of {name} would be missing; make it "
            "readable, or move it away"
        ) from error
