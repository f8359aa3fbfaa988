"""Every linkage against SciPy's, under every metric it is defined for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import linkage as scipy_linkage

from masc.distances import METRICS, condensed_distances
from masc.runtime.errors import InputError
from masc.tree import Partition, Tree
from masc.variants import EUCLIDEAN_ONLY, LINKAGES, linkage_merges

CHOICES = [(linkage, metric) for linkage in LINKAGES for metric in METRICS]
DEFINED = [choice for choice in CHOICES if choice[0] not in EUCLIDEAN_ONLY or choice[1] == "euclidean"]


def points(n, d=4, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def first_merges(merges, num_clusters):
    """Labels after the first N - K merges of a dendrogram, by hand."""
    clusters = {token: [token] for token in range(len(merges) + 1)}
    for row, (a, b) in enumerate(merges[: len(merges) + 1 - num_clusters, :2].astype(int)):
        clusters[len(merges) + 1 + row] = clusters.pop(a) + clusters.pop(b)
    labels = np.empty(len(merges) + 1, int)
    for label, members in enumerate(clusters.values()):
        labels[members] = label
    return Partition(labels).cluster_of


# Core distances tie many mutual reachabilities, and then several trees are right.
@pytest.mark.parametrize(("linkage", "metric"), [choice for choice in DEFINED if choice[1] != "mutual-reachability"])
def test_the_tree_is_scipys(linkage, metric):
    vectors = points(120)
    merges = linkage_merges(vectors, linkage, metric, 5)
    reference = scipy_linkage(condensed_distances(vectors, metric, 5), linkage)
    np.testing.assert_allclose(merges[:, 2], np.maximum.accumulate(reference[:, 2]), rtol=1e-9)
    np.testing.assert_array_equal(merges[:, 3], reference[:, 3])
    tree = Tree(merges)
    for k in (1, 2, 10, 60, 100, 119, 120):
        assert np.array_equal(tree.cut(k).cluster_of, first_merges(reference, k)), k


def test_single_linkage_of_mutual_reachability_has_scipys_heights():
    vectors = points(120)  # the heights of single linkage do not depend on how ties are broken
    merges = linkage_merges(vectors, "single", "mutual-reachability", 5)
    reference = scipy_linkage(condensed_distances(vectors, "mutual-reachability", 5), "single")
    np.testing.assert_allclose(merges[:, 2], reference[:, 2], rtol=1e-12)


def test_an_inversion_of_centroid_linkage_keeps_its_order_and_rises():
    triangle = np.float32([[0, 0], [1, 0], [0.5, 0.9]])  # the third is 0.9 from the centre of the first two
    assert scipy_linkage(triangle, "centroid")[:, 2] == pytest.approx([1, 0.9])
    merges = linkage_merges(triangle, "centroid", "euclidean", 1)
    assert merges[:, 2].tolist() == [1, 1]
    assert Tree(merges).cut(2).cluster_of.tolist() == [0, 0, 1]


@pytest.mark.parametrize(("linkage", "metric"), DEFINED)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(n=st.integers(3, 30), seed=st.integers(0, 10**6))
def test_every_choice_makes_a_tree_and_ties_do_not_hurt(linkage, metric, n, seed):
    # Two bits a coordinate and repeated rows: ties everywhere, but never all neighbours at distance 0.
    vectors = np.random.default_rng(seed).integers(1, 4, (n, 3)).astype(np.float32)
    vectors[0] = 9
    num_neighbours = n - 1 if metric == "local-scaling" else 2
    tree = Tree(linkage_merges(vectors, linkage, metric, num_neighbours))
    assert [tree.cut(k).num_clusters for k in (1, 2, n)] == [1, 2, n]


def test_undefined_choices_are_refused():
    for linkage in EUCLIDEAN_ONLY:
        with pytest.raises(InputError, match=f"{linkage} linkage is defined for the euclidean metric only.*'cosine'"):
            linkage_merges(points(8), linkage, "cosine", 2)
    with pytest.raises(InputError, match=r"one of average, .*not 'median'"):
        linkage_merges(points(8), "median", "euclidean", 2)
    with pytest.raises(InputError, match="metric must be one of"):
        linkage_merges(points(8), "average", "manhattan", 2)
