"""Each bound of the certificate as a law of its own, and the statistics that they are made of."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from linkage_oracle import blobs, clusters_of, sphere

from masc.sparse.bounds import (
    mean_distance,
    nearest_among,
    one_sided_bound,
    spread_bound,
    squared_gap,
    upper_bound,
)
from masc.sparse.clusters import merge_pairs, singletons


def example(seed, dims=None, count=40, num_labels=6):
    rng = np.random.default_rng(seed)
    dims = dims or int(rng.integers(1, 12))
    rows = blobs(count, dims, seed)
    weight = rng.integers(1, 4, count).astype(float)
    return clusters_of(rows, weight, rng.integers(0, num_labels, count))


def members(clusters, s):
    chosen = clusters.order[clusters.start[s] : clusters.start[s + 1]]
    return clusters.rows[chosen].astype(np.float64), clusters.weight[chosen]


def naive_mean(clusters, s, t):
    (x, v), (y, w) = members(clusters, s), members(clusters, t)
    return (np.linalg.norm(x[:, None] - y[None], axis=-1) * v[:, None] * w).sum() / (v.sum() * w.sum())


def pairs_of(clusters):
    return [(s, t) for s in range(len(clusters.size)) for t in range(len(clusters.size)) if s != t]


@pytest.mark.parametrize("dims", [1, 3, 4, 8, 17])
def test_the_distance_is_the_weighted_mean_over_all_pairs_and_the_same_bits_both_ways(dims):
    clusters, _ = example(dims, dims)
    assert (np.diff(clusters.start) >= 8).any() and (np.diff(clusters.start) < 8).any()  # both ways of summing
    for s, t in pairs_of(clusters):
        assert mean_distance(clusters, s, t) == pytest.approx(naive_mean(clusters, s, t), rel=1e-13)
        assert mean_distance(clusters, s, t) == mean_distance(clusters, t, s)


def test_a_unions_statistics_are_those_of_its_members():
    clusters, _ = example(1, 5)
    for s in range(len(clusters.size)):
        x, w = members(clusters, s)
        centre = (w[:, None] * x).sum(0) / w.sum()
        assert clusters.size[s] == w.sum()
        np.testing.assert_allclose(clusters.centroid[s], centre, rtol=1e-12, atol=1e-13)
        assert clusters.variance[s] == pytest.approx((w * ((x - centre) ** 2).sum(1)).sum() / w.sum(), rel=1e-12)
        assert clusters.spread[s] == pytest.approx(naive_mean(clusters, s, s), rel=1e-12)
        assert (
            clusters.rank[s]
            == clusters.order[clusters.start[s]]
            == min(clusters.order[clusters.start[s] : clusters.start[s + 1]])
        )


LAWS = {
    "centroids are no further apart": lambda c, s, t: (np.sqrt(squared_gap(c, s, t)), mean_distance(c, s, t)),
    "half the spreads is no more": lambda c, s, t: (spread_bound(c, s, t), mean_distance(c, s, t)),
    "to a centroid is no more than to its members": lambda c, s, t: (one_sided_bound(c, s, t), mean_distance(c, s, t)),
    "the mean square is no less": lambda c, s, t: (mean_distance(c, s, t), upper_bound(c, s, t, squared_gap(c, s, t))),
    "one side is between none and both": lambda c, s, t: (np.sqrt(squared_gap(c, s, t)), one_sided_bound(c, s, t)),
}


@pytest.mark.parametrize("law", LAWS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_bound(law, seed):
    clusters, _ = example(seed)
    for s, t in pairs_of(clusters):
        lower, upper = LAWS[law](clusters, s, t)
        assert lower <= upper * (1 + 1e-12) + 1e-12


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_average_linkage_is_reducible(seed):
    clusters, _ = example(seed)
    a, b, c = 0, 1, 2
    mate = np.full(len(clusters.size), -1)
    mate[a], mate[b] = b, a
    clusters.bound[a] = clusters.bound[b] = mean_distance(clusters, a, b)
    before = sorted((mean_distance(clusters, a, c), mean_distance(clusters, b, c)))
    union, _ = merge_pairs(clusters, mate, 0)
    after = mean_distance(union, 0, c - 1)
    assert before[0] * (1 - 1e-13) <= after <= before[1] * (1 + 1e-13)


def test_of_several_candidates_the_nearest_is_found_and_equal_ones_are_told():
    rows = np.array([[0, 0], [3, 0], [0, 3], [-3, 0], [9, 9]], np.float32)
    clusters = singletons(rows, np.ones(5), np.arange(5))

    def search(candidates, limit=np.inf):
        candidates = np.array(candidates)
        gaps = ((rows[candidates] - rows[0]) ** 2).sum(1).astype(float)
        return nearest_among(clusters, 0, candidates, gaps, len(candidates), np.inf, limit, 1e-12)

    assert search([4, 2, 3, 1])[:3] == (1, 3.0, True)  # the lowest rank of three at distance 3
    assert search([4, 2])[:3] == (2, 3.0, False)
    assert search([4], limit=5.0)[:3] == (-1, np.inf, False)


def test_merging_keeps_who_is_nearest_and_marks_what_must_be_searched_again():
    clusters = singletons(sphere(6, 3), np.ones(6), np.arange(6))
    clusters.nearest[:] = [1, 0, 0, 4, 3, 4]
    clusters.bound[:] = [0.1, 0.1, 0.5, 0.2, 0.2, 0.6]
    clusters.stale[:] = False
    mate = np.array([1, 0, -1, -1, -1, -1])
    made, merges = merge_pairs(clusters, mate, 6)
    assert made.node.tolist() == [6, 2, 3, 4, 5] and merges.nodes.tolist() == [[0, 1]]
    assert made.stale.tolist() == [True, True, False, False, False]
    assert made.nearest.tolist() == [-1, -1, 3, 2, 3] and made.hint[1] == 0
    assert made.bound.tolist() == [0.1, 0.5, 0.2, 0.2, 0.6]
