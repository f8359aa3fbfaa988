"""Metrics beside the paper's, each against a plain implementation over the full matrix."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import squareform
from sklearn.manifold import Isomap
from sklearn.metrics.pairwise import cosine_distances

from masc.distances import MAX_DENSE, METRICS, condensed_distances
from masc.runtime.errors import InputError


def points(n, d=4, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def full(vectors, metric, num_neighbours=5):
    """(N, N); squareform itself is the symmetric, zero-diagonal reading of pdist's order."""
    return squareform(condensed_distances(vectors, metric, num_neighbours))


def euclidean(vectors):
    return np.linalg.norm(vectors[:, None].astype(float) - vectors[None], axis=-1)


def core(vectors, num_neighbours):
    """Distance to the last neighbour: column 0 of each sorted row is the token itself."""
    return np.sort(euclidean(vectors), axis=1)[:, num_neighbours]


def naive_geodesic(vectors, num_neighbours):
    """Floyd and Warshall over distinct vectors, after the shortest edges have joined what is apart."""
    vectors = vectors.astype(float)
    distances = euclidean(vectors)
    n = len(vectors)
    paths = np.where(np.eye(n, dtype=bool), 0, np.inf)
    for i in range(n):
        for j in np.argsort(distances[i])[1 : num_neighbours + 1]:
            paths[i, j] = paths[j, i] = distances[i, j]

    def close(paths):
        for k in range(n):
            paths = np.minimum(paths, paths[:, k, None] + paths[k])
        return paths

    closed = close(paths)
    while np.isinf(closed).any():  # Kruskal: the shortest edge between two components, again and again
        i, j = divmod(int(np.where(np.isinf(closed), distances, np.inf).argmin()), n)
        paths[i, j] = paths[j, i] = distances[i, j]
        closed = close(paths)
    return closed


def test_euclidean_and_cosine_equal_the_plain_formulas():
    vectors = points(30)
    np.testing.assert_allclose(full(vectors, "euclidean"), euclidean(vectors), rtol=1e-12)
    np.testing.assert_allclose(full(vectors, "cosine"), cosine_distances(vectors.astype(float)), atol=1e-12)


@pytest.mark.parametrize("n", [12, 300])  # below and above one block
@pytest.mark.parametrize("num_neighbours", [1, 7, 11])
def test_core_metrics_equal_the_plain_formulas(n, num_neighbours):
    vectors = points(n)
    distances, scale = euclidean(vectors), core(vectors, num_neighbours)
    expected = np.maximum(distances, np.maximum(scale[:, None], scale))
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(full(vectors, "mutual-reachability", num_neighbours), expected, rtol=1e-12)
    expected = distances / np.sqrt(scale[:, None] * scale)
    np.testing.assert_allclose(full(vectors, "local-scaling", num_neighbours), expected, rtol=1e-12)


@pytest.mark.parametrize("num_neighbours", [1, 2, 4, 39])
def test_geodesic_equals_floyd_warshall_with_and_without_islands(num_neighbours):
    islands = points(40) + np.repeat(np.float32([0, 9, 30, 31]), 10)[:, None]
    for vectors in (points(40), islands):
        found = full(vectors, "geodesic", num_neighbours)
        np.testing.assert_allclose(found, naive_geodesic(vectors, num_neighbours), rtol=1e-10)


def test_geodesic_equals_isomaps_on_a_connected_graph():
    vectors = points(400, 3)
    expected = Isomap(n_neighbors=10, n_components=1).fit(vectors.astype(float)).dist_matrix_
    np.testing.assert_allclose(full(vectors, "geodesic", 10), expected, rtol=1e-6)


def test_geodesic_joins_components_of_more_than_a_block():
    vectors = np.concatenate([points(300, 2), points(300, 2, seed=1) + 100])
    across = full(vectors, "geodesic", 5)[:300, 300:]
    shortest = euclidean(vectors)[:300, 300:].min()
    assert across.min() == pytest.approx(shortest)  # one bridge, and it is the shortest edge


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "geodesic"])
def test_duplicates_are_one_point(metric):
    distinct = points(20)
    of = np.random.default_rng(1).permutation(np.r_[np.arange(20), np.full(15, 3), np.full(15, 8), 5])
    found = full(distinct[of], metric, 3)
    assert (found[of[:, None] == of] == 0).all()
    np.testing.assert_allclose(found, full(distinct, metric, 3)[np.ix_(of, of)], rtol=1e-12)


def test_geodesic_takes_what_has_fewer_distinct_vectors_than_neighbours():
    assert not condensed_distances(np.ones((8, 3), np.float32), "geodesic", 3).any()
    two = np.repeat(points(2), 4, axis=0)
    np.testing.assert_allclose(full(two, "geodesic", 5), euclidean(two))
    zeros = np.float32([[0.0, 1.0], [-0.0, 1.0], [1.0, 1.0]])
    np.testing.assert_allclose(condensed_distances(zeros, "geodesic", 1), [0, 1, 1])


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(n=st.integers(3, 25), seed=st.integers(0, 10**6), data=st.data())
def test_the_laws_of_a_distance(metric, n, seed, data):
    vectors, order = points(n, 3, seed), np.random.default_rng(seed).permutation(n)
    num_neighbours = data.draw(st.integers(1, n - 1))
    distances = full(vectors, metric, num_neighbours)
    assert np.isfinite(distances).all()
    assert (distances[~np.eye(n, dtype=bool)] > 0).all()
    # The order of the rows changes nothing, so neither does that of a pair.
    np.testing.assert_allclose(full(vectors[order], metric, num_neighbours), distances[np.ix_(order, order)], rtol=1e-9)
    if metric in ("euclidean", "geodesic", "mutual-reachability"):
        assert (distances[:, :, None] + distances[None] >= distances[:, None] * (1 - 1e-9)).all()
        assert (distances >= euclidean(vectors) * (1 - 1e-9)).all()
    else:  # neither sees the scale of the codebook
        np.testing.assert_allclose(full(4 * vectors, metric, num_neighbours), distances, rtol=1e-9)


def test_what_has_no_distance_is_refused_by_name():
    vectors = points(20)
    dead = vectors.copy()
    dead[[4, 9]] = 0
    with pytest.raises(InputError, match=r"cosine.*\[4, 9\] are zero"):
        condensed_distances(dead, "cosine")
    dead[[4, 9, 12]] = 1
    condensed_distances(dead, "local-scaling", 3)  # two duplicates, three neighbours
    with pytest.raises(InputError, match=r"neighbour 2.*3 tokens.*\[4, 9, 12\].*dead codes"):
        condensed_distances(dead, "local-scaling", 2)
    for metric in ("geodesic", "mutual-reachability", "local-scaling"):
        for num_neighbours in (0, 20):
            with pytest.raises(InputError, match=f"between 1 and 19 .*found {num_neighbours}"):
                condensed_distances(vectors, metric, num_neighbours)
    with pytest.raises(InputError, match=r"one of euclidean, .*not 'manhattan'"):
        condensed_distances(vectors, "manhattan")
    huge = np.broadcast_to(np.float32(0), (MAX_DENSE + 1, 8))
    with pytest.raises(InputError, match=r"32769 tokens need 4,295,098,368 bytes.*32768"):
        condensed_distances(huge, "euclidean")
