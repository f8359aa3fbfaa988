"""Readers of pictures on disk, by the name of their source: (folder, split, resolution) -> StoredImages."""

from vq.readers.coco import load_coco
from vq.readers.folders import load_class_folders, load_ffhq, load_lsun
from vq.readers.imagenet import load_imagenet

READERS = {
    "imagenet": load_imagenet,
    "folder": load_class_folders,
    "coco": load_coco,
    "lsun": load_lsun,
    "ffhq": load_ffhq,
}
