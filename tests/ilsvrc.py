"""ILSVRC 2012 in small, in exactly the layouts that people have: folders, tars of tars, devkit, WebDataset."""

import io
import json
import tarfile

import numpy as np
import webdataset
from PIL import Image
from scipy.io import savemat

from vq.readers.imagenet import wnids


def jpeg(value, size=(24, 20), kind="JPEG"):
    """An image whose colour tells `value` from others, as the bytes of a file."""
    pixels = np.full((size[1], size[0], 3), [value % 256, value // 256 * 40, 128], np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def add(tar, name, data):
    """Put a file into an open tar."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def tar_of(files):
    """The bytes of a tar of (name, bytes)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files:
            add(tar, name, data)
    return buffer.getvalue()


def class_folders(root, split="train"):
    """One image a class: root/train/n01440764/n01440764_7.JPEG, or val under its official name."""
    for label, wnid in enumerate(wnids()):
        folder = root / split / wnid
        folder.mkdir(parents=True)
        name = f"{wnid}_{label + 7}" if split == "train" else f"ILSVRC2012_val_{label + 1:08d}"
        (folder / f"{name}.JPEG").write_bytes(jpeg(label))


def official_tars(root):
    """ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and the devkit; val numbers classes by ILSVRC2012_ID."""
    rng = np.random.default_rng(0)
    order = rng.permutation(1000)  # of the inner tars, which are not sorted in the official file either
    train = [
        (f"{wnids()[label]}.tar", tar_of([(f"{wnids()[label]}_{n}.JPEG", jpeg(label)) for n in (31, 4)]))
        for label in order
    ]
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_of(train))
    ids = rng.permutation(1000) + 1  # ILSVRC2012_ID of each label
    labels = rng.permutation(1000)  # of the validation images
    val = [(f"ILSVRC2012_val_{n + 1:08d}.JPEG", jpeg(label)) for n, label in enumerate(labels)]
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar_of(val))
    synsets = np.zeros((1001, 1), [("ILSVRC2012_ID", object), ("WNID", object), ("words", object)])
    for label in range(1000):
        synsets[label, 0] = (np.array([[ids[label]]], np.uint16), np.array([wnids()[label]]), np.array(["x"]))
    synsets[1000, 0] = (np.array([[1001]], np.uint16), np.array(["n00001740"]), np.array(["an inner node"]))
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    truth = "".join(f"{ids[label]}\n" for label in labels).encode()
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        add(tar, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        add(tar, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth)


def shards(root, label_of=lambda label: label, kind="cls"):
    """WebDataset shards of 500 samples: imagenet1k-train-0000.tar with .jpg and .cls (or .json)."""
    for shard in range(2):
        with webdataset.TarWriter(str(root / f"imagenet1k-train-{shard:04d}.tar")) as tar:
            for label in range(shard * 500, shard * 500 + 500):
                key, stored = f"{wnids()[label]}_{label}", label_of(label)
                text = str(stored) if kind == "cls" else json.dumps({"label": stored, "filename": f"{key}.JPEG"})
                tar.write({"__key__": key, kind: text.encode(), "jpg": jpeg(label)})
