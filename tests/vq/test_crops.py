"""Crops equal LlamaGen's, pixel for pixel."""

import random

import numpy as np
import pytest
from golden import load_golden
from PIL import Image

from vq.crops import Views, center_crop, random_crop, ten_crop
from vq.data import DataConfig

META, DATA = load_golden("preproc")


@pytest.mark.parametrize("case", META["center"], ids=lambda case: case["key"])
def test_the_centre_crop_is_the_official_one(case):
    pixels = DATA[f"img_{case['img']}"]
    assert np.array_equal(center_crop(pixels, case["size"]), DATA[case["key"]])
    assert np.array_equal(center_crop(Image.fromarray(pixels), case["size"]), DATA[case["key"]])


@pytest.mark.parametrize("case", META["random"], ids=lambda case: case["key"])
def test_the_random_crop_draws_as_the_official_one(case):
    pixels, shares = DATA[f"img_{case['img']}"], (case["min_crop_frac"], case["max_crop_frac"])
    rng = random.Random(case["python_random_seed"])
    random.seed(case["python_random_seed"])
    for key in (case["key"], f"{case['key']}_second"):
        assert np.array_equal(random_crop(pixels, case["size"], *shares, rng), DATA[key])
        assert np.array_equal(random_crop(pixels, case["size"], *shares), DATA[key])


@pytest.mark.parametrize("case", META["ten_crop"], ids=lambda case: case["key"])
def test_the_ten_crops_are_the_official_ones(case):
    found = ten_crop(DATA[f"img_{case['img']}"], case["size"], case["crop_range"])
    assert np.array_equal(found, DATA[case["key"]])


def test_a_square_of_the_wanted_size_is_left_alone():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    assert np.array_equal(center_crop(pixels, 32), pixels)


def config(**values):
    return DataConfig(**{"name": "x", "source": "twemoji", "resolution": 32, "tokenizer": "t"} | values)


@pytest.mark.parametrize(("crops", "train", "val"), [("center", 1, 1), ("center-flip", 2, 2), ("ten-crop", 20, 1)])
def test_views_are_counted_and_the_first_of_val_is_the_centre_crop(crops, train, val):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8))
    for split, count in (("train", train), ("val", val)):
        views = config(crops=crops).views(split)
        found = views(image, 32)
        assert found.shape == (count, 32, 32, 3) and len(set(views.names)) == count
    assert np.array_equal(found[0], center_crop(image, 32))


def test_views_of_ten_crop_are_the_sets_of_both_ranges_by_name():
    image = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)
    views = config(crops="ten-crop").views("train")
    sets = [ten_crop(image, 32, crop_range) for crop_range in (1.1, 1.05)]
    assert np.array_equal(views(image, 32), np.concatenate(sets))
    mirrored = views.names.index("1.05 centre mirrored")
    assert np.array_equal(sets[1][mirrored - 10], center_crop(image, 33)[:, ::-1][:32, :32])  # (33 - 32) / 2 is 0
    flipped = Views("center-flip")(image, 32)
    assert np.array_equal(flipped[1], flipped[0][:, ::-1])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"crops": "five"}, "data.crops must be one of center, center-flip, ten-crop, not 'five'"),
        ({"crop_ranges": [0.9]}, "data.crop_ranges must be"),
        ({"crop_ranges": [float("nan")]}, "data.crop_ranges must be"),
        ({"resolution": 0}, "data.resolution must be positive, found 0"),
    ],
)
def test_other_crops_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        config(**values)


@pytest.mark.parametrize("shape", [(300, 1), (3, 300), (130, 17), (20, 1000), (5, 9)])
def test_a_strip_is_cut_to_the_pixels_of_the_whole_scaled_image_but_for_rounding(shape, monkeypatch):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    whole = [center_crop(image, 16), random_crop(image, 16, 0.8, 1.0, random.Random(1))]
    monkeypatch.setattr("vq.crops.MAX_SCALED", 0)
    cut = [center_crop(image, 16), random_crop(image, 16, 0.8, 1.0, random.Random(1))]
    assert np.abs(np.subtract(whole, cut, dtype=int)).max() <= 1


def test_a_long_strip_is_never_scaled_as_a_whole(monkeypatch):
    resize = Image.Image.resize

    def small(image, size, *arguments):
        assert size[0] * size[1] <= 256 * 256
        return resize(image, size, *arguments)

    monkeypatch.setattr(Image.Image, "resize", small)
    assert center_crop(Image.new("RGB", (1, 6000), "red"), 256).shape == (256, 256, 3)
