"""On a GPU: the features, distances and balls of the CPU, in true float32."""

import numpy as np
import pytest
import torch

from masc.runtime.files import hash_file
from metrics.frechet import Gaussian, frechet_distance
from metrics.inception import exact_arithmetic, load_inception
from metrics.precision_recall import precision_recall
from metrics.resize import RESIZES

pytestmark = pytest.mark.gpu


def test_the_network_gives_the_cpus_features(inception, seeded_weights):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, 64, 64), dtype=np.uint8))
    there = load_inception(seeded_weights, hash_file(seeded_weights), "cuda")
    with exact_arithmetic():
        for resize in RESIZES.values():
            for here, found in zip(inception(resize(images, 299)), there(resize(images.cuda(), 299)), strict=True):
                assert (found.cpu() - here).abs().max() < 1e-5 * here.abs().max()


def test_distances_and_balls_are_the_cpus():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((700, 300)).astype(np.float32), 1.2 * rng.standard_normal((600, 300)).astype(np.float32)
    on_gpu = frechet_distance(Gaussian.of(a, "cuda"), Gaussian.of(b, "cuda"))
    assert on_gpu == pytest.approx(frechet_distance(a, b), rel=1e-9)
    with exact_arithmetic():
        for half in (False, True):
            assert precision_recall(a, b, half, "cuda") == pytest.approx(precision_recall(a, b, half), abs=2e-3)
