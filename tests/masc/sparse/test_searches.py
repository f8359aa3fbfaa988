"""Both searches find what comparing with every cluster finds."""

import numpy as np
import pytest
from linkage_oracle import CODEBOOKS, blobs, clusters_of

from masc.sparse import lists
from masc.sparse.bounds import absolute_slack, mean_distance, squared_gap
from masc.sparse.kdtree import LEAF, build_kdtree, search_kdtree
from masc.sparse.lists import Lists


def example(kind, dims, seed=0, count=400, num_labels=150):
    rng = np.random.default_rng(seed)
    rows = np.unique(CODEBOOKS[kind](count, dims, seed), axis=0)
    weight = rng.integers(1, 3, len(rows)).astype(float)
    return clusters_of(rows, weight, rng.integers(0, num_labels, len(rows)))[0]


def brute_force(clusters, s, limit):
    distance = [np.inf if t == s else mean_distance(clusters, s, t) for t in range(len(clusters.size))]
    best = int(np.argmin(distance))
    return (best, distance[best]) if distance[best] <= limit else (-1, np.inf)


def search(name, clusters, queries, limit):
    slack = absolute_slack(clusters.rows)
    if name == "kdtree":
        return search_kdtree(clusters, build_kdtree(clusters.centroid, clusters.spread), queries, limit, slack)
    return Lists(clusters.rows).search(clusters, queries, limit, slack)


def assert_finds_the_nearest(name, clusters):
    middle = np.median([brute_force(clusters, s, np.inf)[1] for s in range(0, len(clusters.size), 7)])
    for limit in (np.inf, middle):
        queries = np.arange(0, len(clusters.size), 3)
        nearest, distance, tied, _ = search(name, clusters, queries, limit)
        expected = [brute_force(clusters, s, limit) for s in queries]
        assert nearest.tolist() == [best for best, _ in expected]
        assert distance.tolist() == [least for _, least in expected]
        assert not tied.any()


@pytest.mark.parametrize("name", ["kdtree", "lists"])
@pytest.mark.parametrize("kind", CODEBOOKS)
@pytest.mark.parametrize("dims", [2, 8, 40])
def test_the_nearest_cluster_is_found(name, kind, dims):
    assert_finds_the_nearest(name, example(kind, dims))


@pytest.mark.parametrize("kind", CODEBOOKS)
def test_what_a_list_cannot_certify_is_compared_with_every_cluster(kind, monkeypatch):
    monkeypatch.setattr(lists, "LISTED", 1)
    monkeypatch.setattr(lists, "BLOCK_BYTES", 20_000)  # several blocks of rows
    assert_finds_the_nearest("lists", example(kind, 40))


@pytest.mark.parametrize("dims", [6, 80])
def test_shortened_vectors_are_no_further_apart_than_float32_allows(dims):
    rng = np.random.default_rng(0)
    rows = (blobs(300, dims) * np.arange(1, dims + 1) ** -1.0 + 100).astype(np.float32)  # far from the origin
    found = Lists(rows)
    assert (found.axes is not None) and found.axes.shape[1] <= dims / 2
    centroid = rows[rng.integers(0, 300, (50, 4))].astype(np.float64).mean(axis=1)
    short = found.shorten(centroid).astype(np.float64)
    longer = ((centroid[:, None] - centroid[None]) ** 2).sum(-1) / found.scale**2
    assert (((short[:, None] - short[None]) ** 2).sum(-1) <= longer + found.error).all()


def test_a_tree_holds_every_cluster_once_in_full_leaves_and_true_boxes():
    clusters = example("blobs", 5)
    tree = build_kdtree(clusters.centroid, clusters.spread)
    inside = tree.members[tree.members >= 0]
    assert sorted(inside.tolist()) == list(range(len(clusters.size)))
    assert (tree.members[:, -1] < 0).sum() <= 1 and tree.members.shape[1] == LEAF

    def below(u):
        if tree.left[u] < 0:
            return [t for t in tree.members[tree.leaf[u]].tolist() if t >= 0]
        return below(tree.left[u]) + below(tree.left[u] + 1)

    for u in range(len(tree.left)):
        part = below(u)
        assert np.array_equal(tree.low[u], clusters.centroid[part].min(0))
        assert np.array_equal(tree.high[u], clusters.centroid[part].max(0))
        assert tree.least_spread[u] == clusters.spread[part].min()


def test_equal_centroids_make_a_tree():
    same = np.zeros((100, 3))
    assert sorted(build_kdtree(same, np.zeros(100)).members.ravel().tolist())[-100:] == list(range(100))


@pytest.mark.gpu
def test_faiss_on_a_gpu_finds_the_same():
    clusters = example("blobs", 40)
    found = Lists(clusters.rows)
    assert found.on_gpu
    assert squared_gap(clusters, 0, 1) > 0
    assert_finds_the_nearest("lists", clusters)
