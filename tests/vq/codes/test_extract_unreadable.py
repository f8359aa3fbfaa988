"""Extraction of images that are missing, cannot be read, or do not fit: listed, or one error."""

import os
import re
import signal
from dataclasses import replace

import ilsvrc
import numpy as np
import pytest
from codes import CodesStage, main
from extraction import EMOJI, NUM_IMAGES, SETTINGS
from stage import load_config

from masc.runtime.codes import load_codes
from masc.runtime.errors import InputError
from vq.codebook import make_codebook
from vq.codes.extract import extract_codes
from vq.codes.shards import ExtractConfig
from vq.crops import Views
from vq.interface import TokenizerConfig, tokenizer_path
from vq.pretrained import load_tokenizer
from vq.readers import load_images


def test_unreadable_images_are_listed_and_left_out(images, small, tmp_path):
    model, codebook = small
    broken = tmp_path / "images" / "train" / "class 3" / "13.jpg"
    broken.write_bytes(broken.read_bytes()[:-200])
    extract_codes(model, images(), Views("center"), codebook, tmp_path / "codes", SETTINGS)  # one is let pass
    codes = load_codes(tmp_path / "codes", codebook.meta.sha256)
    assert codes.num_images == NUM_IMAGES - 1 and codes.groups.tolist() == list(range(NUM_IMAGES - 1))
    failures = (tmp_path / "codes" / "failures.txt").read_text()
    assert re.fullmatch(r"class 3/13.jpg: OSError: .*[Tt]runcated.*\n", failures)
    keys = (tmp_path / "codes" / "keys.txt").read_text().splitlines()
    assert "class 3/13.jpg" not in keys
    extract_codes(
        model, images(), Views("center"), codebook, tmp_path / "again", ExtractConfig(shard_size=5, num_workers=0)
    )
    again = load_codes(tmp_path / "again", codebook.meta.sha256)
    assert np.array_equal(again.tokens, codes.tokens) and again.labels.tolist() == codes.labels.tolist()
    leftover = tmp_path / ".codes.12345.partial"  # of a process that died while it joined
    leftover.mkdir()
    before = (tmp_path / "codes" / "codes.npy").stat().st_mtime_ns
    extract_codes(model, images(), Views("center"), codebook, tmp_path / "codes", SETTINGS)
    assert (tmp_path / "codes" / "codes.npy").stat().st_mtime_ns == before and not leftover.exists()


def test_a_split_without_images_is_refused(squares, small, tmp_path):
    model, codebook = small
    none = replace(squares, split="val", pixels=squares.pixels[:0], labels=squares.labels[:0], keys=())
    with pytest.raises(InputError, match="squares has no val images"):
        extract_codes(model, none, Views("center"), codebook, tmp_path / "codes", SETTINGS)


def test_too_many_unreadable_images_stop_the_run_until_they_are_mended(images, small, tmp_path):
    model, codebook = small
    whole = [tmp_path / "images" / "train" / f"class {n % 5}" / f"{n:02d}.jpg" for n in (3, 24)]
    saved = [file.read_bytes() for file in whole]
    for file in whole:
        file.write_bytes(b"")
    settings = ExtractConfig(shard_size=5, num_workers=0)
    with pytest.raises(InputError, match=r"2 of the 50 images .* more than the 1 allowed.*codes/train-failures.txt"):
        extract_codes(model, images(), Views("center"), codebook, tmp_path / "codes" / "train", settings)
    listed = (tmp_path / "codes" / "train-failures.txt").read_text()
    assert [line.partition(":")[0] for line in listed.splitlines()] == ["class 3/03.jpg", "class 4/24.jpg"]
    strict = ExtractConfig(shard_size=5, num_workers=0, max_failed_share=0.0)
    with pytest.raises(InputError, match="1 of the 50 images"):
        extract_codes(model, images(), Views("center"), codebook, tmp_path / "codes" / "strict", strict)
    for file, data in zip(whole, saved, strict=True):
        file.write_bytes(data)
    extract_codes(model, images(), Views("center"), codebook, tmp_path / "codes" / "train", settings)
    assert load_codes(tmp_path / "codes" / "train", codebook.meta.sha256).num_images == NUM_IMAGES
    assert not (tmp_path / "codes" / "train-failures.txt").exists()


