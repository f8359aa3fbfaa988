"""The embedded feature space ranks sets of images as people would."""

from pathlib import Path

import numpy as np
import pytest

from masc.runtime.errors import InputError
from metrics import lite0
from metrics.lite0 import draw_variants, lite0_features, load_extractor, load_reference, measure_images
from metrics.streams import SourceImages
from vq.pixels import decode_pixels, encode_pixels
from vq.readers import load_images

FEATURES = Path(__file__).parents[1] / "data" / "golden" / "lite0" / "features.npz"


@pytest.fixture(scope="module")
def images():
    source = load_images("twemoji", "train", 32)
    return source, load_extractor()


def subset(source, rows):
    fields = vars(source) | {name: getattr(source, name)[rows] for name in ("pixels", "labels")}
    return type(source)(**{**fields, "groups": np.arange(len(rows))})


@pytest.fixture(scope="module")
def reference(images, tmp_path_factory):
    source, extractor = images
    small = subset(source, np.random.default_rng(0).permutation(draw_variants(source, np.random.default_rng(0)))[:200])
    path = tmp_path_factory.mktemp("reference") / "reference.npz"
    made = load_reference(path, "small", small.sha256, lambda: small, extractor)
    stored = load_reference(path, "small", small.sha256, None, None)  # nothing is needed
    assert stored.sha256 == made.sha256
    return made


def test_the_extractor_knows_its_classes_and_the_batch_changes_nothing(images):
    source, extractor = images
    some = source.pixels[:10]
    whole, parts = lite0_features(extractor, some), lite0_features(extractor, some, batch_size=3)
    assert whole.pooled.shape == (10, 1280) and whole.logits.shape == (10, 1000)
    np.testing.assert_allclose(whole.pooled, parts.pooled, atol=2e-4)
    read = lite0_features(extractor, SourceImages(source, np.arange(10)))
    assert np.array_equal(whole.pooled, read.pooled)
    with pytest.raises(InputError, match="uint8"):
        lite0_features(extractor, some.astype(np.float32))
    with pytest.raises(InputError, match="uint8"):
        lite0_features(extractor, some[:0])


def test_training_images_rank_before_reconstructions_before_shuffled_codes(images, reference, emoji32):
    # None of the images measured is in the reference: else training images would only be found again.
    source, extractor = images
    variants = draw_variants(source, np.random.default_rng(0))
    unseen = source.pixels[np.random.default_rng(0).permutation(variants)[200:350]]
    tokens = encode_pixels(emoji32, unseen)
    shuffled = np.random.default_rng(0).permutation(tokens.ravel()).reshape(tokens.shape)
    sets = (unseen, decode_pixels(emoji32, tokens), decode_pixels(emoji32, shuffled))
    found = [{row["metric"]: row for row in measure_images(x, reference, extractor, {"images": "test"})} for x in sets]
    distances = [rows["FD-lite0"]["value"] for rows in found]
    assert distances[0] < distances[1] < distances[2]
    precision = [rows["precision-lite0"]["value"] for rows in found]
    assert precision[0] > precision[1] > precision[2]
    assert set(found[0]) == {"FD-lite0", "IS-lite0", "precision-lite0", "recall-lite0"}
    assert found[0]["FD-lite0"]["protocol"]["reference_sha256"] == reference.sha256


@pytest.mark.parametrize("size", [32, 200])
def test_features_and_logits_equal_those_of_the_package_that_published_the_weights(images, size):
    rng = np.random.default_rng(size)
    noise = rng.integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    squares = rng.integers(0, 256, (3, 4, 4, 3), dtype=np.uint8).repeat(size // 4, 1).repeat(size // 4, 2)
    found = lite0_features(images[1], np.concatenate([noise, squares]))
    with np.load(FEATURES) as recorded:
        np.testing.assert_allclose(found.pooled, recorded[f"pooled_{size}"], atol=1e-4)
        np.testing.assert_allclose(found.logits, recorded[f"logits_{size}"], atol=1e-3)


def test_one_variant_of_each_group_is_drawn(images):
    source, _ = images
    chosen = draw_variants(source, np.random.default_rng(3))
    assert np.array_equal(source.groups[chosen], np.arange(1691))
    assert not np.array_equal(chosen, draw_variants(source, np.random.default_rng(4)))


def test_a_large_reference_is_a_seeded_choice(images, tmp_path, monkeypatch):
    source, extractor = images
    monkeypatch.setattr(lite0, "MAX_REFERENCE", 12)
    small = subset(source, np.arange(40))
    pooled = load_reference(tmp_path / "a.npz", "small", small.sha256, lambda: small, extractor).pooled
    again = load_reference(tmp_path / "b.npz", "small", small.sha256, lambda: small, extractor).pooled
    assert pooled.shape == (12, 1280) and np.array_equal(pooled, again)
    everything = lite0_features(extractor, small.pixels).pooled
    nearest = np.abs(pooled[:, None] - everything[None]).max(-1).argmin(1)
    assert len(set(nearest)) == 12 and not np.array_equal(nearest, np.arange(12))
