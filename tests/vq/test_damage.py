"""Images, archives, annotations and shards of codes, damaged: see tests/damage.py."""

import json
import zipfile

import ilsvrc
import numpy as np
import pytest
from damage import Kind, check, damaged, plain, survives
from PIL import Image

from masc.runtime.artifacts import Codebook
from vq.codes.import_codes import _Numbered
from vq.codes.shards import ExtractConfig, Shards
from vq.readers import load_images
from vq.readers.tars import index_tars

pytestmark = [pytest.mark.usefixtures("little_memory"), pytest.mark.filterwarnings("ignore")]


def read_all(root):
    """Every image of a folder of classes, as a training would see it."""
    images = load_images("folder", "train", 8, str(root))
    return [images.pixels[row] for row in range(len(images))], images.labels.tolist()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF"])
def test_images(tmp_path, kind):
    path = tmp_path / "train" / "class" / "a.jpg"
    path.parent.mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 24, 3), np.uint8)).save(path, kind)
    check(Kind(path, lambda: read_all(tmp_path), 400))


def archive(path):
    """Three images of two classes in a zip or a tar."""
    files = [(f"{label}/{row}.jpg", ilsvrc.jpeg(row)) for label, row in (("a", 0), ("a", 1), ("b", 2))]
    if path.suffix == ".tar":
        path.write_bytes(ilsvrc.tar_of(files))
        return
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in files:
            target.writestr(name, data)


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_archives(tmp_path, suffix):
    path = tmp_path / f"train{suffix}"
    archive(path)
    check(Kind(path, lambda: read_all(tmp_path), 700))


def test_the_index_of_tars_is_made_again_whatever_it_holds(tmp_path):
    path = tmp_path / "train.tar"
    archive(path)

    def read():
        index = index_tars([path])
        return index.members.names, plain(index.members.places), index.texts

    sound = read()
    (cache,) = tmp_path.glob(".masc-index-*.npz")
    kind = Kind(cache, read, is_hashed=True)
    assert survives(kind, damaged(cache.read_bytes(), np.random.default_rng(0), 700))[1] == 0
    assert read() == sound


def test_webdataset(tmp_path, monkeypatch):
    monkeypatch.setattr("vq.readers.imagenet._check_classes", lambda labels, where: None)  # here are 3 of the 1,000
    files = [(f"{row}.jpg", ilsvrc.jpeg(row)) for row in range(3)]
    files += [("0.cls", b"7"), ("1.cls", b"8"), ("2.json", b'{"label": 9}')]
    path = tmp_path / "train-000.tar"
    path.write_bytes(ilsvrc.tar_of(sorted(files)))

    def read():
        images = load_images("imagenet", "train", 8, str(tmp_path))
        assert ((images.labels >= 0) & (images.labels < 1000)).all()
        return images.labels.tolist(), [images.pixels[row] for row in range(len(images))]

    labels, pixels = read()
    assert labels == [7, 8, 9] and [image.shape for image in pixels] == [(8, 8, 3)] * 3
    check(Kind(path, read, 500))


def test_coco(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train2017").mkdir()
    for number in (1, 2):
        (tmp_path / "train2017" / f"{number:012d}.jpg").write_bytes(ilsvrc.jpeg(number))
    content = {
        "images": [{"id": number, "file_name": f"{number:012d}.jpg"} for number in (1, 2)],
        "annotations": [{"id": 5, "image_id": 1, "caption": "a"}, {"id": 4, "image_id": 2, "caption": "é"}],
    }
    file = tmp_path / "annotations" / "captions_train2017.json"
    file.write_text(json.dumps(content))

    def read():
        images = load_images("coco", "train", 8, str(tmp_path))
        return images.captions, images.keys

    check(Kind(file, read, is_json=True))


def test_codes_of_llamagen(tmp_path):
    for folder, array in (("imagenet256_codes", np.arange(8)[None, None]), ("imagenet256_labels", np.array([3]))):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "0.npy", array)
    numbered = _Numbered(tmp_path, "imagenet256")
    check(Kind(numbered.codes / "0.npy", lambda: numbered.read(numbered.codes, 0)))


@pytest.mark.parametrize("name", ["000000.npz", "000000.failures.json"])
def test_shards_of_codes(tmp_path, name):
    codebook = Codebook.save(tmp_path / "codebook.npz", np.eye(4, dtype="f4"), {}, {"tokenizer": "a"})
    root = tmp_path / "images" / "train" / "class"
    root.mkdir(parents=True)
    for row in range(3):
        (root / f"{row}.jpg").write_bytes(ilsvrc.jpeg(row))
    images = load_images("folder", "train", 8, str(tmp_path / "images"))
    shards = Shards(tmp_path / "shards", images, {}, codebook, ExtractConfig(max_failed_share=1))
    shards.save(0, {"tokens": np.zeros((2, 1, 4), np.uint16)}, {1: "broken"})

    def read():
        return shards.is_done(0), plain(shards.load(0)), shards.failures(0), shards.list_failures()

    check(Kind(shards.folder / name, read, is_json=name.endswith(".json")))
