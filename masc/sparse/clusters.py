"""The live clusters of an agglomeration, and their merging.

Shapes: U distinct rows of d dimensions, M live clusters. A duplicated row is one row of weight > 1.

The arrays stand in a NamedTuple because numba accepts it in compiled code."""

from typing import NamedTuple

import numpy as np
from numba import njit


class Clusters(NamedTuple):
    """M clusters of U rows. Cluster s owns rows[order[start[s] : start[s + 1]]]."""

    rows: np.ndarray  # (U, d) float32, distinct
    weight: np.ndarray  # (U,) float64: how many tokens share a row
    order: np.ndarray  # (U,) int64: rows sorted by cluster
    start: np.ndarray  # (M + 1,) int64
    centroid: np.ndarray  # (M, d) float64
    size: np.ndarray  # (M,) float64: tokens
    variance: np.ndarray  # (M,) float64: mean squared distance to the centroid
    spread: np.ndarray  # (M,) float64: mean distance of two tokens drawn with replacement, W_S
    rank: np.ndarray  # (M,) int64: lowest row, which breaks ties
    node: np.ndarray  # (M,) int64: its number in the dendrogram
    nearest: np.ndarray  # (M,) int64: nearest cluster, -1 if none within the limit
    bound: np.ndarray  # (M,) float64: distance to `nearest`, or a lower bound on it where stale
    stale: np.ndarray  # (M,) bool: `nearest` must be searched again
    hint: np.ndarray  # (M,) int64: a cluster likely to be near, -1 if none
    tied: np.ndarray  # (M,) bool: another cluster is exactly as near as `nearest`


def singletons(rows: np.ndarray, weight: np.ndarray, node: np.ndarray) -> Clusters:
    """One cluster for each row (U, d) float32; their nearest clusters are not searched yet."""
    count = len(rows)
    return Clusters(
        rows=rows,
        weight=weight,
        order=np.arange(count),
        start=np.arange(count + 1),
        centroid=rows.astype(np.float64),
        size=weight.copy(),
        variance=np.zeros(count),
        spread=np.zeros(count),
        rank=np.arange(count),
        node=node,
        nearest=np.full(count, -1),
        bound=np.zeros(count),
        stale=np.ones(count, np.bool_),
        hint=np.full(count, -1),
        tied=np.zeros(count, np.bool_),
    )


class Merges(NamedTuple):
    """Merges in their order: the two nodes, the height, the number of tokens of the result."""

    nodes: np.ndarray  # (R, 2) int64
    height: np.ndarray  # (R,) float64
    size: np.ndarray  # (R,) float64


@njit(cache=True)
def merge_pairs(clusters, mate, next_node):
    """Merge every cluster s with mate[s] (mate[mate[s]] == s; -1: left alone), in one pass.

    Returns the new clusters (M - pairs), in the old order of each pair's first, and the merges done, numbered
    from `next_node`. The statistics of a union follow from its parts (Konig-Huygens for the variance)."""
    count, dims = clusters.centroid.shape
    pairs = 0
    for s in range(count):
        if mate[s] > s:
            pairs += 1
    left = count - pairs
    order = np.empty_like(clusters.order)
    start = np.empty(left + 1, np.int64)
    centroid = np.empty((left, dims))
    size, variance, spread = np.empty(left), np.empty(left), np.empty(left)
    rank, node = np.empty(left, np.int64), np.empty(left, np.int64)
    nearest, hint = np.full(left, -1, np.int64), np.full(left, -1, np.int64)
    bound = np.empty(left)
    stale, tied = np.zeros(left, np.bool_), np.zeros(left, np.bool_)
    nodes, height, made_size = np.empty((pairs, 2), np.int64), np.empty(pairs), np.empty(pairs)

    moved = np.empty(count, np.int64)  # old number -> new number
    new, filled, made = 0, 0, 0
    for s in range(count):
        other = mate[s]
        if 0 <= other < s:
            moved[s] = moved[other]
            continue
        moved[s] = new
        start[new] = filled
        # The part of lower rank comes first, so the order of members does not depend on the search.
        first, second = s, other
        if other >= 0 and clusters.rank[other] < clusters.rank[s]:
            first, second = other, s
        for part in (first, second):
            if part >= 0:
                for i in range(clusters.start[part], clusters.start[part + 1]):
                    order[filled] = clusters.order[i]
                    filled += 1
        rank[new] = clusters.rank[first]
        bound[new] = clusters.bound[s]
        if other < 0:
            centroid[new] = clusters.centroid[s]
            size[new], variance[new], spread[new] = clusters.size[s], clusters.variance[s], clusters.spread[s]
            node[new] = clusters.node[s]
            stale[new], tied[new] = clusters.stale[s], clusters.tied[s]
        else:
            a, b = clusters.size[first], clusters.size[second]
            both = a + b
            between = 0.0
            for k in range(dims):
                x, y = clusters.centroid[first, k], clusters.centroid[second, k]
                between += (x - y) ** 2
                centroid[new, k] = (a * x + b * y) / both
            distance = clusters.bound[s]
            size[new] = both
            variance[new] = (a * clusters.variance[first] + b * clusters.variance[second]) / both + (
                a * b / both**2 * between
            )
            spread[new] = (
                a * a * clusters.spread[first] + b * b * clusters.spread[second] + 2 * a * b * distance
            ) / both**2
            node[new] = next_node + made
            nodes[made, 0], nodes[made, 1] = clusters.node[first], clusters.node[second]
            height[made], made_size[made] = distance, both
            made += 1
            # Average linkage is reducible: a union is at least as far from a third cluster as its nearer part.
            stale[new] = True
        new += 1
    start[left] = filled

    for s in range(count):
        target = clusters.nearest[s]
        if mate[s] >= 0 or target < 0:
            continue
        if mate[target] < 0 and not clusters.stale[s]:
            nearest[moved[s]] = moved[target]
        else:
            stale[moved[s]], hint[moved[s]] = True, moved[target]

    merged = Clusters(
        clusters.rows,
        clusters.weight,
        order,
        start,
        centroid,
        size,
        variance,
        spread,
        rank,
        node,
        nearest,
        bound,
        stale,
        hint,
        tied,
    )
    return merged, Merges(nodes, height, made_size)
