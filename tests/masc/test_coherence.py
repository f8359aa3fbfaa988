"""Distances and similarities within clusters against naive loops, and the agreement of partitions."""

from itertools import combinations

import numpy as np
import pytest
from sklearn.metrics import adjusted_mutual_info_score

from masc import coherence
from masc.coherence import (
    agreement,
    intra_cluster_distance,
    intra_cluster_similarity,
    num_pairs,
    residual_variance,
)
from masc.runtime.errors import InputError
from masc.tree import Partition

NUM_TOKENS = 60
MEASURES = (intra_cluster_distance, intra_cluster_similarity)


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(0).standard_normal((NUM_TOKENS, 5)).astype(np.float32) + 0.5


@pytest.fixture(scope="module")
def partition():
    """Uneven clusters, one of them a single token."""
    labels = np.random.default_rng(1).choice(7, NUM_TOKENS, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05])
    labels[17] = 7
    return Partition(np.unique(labels, return_inverse=True)[1])


def distance(x, y):
    return np.linalg.norm(x - y)


def cosine(x, y):
    return x @ y / (np.linalg.norm(x) * np.linalg.norm(y))


@pytest.mark.parametrize(("measure", "of_two", "alone"), [(MEASURES[0], distance, 0), (MEASURES[1], cosine, 1)])
def test_within_clusters_against_a_loop_over_all_pairs(vectors, partition, measure, of_two, alone):
    wide = vectors.astype(np.float64)
    by_cluster = [
        [of_two(wide[i], wide[j]) for i, j in combinations(np.flatnonzero(partition.cluster_of == cluster), 2)]
        for cluster in range(partition.num_clusters)
    ]
    found = measure(vectors, partition)
    assert found.overall == pytest.approx(np.mean(np.concatenate(by_cluster)), abs=1e-12)
    np.testing.assert_allclose(found.by_cluster, [np.mean(values) if values else alone for values in by_cluster])
    assert num_pairs(partition) == sum(map(len, by_cluster))


def test_distances_do_not_depend_on_the_blocks(vectors, partition, monkeypatch):
    whole = intra_cluster_distance(vectors, partition)
    monkeypatch.setattr(coherence, "BLOCK", 7)
    blocked = intra_cluster_distance(vectors, partition)
    assert blocked.overall == pytest.approx(whole.overall, rel=1e-13)
    np.testing.assert_allclose(blocked.by_cluster, whole.by_cluster, rtol=1e-13)


def test_one_token_a_cluster_leaves_nothing_and_one_cluster_leaves_all(vectors):
    finest, coarsest = Partition(np.arange(NUM_TOKENS)), Partition(np.zeros(NUM_TOKENS, np.int64))
    assert intra_cluster_distance(vectors, finest).overall == 0
    assert intra_cluster_similarity(vectors, finest).overall == 1
    assert residual_variance(vectors, finest) == 0
    assert residual_variance(vectors, coarsest) == pytest.approx(1, abs=1e-12)
    pairs = list(combinations(vectors.astype(np.float64), 2))
    assert intra_cluster_distance(vectors, coarsest).overall == pytest.approx(np.mean([distance(*p) for p in pairs]))
    assert intra_cluster_similarity(vectors, coarsest).overall == pytest.approx(np.mean([cosine(*p) for p in pairs]))


def test_residual_variance_against_a_loop_and_never_more_for_a_finer_partition(vectors, partition):
    wide = vectors.astype(np.float64)
    left = sum(
        ((wide[partition.cluster_of == c] - wide[partition.cluster_of == c].mean(axis=0)) ** 2).sum()
        for c in range(partition.num_clusters)
    )
    assert residual_variance(vectors, partition) == pytest.approx(left / ((wide - wide.mean(axis=0)) ** 2).sum())
    finer = Partition(np.unique(partition.cluster_of * 2 + np.arange(NUM_TOKENS) % 2, return_inverse=True)[1])
    assert residual_variance(vectors, finer) <= residual_variance(vectors, partition)


def test_equal_and_zero_vectors():
    labels = np.array([0, 0, 0, 1])
    same = np.ones((4, 3), np.float32)
    assert residual_variance(same, Partition(labels)) == 0
    assert intra_cluster_distance(same, Partition(labels)).overall == 0
    assert intra_cluster_similarity(same, Partition(labels)).overall == pytest.approx(1)
    same[0] = 0  # two of the three pairs of the first cluster have a vector without direction
    assert intra_cluster_similarity(same, Partition(labels)).overall == pytest.approx(1 / 3)


@pytest.mark.parametrize("num_clusters", [2, 9, 40, 55])
def test_ami_is_scikit_learns(num_clusters):
    rng = np.random.default_rng(num_clusters)
    a, b = (np.unique(rng.integers(0, num_clusters, NUM_TOKENS), return_inverse=True)[1] for _ in range(2))
    b = np.where(rng.random(NUM_TOKENS) < 0.5, a, b)
    a, b = (Partition(np.unique(labels, return_inverse=True)[1]) for labels in (a, b))
    wanted = adjusted_mutual_info_score(a.cluster_of, b.cluster_of)
    assert agreement(a, b)["ami"] == pytest.approx(wanted, abs=1e-10)
    assert agreement(b, a)["ami"] == pytest.approx(wanted, abs=1e-10)


def test_agreement_is_one_with_itself_and_near_zero_with_chance(partition):
    for same in (partition, Partition(np.arange(8)), Partition(np.zeros(8, np.int64))):
        assert agreement(same, Partition(same.cluster_of.copy())) == {"ari": 1.0, "ami": 1.0}
    shuffled = Partition(np.random.default_rng(5).permutation(np.arange(2000) % 50))
    chance = agreement(Partition(np.arange(2000) % 50), shuffled)
    # The adjusted indices have mean 0 here; 200 permutations tried gave |ari| < 0.004, |ami| < 0.012.
    assert abs(chance["ari"]) < 0.01 and abs(chance["ami"]) < 0.03
    finest, coarsest = Partition(np.arange(8)), Partition(np.zeros(8, np.int64))
    assert agreement(finest, coarsest) == {"ari": 0.0, "ami": 0.0}


def test_another_codebooks_partition_is_refused(vectors, partition):
    for measure in (*MEASURES, residual_variance):
        with pytest.raises(InputError, match="60 tokens, the codebook 59"):
            measure(vectors[1:], partition)
    with pytest.raises(InputError, match="60, 8"):
        agreement(partition, Partition(np.arange(8)))
