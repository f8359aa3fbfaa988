"""K-means in three kinds, and random clusters of equal size."""

import warnings

import numpy as np
import pytest
from sklearn.cluster import KMeans

from masc.kmeans import _assign_balanced, kmeans, kmeans_balanced, kmeans_sklearn, random_balanced
from masc.runtime.errors import InputError
from masc.tree import Partition

KINDS = [kmeans, kmeans_sklearn, kmeans_balanced]


def points(n, d=4, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def inertia(vectors, partition):
    means = np.stack([vectors[partition.cluster_of == c].mean(0) for c in range(partition.num_clusters)])
    return np.square(vectors - means[partition.cluster_of]).sum()


def naive_assignment(vectors, centres):
    """Tokens in order of distance to their nearest centre, each to the nearest centre with room."""
    distances = np.linalg.norm(vectors[:, None].astype(float) - centres[None], axis=-1)
    base, extra = divmod(len(vectors), len(centres))
    sizes, labels = np.zeros(len(centres), int), np.empty(len(vectors), int)
    for token in np.argsort(distances.min(1)):
        for centre in np.argsort(distances[token]):
            if sizes[centre] < base or (sizes[centre] == base and (sizes > base).sum() < extra):
                labels[token] = centre
                sizes[centre] += 1
                break
    return labels


@pytest.mark.parametrize("make", KINDS)
def test_kmeans_gives_k_clusters_by_the_seed_and_beats_random_ones(make):
    vectors = points(200)
    made = make(vectors, 50, 0)
    assert made.num_clusters == 50
    assert np.array_equal(made.cluster_of, make(vectors, 50, 0).cluster_of)
    assert not np.array_equal(made.cluster_of, make(vectors, 50, 1).cluster_of)
    assert inertia(vectors, made) < 0.5 * inertia(vectors, random_balanced(200, 50, 0))


@pytest.mark.parametrize("make", KINDS)
def test_one_cluster_and_as_many_as_tokens(make):
    vectors = points(24)
    assert make(vectors, 1, 0).sizes.tolist() == [24]
    assert make(vectors, 24, 0).sizes.tolist() == [1] * 24


@pytest.mark.parametrize("make", KINDS)
def test_every_cluster_is_filled_even_with_duplicate_rows(make):
    vectors = np.repeat(points(10), 4, axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make(vectors, 20, 0).num_clusters == 20
    assert make(np.ones((12, 3), np.float32), 5, 0).num_clusters == 5


def test_scikit_learns_partition_is_the_papers_recipe():
    vectors = points(200)
    reference = KMeans(20, init="random", n_init=10, random_state=4).fit(vectors)  # App. A.3
    made = kmeans_sklearn(vectors, 20, seed=4)
    assert np.array_equal(made.cluster_of, Partition(reference.labels_).cluster_of)
    single = KMeans(20, init="random", n_init=1, random_state=4).fit(vectors)
    assert inertia(vectors, made) <= single.inertia_ * (1 + 1e-6)


@pytest.mark.parametrize("num_clusters", [1, 2, 7, 30, 50, 99, 100])
def test_balanced_sizes_differ_by_one_at_most(num_clusters):
    expected = np.full(num_clusters, 100 // num_clusters)
    expected[: 100 % num_clusters] += 1
    for made in (kmeans_balanced(points(100), num_clusters, 0), random_balanced(100, num_clusters, 0)):
        assert np.array_equal(np.sort(made.sizes)[::-1], expected)


@pytest.mark.parametrize("listed", [1, 3, 200])
@pytest.mark.parametrize("num_clusters", [5, 20, 64, 150])
def test_a_balanced_assignment_is_the_greedy_one_whatever_is_listed_at_once(monkeypatch, listed, num_clusters):
    monkeypatch.setattr("masc.kmeans.LISTED", listed)
    monkeypatch.setattr("masc.kmeans.SEARCHED", 2 * listed)
    vectors = points(200)
    centres = points(num_clusters, seed=1)
    assert np.array_equal(_assign_balanced(vectors, centres), naive_assignment(vectors, centres))


def test_balanced_kmeans_keeps_the_best_round(monkeypatch):
    vectors = points(240)
    objectives = []
    for rounds in range(1, 30):
        monkeypatch.setattr("masc.kmeans.MAX_BALANCED_ROUNDS", rounds)
        objectives.append(inertia(vectors, kmeans_balanced(vectors, 30, 0)))
    assert (np.diff(objectives) <= 1e-6).all()
    assert objectives[-1] < 0.9 * objectives[0]


def test_random_balanced_is_random_by_its_seed():
    first, second = random_balanced(1000, 10, 0).cluster_of, random_balanced(1000, 10, 1).cluster_of
    assert np.array_equal(first, random_balanced(1000, 10, 0).cluster_of)
    # Two tokens of one cluster share one in the other draw with chance 99 / 999; 5 standard errors of 49,500 pairs.
    together = (first[:, None] == first) & ~np.eye(1000, dtype=bool)
    assert abs((second[:, None] == second)[together].mean() - 99 / 999) < 5 * (0.0991 * 0.9009 / 49_500) ** 0.5


def test_a_k_outside_the_codebook_is_refused():
    for k in (0, 25):
        for make in KINDS:
            with pytest.raises(InputError, match=f"between 1 and the codebook's 24 tokens, found {k}"):
                make(points(24), k, 0)
        with pytest.raises(InputError, match=f"24 tokens, found {k}"):
            random_balanced(24, k, 0)