def test_missing_images_count_as_unreadable(small, tmp_path):
    model, codebook = small
    ilsvrc.class_folders(tmp_path)
    source = load_images("imagenet", "train", 16, tmp_path)
    with pytest.raises(InputError, match=r"1280167 of the 1281167 images of imagenet train are missing"):
        extract_codes(model, source, Views("center"), codebook, tmp_path / "codes", SETTINGS)


def test_an_image_that_cannot_be_cropped_or_decoded_is_listed_with_the_others(images, small, tmp_path, monkeypatch):
    model, codebook = small
    errors = {"13.jpg": MemoryError(), "22.jpg": RuntimeError("Failed to decode\nframe 0")}
    views = Views("center")

    class Failing:
        names = views.names

        def __call__(self, image, size):
            if error := errors.pop(next(iter(errors), None), None) if image.width == 21 else None:
                raise error
            return views(image, size)

    settings = ExtractConfig(num_workers=0, max_failed_share=0.1)
    extract_codes(model, images(), Failing(), codebook, tmp_path / "codes", settings)
    failures = (tmp_path / "codes" / "failures.txt").read_text().splitlines()
    assert [line.partition(": ")[2] for line in failures] == [
        "MemoryError: MemoryError",
        "RuntimeError: Failed to decode frame 0",
    ]


def test_a_process_that_decodes_images_and_dies_is_one_error(images, small, tmp_path):
    class Deadly:
        names = ("centre",)

        def __call__(self, image, size):
            os.kill(os.getpid(), signal.SIGKILL)  # as the system does when the memory is used up

    model, codebook = small
    settings = ExtractConfig(num_workers=1)
    with pytest.raises(InputError, match=r"a process that decodes images died .*extraction.num_workers=1"):
        extract_codes(model, images(), Deadly(), codebook, tmp_path / "codes", settings)


def test_both_splits_are_checked_before_one_is_written(tmp_path):
    for n in range(3):
        for split in ("train", "val"):
            file = tmp_path / "d" / split / f"{split if n == 2 else n}" / "1.jpg"
            file.parent.mkdir(parents=True)
            file.write_bytes(ilsvrc.jpeg(n))
    path = tokenizer_path(EMOJI, tmp_path)
    make_codebook(EMOJI, path, tmp_path / "emoji32" / "codebook.npz", load_tokenizer(path, EMOJI))
    options = ["tokenizer=emoji32", "data=folder256", "data.resolution=32", f"data.path={tmp_path / 'd'}"]
    with pytest.raises(InputError, match=r"val of .* has the class 'val', which train does not have"):
        main(load_config("codes", CodesStage, [*options, f"artifacts={tmp_path}"]))
    assert not (tmp_path / "emoji32" / "codes").exists()


def test_images_that_do_not_fit_the_tokenizer_are_refused(squares, small, tmp_path):
    config = TokenizerConfig(name="emoji32", target="vq.autoencoder:ConvVQ")
    path = tokenizer_path(config, tmp_path)
    model = load_tokenizer(path, config)
    codebook = make_codebook(config, path, tmp_path / "codebook.npz", model)
    with pytest.raises(InputError, match="16 pixels a side, but the tokenizer takes 32"):
        extract_codes(model, squares, Views("center"), codebook, tmp_path / "codes", SETTINGS)
    odd = replace(squares, pixels=np.zeros((50, 18, 18, 3), np.uint8))
    with pytest.raises(InputError, match="squares have 18 pixels a side, but the tokenizer takes multiples of 4"):
        extract_codes(model, odd, Views("center"), codebook, tmp_path / "codes", SETTINGS)
