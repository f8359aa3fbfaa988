"""The smaller-tokenizer control: what stands for a cluster, and clusters of one token, which change nothing."""

import sys

import numpy as np
import pytest
import torch
from extraction import SMALL
from scipy.spatial.distance import cdist

from masc.tree import Partition


@pytest.fixture
def bench(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import small_tokenizer

    yield small_tokenizer
    del sys.modules["small_tokenizer"]


def test_the_medoid_has_the_smallest_sum_of_squared_distances_to_its_cluster(bench):
    rng = np.random.default_rng(0)
    vectors, partition = rng.standard_normal((60, 5)), Partition(rng.integers(0, 9, 60))
    medoids, means = bench.central_members(partition, vectors)
    for cluster in range(partition.num_clusters):
        members = np.flatnonzero(partition.cluster_of == cluster)
        inside = cdist(vectors[members], vectors[members], "sqeuclidean").sum(1)
        assert medoids[cluster] == members[inside.argmin()]
        np.testing.assert_allclose(means[cluster], vectors[members].mean(0))


def test_clusters_of_one_token_are_decoded_as_the_token_in_every_way(bench):
    torch.manual_seed(0)
    large, small = (SMALL.build().eval().requires_grad_(False) for _ in range(2))
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    ways = bench.decoders(large, small, Partition(np.arange(32)))
    found = {name: [decode(pixels) for decode in decodes] for name, decodes in ways.items()}
    plain = found.pop(bench.LARGE)[0]
    assert not np.array_equal(found.pop(bench.SMALL)[0], plain)
    assert set(found) == {"random member", "medoid", "mean"} and len(found["random member"]) == 3
    for images in (image for each in found.values() for image in each):
        assert np.abs(images.astype(int) - plain).max() <= 1  # the mean is normalised once more
