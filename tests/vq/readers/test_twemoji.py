"""The embedded images: split by base emoji, without duplicates."""

import numpy as np
import pytest

from masc.runtime.errors import InputError
from vq.pixels import to_tensor, to_uint8
from vq.readers import load_images
from vq.readers.twemoji import CLASS_NAMES, identify, is_held_out, normalise


@pytest.fixture(scope="module")
def splits():
    return {split: load_images("twemoji", split, 32) for split in ("train", "val")}


def test_the_counts_are_those_of_the_package_version_pinned(splits):
    assert len(splits["train"]) == 3500 and len(splits["val"]) == 183
    assert splits["train"].groups.max() + 1 == 1691
    assert np.bincount(splits["val"].labels).min() >= 5


def test_no_base_emoji_is_in_both_splits(splits):
    bases = {
        split: {identify(key.removesuffix(".png")).base for key in source.keys} for split, source in splits.items()
    }
    assert not bases["train"] & bases["val"]
    assert all(is_held_out(base) for base in bases["val"])
    assert not any(is_held_out(base) for base in bases["train"])


def test_groups_are_bases_and_share_a_class(splits):
    source = splits["train"]
    bases = np.array([identify(key.removesuffix(".png")).base for key in source.keys])
    for group in range(0, source.groups.max() + 1, 50):
        rows = source.groups == group
        assert len(set(bases[rows])) == 1
        assert len(set(source.labels[rows])) == 1
    assert len(set(splits["val"].groups)) == len(splits["val"])


def test_no_image_appears_twice(splits):
    pixels = np.concatenate([load_images("twemoji", split, 72).pixels for split in splits])
    assert len({row.tobytes() for row in pixels}) == len(pixels)


def test_images_are_on_white_at_the_size_asked_for(splits):
    source = splits["train"]
    assert source.pixels.shape == (3500, 32, 32, 3) and source.pixels.dtype == np.uint8
    corners = source.pixels[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners > 250).all(-1).mean() > 0.8
    assert source.pixels.std() > 60
    assert source.class_names == CLASS_NAMES and "CC-BY 4.0" in source.attribution


@pytest.mark.parametrize(
    ("code", "base", "label", "caption"),
    [
        ("1f600", "1f600", "Smileys & Emotion", "grinning face"),
        ("31-20e3", "31-20e3", "Symbols", "keycap 1"),  # a keycap: 0031-FE0F-20E3 in the catalogue
        ("1f44d-1f3ff", "1f44d", "People & Body", "thumbs up sign, dark skin tone"),
        ("1f1e9-1f1ea", "1f1e9-1f1ea", "Flags", "germany flag"),
    ],
)
def test_an_image_is_identified_by_its_file_name(code, base, label, caption):
    emoji = identify(code)
    assert (emoji.base, CLASS_NAMES[emoji.label], emoji.caption) == (base, label, caption)


def test_what_has_no_class_is_left_out():
    assert identify("1f3fb") is None  # a bare skin-tone swatch
    assert normalise("0023-FE0F-20E3") == "23-20e3"


def test_an_unknown_source_or_split_is_refused():
    with pytest.raises(ValueError, match="train and val, not 'test'"):
        load_images("twemoji", "test", 32)
    with pytest.raises(InputError, match="the folder with the images of imagenet is not named"):
        load_images("imagenet", "train", 256)


def test_pixels_survive_the_way_through_tensors():
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    assert np.abs(to_uint8(to_tensor(pixels)).astype(int) - pixels).max() <= 1
