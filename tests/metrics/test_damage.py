"""Results, references and images to be measured, damaged: see tests/damage.py."""

import json

import numpy as np
import pytest
from damage import Kind, check
from PIL import Image

from masc.runtime.errors import InputError
from masc.runtime.files import hash_file
from masc.runtime.reading import open_array, other_kind, read_npz
from metrics.coco_protocol import CaptionList, load_captions, save_captions
from metrics.inception import load_inception
from metrics.reference import POOLED, _read_statistics
from metrics.results import Results, row
from metrics.streams import NpzImages, open_samples
from vq.pretrained import _config_in
from vq.readers.tars import index_tars
from vq.readers.zips import list_zip

pytestmark = [pytest.mark.usefixtures("little_memory"), pytest.mark.filterwarnings("ignore")]


def test_results(tmp_path):
    interval = {"low": 1.0, "high": 2.0, "level": 0.95, "method": "bootstrap", "replicates": 20}
    rows = [row("FID", 1.5, {"evaluator": "adm", "num_images": 50_000, "guidance": 2.0}, interval), row("IS", 3.0, {})]
    Results(rows, {"images": {"count": 4}}).save(tmp_path / "a.json")
    check(Kind(tmp_path / "a.json", lambda: Results.load(tmp_path / "a.json"), is_json=True))


def test_references(tmp_path):
    header = json.dumps({"name": "a", "count": 4, "split": None, "extractor_sha256": "a" * 64, "resize": "pil"})
    np.savez(tmp_path / "a.npz", mu=np.zeros(POOLED), sigma=np.zeros((4, POOLED)), header=np.array(header))
    check(Kind(tmp_path / "a.npz", lambda: _read_statistics(tmp_path / "a.npz"), 700))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_samples_in_one_file(tmp_path, save):
    save(tmp_path / "a.npz", arr_0=np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3), arr_1=np.arange(4))

    def read():
        images = open_samples(tmp_path / "a.npz")
        return images.read(0, len(images)).tolist()

    check(Kind(tmp_path / "a.npz", read, 700))


def test_samples_in_a_folder(tmp_path):
    for index in range(2):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / f"{index}.png")

    def read():
        images = open_samples(tmp_path)
        return images.read(0, len(images)).tolist()

    check(Kind(tmp_path / "1.png", read, 700))


LISTS = {"a.json": None, "a.txt": "a cat\né\n", "a.csv": 'Prompt\na cat\n"Head shot" of a zebra\n'}


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_captions(tmp_path, name):
    path = tmp_path / name
    if LISTS[name] is None:
        about = {"split": "val2014", "seed": 0, "annotations_sha256": "a" * 64}
        save_captions(path, CaptionList(["a cat", "é"], [5, 7], [1, 2], about))
    else:
        path.write_text(LISTS[name])

    def read():
        found = load_captions(path)
        return found.texts, found.image_ids, found.caption_ids

    check(Kind(path, read, is_json=name == "a.json", is_hashed=name == "a.json"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of git-lfs, .* `git lfs pull`"),
        (b"\xef\xbb\xbf <!-- moved --><html>", "a web page"),
        ("\ufeff<?xml version='1.0'?><Error>".encode("utf-16-le"), "a web page"),
        (b"\x1f\x8b\x08\x00" + bytes(20), "a file compressed by gzip, .*`gunzip`"),
    ],
    ids=["git-lfs", "comment", "utf-16", "gzip"],
)
def test_what_stands_in_the_place_of_a_download_is_named_by_every_reader(tmp_path, content, words):
    path = tmp_path / "file"
    path.write_bytes(content)
    readers = [read_npz, lambda path: open_array(path, "f", None), lambda path: index_tars([path]), list_zip, NpzImages]
    readers += [_config_in, lambda path: load_inception(path, hash_file(path))]
    for read in readers:
        with pytest.raises(InputError, match=rf"file .*it is {words}"):
            read(path)
    assert ("gzip" in words) == (other_kind(path) is not None and other_kind(path.rename(tmp_path / "a.gz")) is None)
