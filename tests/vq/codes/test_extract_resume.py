"""Extraction after an interruption, damage or a change: finished work is kept, and only that of the same images."""

import json
from dataclasses import replace

import ilsvrc
import numpy as np
import pytest
from extraction import NUM_IMAGES, SETTINGS, content, stop_after
from PIL import Image
from user_errors import tells

from masc.runtime.codes import load_codes
from masc.runtime.errors import InputError, naming
from masc.runtime.verify import verify_codes
from vq.codes import extract
from vq.codes.extract import extract_codes
from vq.codes.shards import ExtractConfig, Shards
from vq.crops import Views
from vq.readers import load_images


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_interrupted_extraction_goes_on_to_the_same_bytes(images, small, tmp_path, monkeypatch, num_workers):
    model, codebook = small
    settings = ExtractConfig(batch_size=10, shard_size=8, num_workers=num_workers, max_failed_share=0.1)
    (tmp_path / "images" / "train" / "class 2" / "22.jpg").write_bytes(b"no image")
    views = Views("center-flip")
    extract_codes(model, images(), views, codebook, tmp_path / "whole", settings)
    for shards in (2, 1):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_after(patch, shards)
            extract_codes(model, images(), views, codebook, tmp_path / "broken", settings)
    finished = sorted(file.name for file in (tmp_path / ".broken.shards").glob("*.npz"))
    assert finished == ["000000.npz", "000001.npz", "000002.npz"]
    with monkeypatch.context() as patch:
        stop_after(patch, 4)  # one more would be one that was finished before
        extract_codes(model, images(), views, codebook, tmp_path / "broken", settings)
    assert content(tmp_path / "broken") == content(tmp_path / "whole")
    assert not (tmp_path / ".broken.shards").exists()
    assert verify_codes(tmp_path / "whole") == 7


def test_finished_shards_of_other_images_or_settings_are_made_anew(images, small, tmp_path, monkeypatch, caplog):
    model, codebook = small
    settings = ExtractConfig(shard_size=8, num_workers=0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 3)
        extract_codes(model, images(), Views("center"), codebook, tmp_path / "codes", settings)
    (tmp_path / "images" / "train" / "class 0" / "00.jpg").write_bytes(ilsvrc.jpeg(77, size=(50, 50)))
    damaged = tmp_path / ".codes.shards" / "000001.npz"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    extract_codes(model, images(), Views("center"), codebook, tmp_path / "codes", settings)
    extract_codes(model, images(), Views("center"), codebook, tmp_path / "fresh", settings)
    assert content(tmp_path / "codes") == content(tmp_path / "fresh")
    assert "000000.npz was made from other images or another config" in caplog.text
    assert "000001.npz, which is damaged" in caplog.text and "000002.npz" not in caplog.text


def test_a_shard_that_breaks_before_the_join_is_one_error(images, small, tmp_path, monkeypatch):
    model, codebook = small

    def breaks(self, *arguments):
        save(self, *arguments)
        self.file(arguments[0]).write_bytes(b"half")

    save = Shards.save
    monkeypatch.setattr(Shards, "save", breaks)
    with tells(r"000000.npz.*`make codes DATA=squares TOKENIZER=small`"), naming(data="squares", tokenizer="small"):
        extract_codes(model, images(), Views("center-flip"), codebook, tmp_path / "codes", ExtractConfig(num_workers=0))


def test_damaged_codes_are_made_again(images, small, tmp_path, caplog):
    model, codebook = small
    path, source = tmp_path / "codes", images()
    extract_codes(model, source, Views("center"), codebook, path, SETTINGS)
    whole = content(path)
    for name in ("codes.npy", "labels.npy", "keys.txt", "meta.json"):
        (path / name).write_bytes(whole[name][:-1] + bytes([whole[name][-1] ^ 1]))
        extract_codes(model, source, Views("center"), codebook, path, SETTINGS)
        assert content(path) == whole, name
        (path / name).unlink()
        extract_codes(model, source, Views("center"), codebook, path, SETTINGS)
        assert content(path) == whole, name
    assert "does not match its checksum; the codes are made again" in caplog.text


