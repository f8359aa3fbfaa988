"""The semantic replacement test: its draws, its comparison, and its image grid."""

import numpy as np
import pytest

from masc.tree import Partition
from metrics.fidelity import Judges
from metrics.lite0 import load_extractor
from metrics.replacement import (
    TreeCut,
    draws,
    labelled_grid,
    measure_replacement,
    num_shown,
    replace_tokens,
    shown_images,
)
from metrics.spaces import lite0_space
from metrics.streams import SourceImages
from reports.claims import state_claims
from vq.pixels import decode_pixels, encode_pixels
from vq.readers import load_images

PARTITION = Partition(np.array([0, 0, 1, 1, 1, 2]))


def test_replacement_stays_within_the_cluster_and_is_uniform():
    tokens = np.full((300, 40), 3)
    replaced = replace_tokens(tokens, PARTITION, draws(0))
    counts = np.bincount(replaced.ravel(), minlength=6)
    assert counts[[0, 1, 5]].sum() == 0
    assert (np.square(counts[2:5] - 4000) / 4000).sum() < 18.4  # chi-square, 2 degrees of freedom, 1e-4
    tokens = np.random.default_rng(0).integers(0, 6, (20, 9))
    assert np.array_equal(
        PARTITION.cluster_of[replace_tokens(tokens, PARTITION, draws(1))], PARTITION.cluster_of[tokens]
    )


def test_what_is_drawn_depends_on_the_seed_and_not_on_the_batches():
    tokens = np.random.default_rng(0).integers(0, 6, (20, 9))
    whole = replace_tokens(tokens, PARTITION, draws(0))
    rng = draws(0)
    parts = [replace_tokens(part, PARTITION, rng) for part in (tokens[:7], tokens[7:])]
    assert np.array_equal(whole, np.concatenate(parts))
    assert not np.array_equal(whole, replace_tokens(tokens, PARTITION, draws(1)))


@pytest.fixture(scope="module")
def images():
    return SourceImages(load_images("twemoji", "val", 32), np.arange(24))


@pytest.fixture(scope="module")
def results(emoji32, images):
    num_tokens = emoji32.num_tokens
    pairs = np.arange(num_tokens) // 2
    cases = [
        TreeCut("singletons", num_tokens, Partition(np.arange(num_tokens))),
        TreeCut("pairs", num_tokens // 2, Partition(pairs)),
        TreeCut("one", 1, Partition(np.zeros(num_tokens, int))),
    ]
    judges = Judges((lite0_space(load_extractor()),))
    found = measure_replacement(emoji32, images, cases, [0, 1], judges, {"tokenizer": "emoji32"}, batch_size=16)
    return cases, {case["tree"]: {row["metric"]: row for row in case["metrics"]} for case in found}


def test_within_singletons_the_images_are_the_plain_reconstructions(results):
    found = results[1]["singletons"]
    assert found["PSNR (dB)"]["value"] == 60 and found["SSIM"]["value"] == 1
    assert abs(found["FD-lite0"]["value"]) < 1e-6 * results[1]["one"]["FD-lite0"]["value"]


def test_coarser_clusters_keep_less(results):
    pairs, one = results[1]["pairs"], results[1]["one"]
    assert 60 > pairs["PSNR (dB)"]["value"] > one["PSNR (dB)"]["value"]
    assert 1 > pairs["SSIM"]["value"] > one["SSIM"]["value"]
    assert 1 < pairs["FD-lite0"]["value"] < one["FD-lite0"]["value"]


def test_a_value_is_the_mean_over_seeds_and_says_so(results, emoji32, images):
    row = results[1]["pairs"]["PSNR (dB)"]
    tokens = encode_pixels(emoji32, images.read(0, 24))
    plain = decode_pixels(emoji32, tokens).astype(float)
    expected = []
    for seed in (0, 1):
        replaced = decode_pixels(emoji32, replace_tokens(tokens, results[0][1].partition, draws(seed)))
        error = np.square(replaced - plain).mean(axis=(1, 2, 3))
        expected.append(np.minimum(20 * np.log10(255) - 10 * np.log10(error), 60).mean())
    np.testing.assert_allclose(row["protocol"]["by_seed"], expected, rtol=1e-6)
    assert row["value"] == pytest.approx(np.mean(expected))
    assert row["protocol"]["sd_over_seeds"] == pytest.approx(np.std(expected, ddof=1))
    assert row["protocol"]["seeds"] == [0, 1] and row["protocol"]["against"] == "plain reconstruction"
    distance = results[1]["pairs"]["FD-lite0"]
    assert distance["protocol"]["extractor"] == "efficientnet-lite0" and distance["protocol"]["num_images"] == 24


def test_the_grid_has_a_labelled_row_for_each_case(results, emoji32, images):
    originals = images.read(0, 5)
    rows = shown_images(emoji32, originals, results[0], seed=0)
    assert list(rows) == ["original", "reconstruction", "singletons K=1024", "pairs K=512", "one K=1"]
    assert np.array_equal(rows["singletons K=1024"], rows["reconstruction"])
    assert not np.array_equal(rows["one K=1"], rows["reconstruction"])
    sheet = np.asarray(labelled_grid(rows))
    assert sheet.shape[0] == 5 * (64 + 2)  # 32 pixels, twice as large, and a gap
    margin = sheet.shape[1] - 5 * (64 + 2)
    first = sheet[:64, margin : margin + 64]
    assert np.array_equal(first[::2, ::2], originals[0]) and np.array_equal(first[1::2, 1::2], originals[0])
    assert all((sheet[66 * place : 66 * place + 66, :margin] < 128).any() for place in range(5))  # the labels


def test_large_images_are_shown_in_short_rows():
    assert [num_shown(side) for side in (32, 64, 256, 1024)] == [24, 24, 8, 4]


def test_a_claim_pairs_the_seeds_of_two_trees():
    values = {"masc": [27.0, 29.0], "kmeans": [26.0, 27.5], "random": [12.0, 14.0]}
    cases = [
        {"tree": tree, "K": 512, "metrics": [{"metric": "PSNR (dB)", "value": 0, "protocol": {"by_seed": by_seed}}]}
        for tree, by_seed in values.items()
    ]
    table = [{"label": "flat", "seeds": [0], "nats": {"mean": 4.0}, "train_nats": 4.0}]
    texts = " ".join(claim["text"] for claim in state_claims(table, {"replacement": cases}, []))
    assert "keeps 28.0 dB, within random clusters of the same sizes 13.0 dB" in texts
    assert "MASC's clusters minus k-means clusters in that test: +1.25 ± 0.35 dB at K = 512." in texts
    assert "Ward's" not in texts
    assert "replacement" not in " ".join(claim["text"] for claim in state_claims(table, {"reconstruction": []}, []))
