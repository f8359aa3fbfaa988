"""Metrics against torch-fidelity's own functions, and laws of their own."""

import numpy as np
import pytest
import torch
from torch_fidelity import metric_fid as fidelity_fid
from torch_fidelity import metric_isc as fidelity_isc
from torch_fidelity import metric_prc as fidelity_prc

from masc.runtime.errors import InputError
from masc.tree import Partition
from metrics.fidelity import structural_similarity
from metrics.frechet import frechet_distance
from metrics.inception_score import inception_score
from metrics.precision_recall import precision_recall
from reports.tree.patches import cluster_sheet, token_patches


def clouds(n=400, m=300, d=16, shift=0.3, seed=0):
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((d, d))
    return (rng.standard_normal((n, d)) @ mix).astype(np.float32), (rng.standard_normal((m, d)) @ mix + shift).astype(
        np.float32
    )


GOOD = clouds(8, 6, 4)
NAN, NONE, FLAT = np.full((8, 4), np.nan), np.zeros((0, 4)), np.zeros(8)
WHOLE, WIDE = np.zeros((8, 4), np.uint8), clouds(8, 6, 5)[0]


@pytest.mark.parametrize("bad", [NAN, NONE, FLAT, WHOLE, WIDE], ids=["nan", "none", "flat", "whole", "wide"])
@pytest.mark.parametrize("metric", [frechet_distance, precision_recall])
def test_features_that_are_no_features_of_the_space_are_one_error(metric, bad):
    for pair in ((bad, GOOD[1]), (GOOD[1], bad)):
        with pytest.raises(InputError, match=r"not finite|expected floats \(M, D\)|different extractors"):
            metric(*pair)


@pytest.mark.parametrize("bad", [NAN, NONE, FLAT], ids=["nan", "none", "flat"])
def test_logits_that_are_none_or_not_finite_are_one_error(bad):
    with pytest.raises(InputError, match="the logits"):
        inception_score(bad)


def test_one_image_has_a_score_and_balls_but_no_covariance():
    one = GOOD[0][:1]
    assert inception_score(one) == pytest.approx(1) and precision_recall(one, GOOD[1])[0] in (0, 1)
    with pytest.raises(InputError, match="at least 2 samples, found 1"):
        frechet_distance(one, GOOD[1])


@pytest.mark.parametrize("shapes", [((2, 8, 8, 3),) * 2, ((2, 16, 16, 3), (2, 12, 12, 3)), ((16, 16, 3),) * 2])
def test_images_that_have_no_structural_similarity_are_refused(shapes):
    with pytest.raises(InputError, match="SSIM needs pairs of images of 11 pixels a side"):
        structural_similarity(*(np.zeros(shape, np.uint8) for shape in shapes))


def test_frechet_distance_equals_torch_fidelitys():
    a, b = clouds()
    statistics = [fidelity_fid.fid_features_to_statistics(torch.from_numpy(x).double()) for x in (a, b)]
    expected = fidelity_fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-9)


def test_frechet_distance_of_gaussians_with_known_moments():
    # N(0, I) and N(mu, 4 I) in 2-D: |mu|^2 + 2 (1 + 4 - 2 * 2) = |mu|^2 + 2, with moments made exact.
    rng = np.random.default_rng(0)
    white = rng.standard_normal((500, 2))
    white -= white.mean(0)
    white = white @ np.linalg.inv(np.linalg.cholesky(np.cov(white.T))).T
    np.testing.assert_allclose(frechet_distance(white, 2 * white + [3, 4]), 25 + 2, rtol=1e-9)


def test_frechet_distance_with_fewer_samples_than_dimensions():
    a, b = clouds(20, 24, 64)
    covariances = [np.cov(x.astype(np.float64).T) for x in (a, b)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariances[1] @ root), 0)).sum()
    mean = np.square(a.astype(np.float64).mean(0) - b.astype(np.float64).mean(0)).sum()
    expected = mean + sum(np.trace(c) for c in covariances) - 2 * cross
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-5)  # eigh is the loose one here
    assert abs(frechet_distance(a, a)) < 1e-6 * np.trace(covariances[0])


@pytest.mark.parametrize("spoil", [lambda x: x[:1], lambda x: x[:, :3], lambda x: np.where(x > 2, np.nan, x)])
def test_features_that_cannot_be_compared_are_refused(spoil):
    a, b = clouds()
    with pytest.raises(InputError):
        frechet_distance(a, spoil(b))


def test_inception_score_equals_torch_fidelitys():
    logits = np.random.default_rng(0).standard_normal((200, 10)).astype(np.float32) * 3
    expected = fidelity_isc.isc_features_to_metric(torch.from_numpy(logits), splits=1)["inception_score_mean"]
    np.testing.assert_allclose(inception_score(logits), expected, rtol=1e-9)


def test_inception_score_of_certain_and_of_uniform_predictions():
    np.testing.assert_allclose(inception_score(np.eye(8) * 1000), 8)
    np.testing.assert_allclose(inception_score(np.zeros((5, 8))), 1)


def test_precision_and_recall_equal_torch_fidelitys():
    a, b = clouds(shift=1.5)
    found = fidelity_prc.prc_features_to_metric(
        torch.from_numpy(a),
        torch.from_numpy(b),
        prc_neighborhood=3,
        prc_batch_size=1000,
        save_cpu_ram=False,
        verbose=False,
    )
    assert precision_recall(a, b) == (pytest.approx(found["precision"]), pytest.approx(found["recall"]))
    assert precision_recall(a, a + 1000.0) == (0.0, 0.0)
    assert precision_recall(a, a) == (1.0, 1.0)


def test_patches_show_the_tokens_own_cell():
    tokens = np.array([[0, 1, 2, 3]])
    image = np.zeros((1, 4, 4, 3), np.uint8)
    for token in range(4):
        image[0, 2 * (token // 2) :, 2 * (token % 2) :] = 10 * (token + 1)
    patches = token_patches(tokens, image, num_tokens=5, margin=1)
    assert patches.shape == (5, 4, 4, 3)
    for token in range(4):
        assert (patches[token, 1:3, 1:3] == 10 * (token + 1)).all()
    assert (patches[4] == 255).all()
    sheet = cluster_sheet(patches, Partition(np.array([0, 0, 1, 1, 1])), rows=2, columns=3, gap=0)
    assert sheet.shape == (8, 12, 3)
    assert np.array_equal(sheet[:4, :4], patches[2])  # the larger cluster first