def test_changed_captions_are_written_again_without_the_tokens(squares, small, tmp_path, monkeypatch):
    model, codebook = small
    path = tmp_path / "codes"
    extract_codes(model, squares, Views("center"), codebook, path, SETTINGS)
    monkeypatch.setattr(extract, "save_codes", None)
    whole = content(path)
    other = replace(squares, captions=tuple(f"other {n}" for n in range(NUM_IMAGES)))
    for source, damage in ((other, None), (squares, None), (squares, b""), (squares, b"[1, 2]")):
        if damage is not None:
            (path / "captions.json").write_bytes(damage)
        extract_codes(model, source, Views("center"), codebook, path, SETTINGS)
        assert json.loads((path / "captions.json").read_text()) == list(source.captions)
    assert content(path) == whole


def test_a_second_launch_is_refused_and_leaves_nothing(images, small, tmp_path, monkeypatch):
    model, codebook = small
    path, source = tmp_path / "codes", images()

    def second(*arguments):  # begins while the first one joins its shards
        with pytest.raises(InputError, match=r"another launch makes the codes at .*codes; wait for it"):
            extract_codes(model, source, Views("center"), codebook, path, ExtractConfig(num_workers=0, shard_size=9))
        join(*arguments)

    join = extract._join
    monkeypatch.setattr(extract, "_join", second)
    extract_codes(model, source, Views("center"), codebook, path, SETTINGS)
    assert load_codes(path, codebook.meta.sha256).num_images == NUM_IMAGES
    assert not list(tmp_path.glob(".codes.shards*")) and not list(tmp_path.glob(".codes.*.partial*"))


def test_finished_codes_need_no_lock(images, small, tmp_path, monkeypatch):
    model, codebook = small
    extract_codes(model, images(), Views("center"), codebook, tmp_path / "codes", SETTINGS)

    def refuse(*_, **__):
        raise InputError("the file system is read-only")

    monkeypatch.setattr(extract, "lock_codes", refuse)
    extract_codes(model, images(), Views("center"), codebook, tmp_path / "codes", SETTINGS)
    with pytest.raises(InputError, match="read-only"):
        extract_codes(model, images(), Views("center-flip"), codebook, tmp_path / "codes", SETTINGS)


def test_images_replaced_by_others_of_the_same_size_make_other_codes(small, tmp_path, caplog):
    model, codebook = small
    root = tmp_path / "d" / "train" / "a"
    root.mkdir(parents=True)
    for name, colour in (("1", "red"), ("2", "blue")):
        Image.new("RGB", (16, 16), colour).save(tmp_path / name, "BMP")
    (root / "x.bmp").symlink_to(tmp_path / "1")
    tokens = []
    for target in ("1", "2"):
        (root / "x.bmp").unlink()
        (root / "x.bmp").symlink_to(tmp_path / target)
        source = load_images("folder", "train", 16, tmp_path / "d")
        extract_codes(model, source, Views("center"), codebook, tmp_path / "codes", SETTINGS)
        tokens.append(np.array(load_codes(tmp_path / "codes", codebook.meta.sha256).tokens))
    assert not np.array_equal(*tokens)
    assert "was made by another config; it is made again:\n  images_sha256" in caplog.text


def test_codes_of_an_earlier_version_are_kept_with_a_warning(images, small, tmp_path, monkeypatch, caplog):
    model, codebook = small
    with monkeypatch.context() as patch:
        patch.setattr("vq.readers.stored.StoredImages.identity", lambda self, rows: self.earlier_sha256)
        extract_codes(model, images(), Views("center"), codebook, tmp_path / "codes", SETTINGS)
    before = content(tmp_path / "codes")
    extract_codes(model, images(), Views("center"), codebook, tmp_path / "codes", SETTINGS)
    assert content(tmp_path / "codes") == before
    assert "was made by an earlier version" in caplog.text
    file = tmp_path / "images" / "train" / "class 0" / "00.jpg"
    file.write_bytes(file.read_bytes() + b"x")
    extract_codes(model, images(), Views("center"), codebook, tmp_path / "codes", SETTINGS)
    assert content(tmp_path / "codes")["meta.json"] != before["meta.json"]
