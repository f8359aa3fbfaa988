"""Folders of images in small."""

import ilsvrc

from vq.readers import load_images


def put(root, *names, data=None):
    """Images below a folder, each of its own colour."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(ilsvrc.jpeg(number) if data is None else data)
    return root


def classes(root):
    """The images of a folder of class folders that are for training."""
    return load_images("folder", "train", 16, root)
