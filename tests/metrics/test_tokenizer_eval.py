"""Evaluation of a tokenizer: its rows, their names and protocols, and the parts that are measured again."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from inception_weights import StandIn
from messages import PlainFormatter
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio
from skimage.metrics import structural_similarity as ssim

from masc.runtime.errors import InputError
from masc.tree import Partition
from metrics import tokenizer
from metrics.fidelity import Judges, llamagen_similarity, structural_similarity
from metrics.frechet import frechet_distance
from metrics.lite0 import lite0_features, load_extractor
from metrics.spaces import inception_space, lite0_space
from metrics.tokenizer import TokenizerTest, evaluate_tokenizer, measure_reconstruction
from vq.pixels import decode_pixels, encode_pixels
from vq.quality import peak_signal_to_noise
from vq.readers import load_images


def first(source, count):
    """The first images of a source, as a source."""
    fields = {name: getattr(source, name)[:count] for name in ("pixels", "labels", "keys")}
    return type(source)(**vars(source) | fields | {"groups": np.arange(count)})


@pytest.fixture(scope="module")
def evaluated(emoji32, tmp_path_factory):
    """The evaluation of the shipped tokenizer on 40 training and 20 held-out images, as a test and where it is."""
    folder = tmp_path_factory.mktemp("eval")
    weights = folder / "tokenizer.bin"
    weights.write_bytes(b"weights")
    cuts = {"pairs": {512: Partition(np.arange(1024) // 2)}, "fours": {256: Partition(np.arange(1024) // 4)}}
    train, held_out = (first(load_images("twemoji", split, 32), count) for split, count in (("train", 40), ("val", 20)))
    test = TokenizerTest(
        "emoji32", weights, train, held_out, cuts, num_images=30, seeds=(0, 1), folder=folder / "no-weights"
    )
    evaluate_tokenizer(emoji32, test, folder, "twemoji", folder / "reference.npz")
    return test, folder


def rows_of(rows):
    return {row["metric"]: row for row in rows}


def test_reconstruction_is_measured_on_held_out_images(evaluated, emoji32):
    test, folder = evaluated
    found = rows_of(json.loads((folder / "tokenizer.json").read_text())["reconstruction"])
    pixels = test.held_out.pixels
    tokens = encode_pixels(emoji32, pixels)
    plain = decode_pixels(emoji32, tokens)
    assert found["PSNR (dB)"]["value"] == pytest.approx(peak_signal_to_noise(pixels, plain).mean())
    assert found["SSIM"]["value"] == pytest.approx(structural_similarity(pixels, plain).mean())
    assert found["codebook usage"]["value"] == len(np.unique(tokens)) / 1024
    extractor = load_extractor()
    expected = frechet_distance(*(lite0_features(extractor, x).pooled for x in (plain, pixels)))
    assert found["rFD-lite0"]["value"] == pytest.approx(expected, rel=1e-4)
    assert found["rFD-lite0"]["protocol"]["reference_split"] == "val"
    assert all(row["protocol"]["images"] == "twemoji val" for row in found.values())
    assert all(row["protocol"]["num_images"] == 20 for row in found.values())
    assert not any("FID" in metric for metric in found)  # no Inception weights: nothing may be called so


def test_the_floors_are_those_of_training_images(evaluated):
    found = json.loads((evaluated[1] / "tokenizer.json").read_text())
    for name in ("training images", "reconstructions"):
        assert set(rows_of(found[name])) == {"FD-lite0", "IS-lite0", "precision-lite0", "recall-lite0"}
        assert found[name][0]["protocol"]["num_images"] == 30
    assert found["training images"][0]["value"] < found["reconstructions"][0]["value"]


def test_psnr_and_ssim_are_llamagens():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    b = np.clip(a + rng.normal(0, 20, a.shape), 0, 255).astype(np.uint8)
    # tokenizer/tokenizer_image/reconstruction_vq_ddp.py: both images float32 in [0, 1].
    pairs = [(x.astype(np.float32) / 255, y.astype(np.float32) / 255) for x, y in zip(a, b, strict=True)]
    psnr = [peak_signal_noise_ratio(y, x) for x, y in pairs]
    np.testing.assert_allclose(peak_signal_to_noise(a, b), psnr, rtol=1e-5)
    theirs = [ssim(y, x, data_range=2.0, channel_axis=-1) for x, y in pairs]
    np.testing.assert_allclose(llamagen_similarity(a, b), theirs, rtol=1e-5)
    assert (llamagen_similarity(a, b) > structural_similarity(a, b)).all()


@pytest.mark.parametrize(("space", "name"), [("inception", "rFID"), ("lite0", "rFD-lite0"), ("both", "rFID")])
def test_a_frechet_distance_bears_the_name_of_its_space(evaluated, emoji32, space, name):
    test = replace(evaluated[0], num_images=4)
    spaces = {"inception": inception_space(StandIn()), "lite0": lite0_space(load_extractor())}
    chosen = tuple(spaces.values()) if space == "both" else (spaces[space],)
    with torch.inference_mode():
        found = rows_of(measure_reconstruction(emoji32, test, Judges(chosen)))
    assert found[name]["value"] > 0 and ("rFD-lite0" in found) == (space != "inception")
    assert ("rFID" in found) == (space != "lite0")
    extractor = found[name]["protocol"]["extractor"]
    assert extractor == {"rFID": "inception-2015-12-05", "rFD-lite0": "efficientnet-lite0"}[name]


def test_lpips_is_reported_where_it_is_at_hand(evaluated, emoji32):
    def perceptual(a, b):
        return np.full(len(a), 0.25)

    perceptual.protocol = {"backbone": "test"}
    judges = Judges((lite0_space(load_extractor()),), perceptual)
    with torch.inference_mode():
        found = rows_of(measure_reconstruction(emoji32, replace(evaluated[0], num_images=4), judges))
    assert found["LPIPS"]["value"] == 0.25 and found["LPIPS"]["protocol"]["backbone"] == "test"


def test_the_replacement_test_is_written_with_its_images(evaluated):
    found = json.loads((evaluated[1] / "replacement.json").read_text())["replacement"]
    assert [(case["tree"], case["K"], case["largest_cluster"]) for case in found] == [
        ("pairs", 512, 2),
        ("fours", 256, 4),
    ]
    assert all([row["metric"] for row in case["metrics"]] == ["PSNR (dB)", "SSIM", "FD-lite0"] for case in found)
    with np.load(evaluated[1] / "pictures.npz") as archive:
        assert archive.files == ["original", "reconstruction", "pairs K=512", "fours K=256"]
    assert (evaluated[1] / "replacement.png").stat().st_size > 1000


def test_only_what_has_changed_is_made_anew(evaluated, emoji32, tmp_path, monkeypatch):
    test, folder = evaluated
    assert test.is_done(folder) and not test.is_done(tmp_path)
    assert replace(test, seeds=(0, 1, 2)).missing(folder) == ["replacement"]
    assert replace(test, num_images=10).missing(folder) == ["reconstruction", "replacement"]
    assert replace(test, reconstruction=False).missing(tmp_path) == ["replacement"]
    assert replace(test, partitions={}).missing(tmp_path) == ["reconstruction"]
    (tmp_path / "alexnet-owt-7be5be79.pth").write_bytes(b"has come")
    assert replace(test, folder=tmp_path).missing(folder) == ["reconstruction", "replacement"]
    (tmp_path / "tokenizer.json").write_text('{"reconstruction": []}')  # of an earlier version
    assert "reconstruction" in test.missing(tmp_path)
    for damaged in ("[1]", "{", "\0"):
        (tmp_path / "tokenizer.json").write_text(damaged)
        assert "reconstruction" in test.missing(tmp_path)
    whole = shutil.copytree(folder, tmp_path / "whole")
    (whole / "replacement.png").unlink()
    assert test.missing(whole) == ["replacement"]

    def refuse(*_):
        raise AssertionError("loaded again")

    monkeypatch.setattr(tokenizer, "load_extractor", refuse)
    assert evaluate_tokenizer(emoji32, test, folder, "twemoji", folder / "reference.npz") == folder


def test_a_single_held_out_image_is_refused(evaluated, emoji32, tmp_path):
    test = replace(evaluated[0], num_images=1)
    with pytest.raises(InputError, match="at least 2 held-out images, found 1"):
        evaluate_tokenizer(emoji32, test, tmp_path, "twemoji", tmp_path / "reference.npz")


def test_stored_images_are_read_a_batch_at_a_time(evaluated, emoji32, tmp_path, monkeypatch, caplog):
    pixels = evaluated[0].held_out.pixels
    for place, image in enumerate(pixels):
        path = tmp_path / "data" / ("train" if place % 2 else "val") / "emoji" / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    held_out, read = load_images("folder", "val", 32, tmp_path / "data"), []
    crop = type(held_out.pixels).__getitem__

    def record(self, rows):
        read.extend([len(rows)] if isinstance(rows, np.ndarray) else [])
        return crop(self, rows)

    monkeypatch.setattr(type(held_out.pixels), "__getitem__", record)
    monkeypatch.setattr(tokenizer, "BATCH", 4)
    test = replace(evaluated[0], train=None, held_out=held_out, partitions={}, num_images=9)
    evaluate_tokenizer(emoji32, test, tmp_path, "folder256", tmp_path / "reference.npz")
    assert read == [4, 4, 1]
    found = json.loads((tmp_path / "tokenizer.json").read_text())
    assert set(found) == {"inputs", "reconstruction"}  # no floors without training images
    assert "rFD-lite0" in rows_of(found["reconstruction"])
    lines = map(PlainFormatter().format, caplog.records)
    assert any(
        re.search("rFD-lite0 in place of rFID: .*make weights NAME=inception-2015-12-05", line) for line in lines
    )


def test_other_inception_weights_are_refused(evaluated, emoji32, tmp_path):
    (tmp_path / "pt_inception-2015-12-05-6726825d.pth").write_bytes(b"another network")
    test = replace(evaluated[0], folder=tmp_path)
    with pytest.raises(InputError, match=r"Inception weights in .* have SHA-256"):
        evaluate_tokenizer(emoji32, test, tmp_path, "twemoji", tmp_path / "reference.npz")
