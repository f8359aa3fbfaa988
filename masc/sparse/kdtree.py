"""Nearest clusters by a kd-tree over the live centroids: the search for few dimensions.

A leaf stores up to LEAF centroids coordinate by coordinate, so that their distances are computed side by side. A node
stores its box, which gives a lower bound on |c_S - c_T|, and the least spread below it, which gives a lower bound on D
by the second law of `masc.sparse.bounds`."""

from typing import NamedTuple

import numpy as np
from numba import njit, prange

from masc.sparse.bounds import FAST, RELATIVE, nearest_among, squared_gap, upper_bound

LEAF = 16
CHUNK = 64  # queries that share their buffers


class KDTree(NamedTuple):
    """Nodes in the order made, the root first; children of node u are left[u] and left[u] + 1, none where it is < 0."""

    left: np.ndarray  # (nodes,) int64
    low: np.ndarray  # (nodes, d) float64: the box
    high: np.ndarray  # (nodes, d)
    least_spread: np.ndarray  # (nodes,)
    leaf: np.ndarray  # (nodes,) int64: its row in the two arrays below, -1 for inner nodes
    points: np.ndarray  # (leaves, d, LEAF) float64, infinite where a leaf has fewer
    members: np.ndarray  # (leaves, LEAF) int64: cluster numbers


@njit(cache=True)
def _select(values, order, first, last, middle):
    """Reorder order[first:last] so that its part before `middle` has values no larger than the part from it on."""
    last -= 1
    while last > first:
        a, b, c = values[order[first]], values[order[(first + last) >> 1]], values[order[last]]
        pivot = max(min(a, b), min(max(a, b), c))
        i, j = first, last
        while i <= j:
            while values[order[i]] < pivot:
                i += 1
            while values[order[j]] > pivot:
                j -= 1
            if i <= j:
                order[i], order[j] = order[j], order[i]
                i += 1
                j -= 1
        if middle <= j:
            last = j
        elif middle >= i:
            first = i
        else:
            return


@njit(cache=True)
def build_kdtree(centroid, spread):
    """A tree over centroids (M, d) with their spreads (M,). Splits the widest side; all leaves but one are full."""
    count, dims = centroid.shape
    capacity = 2 * ((count + LEAF - 1) // LEAF) + 1
    left = np.full(capacity, -1, np.int64)
    leaf = np.full(capacity, -1, np.int64)
    low, high = np.full((capacity, dims), np.inf), np.full((capacity, dims), -np.inf)
    least_spread = np.full(capacity, np.inf)
    first, last = np.zeros(capacity, np.int64), np.zeros(capacity, np.int64)
    points = np.full(((count + LEAF - 1) // LEAF, dims, LEAF), np.inf)
    members = np.full((len(points), LEAF), -1, np.int64)
    order = np.arange(count)
    values = np.empty(count)
    last[0] = count
    nodes, leaves = 1, 0
    for u in range(capacity):
        if u == nodes:
            break
        for p in range(first[u], last[u]):
            s = order[p]
            least_spread[u] = min(least_spread[u], spread[s])
            for k in range(dims):
                low[u, k] = min(low[u, k], centroid[s, k])
                high[u, k] = max(high[u, k], centroid[s, k])
        inside = last[u] - first[u]
        if inside <= LEAF:
            leaf[u] = leaves
            for j in range(inside):
                s = order[first[u] + j]
                members[leaves, j] = s
                for k in range(dims):
                    points[leaves, k, j] = centroid[s, k]
            leaves += 1
            continue
        widest = np.argmax(high[u] - low[u])
        for p in range(first[u], last[u]):
            values[order[p]] = centroid[order[p], widest]
        blocks = (inside + LEAF - 1) // LEAF
        middle = first[u] + (blocks // 2) * LEAF
        _select(values, order, first[u], last[u], middle)
        left[u] = nodes
        first[nodes], last[nodes] = first[u], middle
        first[nodes + 1], last[nodes + 1] = middle, last[u]
        nodes += 2
    return KDTree(left[:nodes], low[:nodes], high[:nodes], least_spread[:nodes], leaf[:nodes], points, members)


@njit(fastmath=FAST, cache=True)
def _box_gap(query, low, high):
    """Squared distance of a point to a box."""
    total = 0.0
    for k in range(query.shape[0]):
        outside = max(max(low[k] - query[k], query[k] - high[k]), 0.0)
        total += outside * outside
    return total


@njit(fastmath=FAST, cache=True)
def _leaf_gaps(query, points, gap):
    """Squared distances of a point to the points of a leaf (d, LEAF), into gap (LEAF,)."""
    for j in range(LEAF):
        gap[j] = 0.0
    for k in range(query.shape[0]):
        x = query[k]
        for j in range(LEAF):
            difference = points[k, j] - x
            gap[j] += difference * difference


@njit(cache=True)
def _collect(clusters, tree, s, radius, slack, candidate, gap, buffers):
    """Every cluster that the bounds leave as possibly nearest to s: how many, and the radius they prove.

    Walks the nearer child first; `radius` shrinks to the least upper bound met."""
    stack, stack_gap, leaf_gap = buffers
    query = clusters.centroid[s]
    own = 0.5 * clusters.spread[s]
    count = 0
    stack[0], stack_gap[0] = 0, 0.0
    depth = 1
    while depth > 0:
        depth -= 1
        u = stack[depth]
        reach = radius + slack
        if stack_gap[depth] > reach * reach * (1 + RELATIVE):
            continue
        if (own + 0.5 * tree.least_spread[u]) * (1 - RELATIVE) > reach:
            continue
        if tree.left[u] >= 0:
            near, far = tree.left[u], tree.left[u] + 1
            near_gap = _box_gap(query, tree.low[near], tree.high[near])
            far_gap = _box_gap(query, tree.low[far], tree.high[far])
            if far_gap < near_gap:
                near, far, near_gap, far_gap = far, near, far_gap, near_gap
            stack[depth], stack_gap[depth] = far, far_gap
            stack[depth + 1], stack_gap[depth + 1] = near, near_gap
            depth += 2
            continue
        leaf = tree.leaf[u]
        _leaf_gaps(query, tree.points[leaf], leaf_gap)
        furthest = reach * reach * (1 + RELATIVE)
        for j in range(LEAF):
            t = tree.members[leaf, j]
            if leaf_gap[j] > furthest or t < 0 or t == s:
                continue
            candidate[count], gap[count] = t, leaf_gap[j]
            count += 1
            radius = min(radius, upper_bound(clusters, s, t, leaf_gap[j]) * (1 + RELATIVE) + slack)
        reach = radius + slack
    # Now the radius is known: drop the clusters that it excludes.
    kept, furthest = 0, (radius + slack) ** 2 * (1 + RELATIVE)
    for q in range(count):
        if gap[q] <= furthest:
            candidate[kept], gap[kept] = candidate[q], gap[q]
            kept += 1
    return kept, radius


@njit(cache=True)
def _search_chunk(clusters, tree, queries, limit, slack, nearest, distance, tied):
    count = len(clusters.size)
    candidate, gap = np.empty(count, np.int64), np.empty(count)
    buffers = np.empty(128, np.int64), np.empty(128), np.empty(LEAF)
    pairs = 0
    for i in range(len(queries)):
        s, radius = queries[i], limit
        hint = clusters.hint[s]
        if hint >= 0:
            near = upper_bound(clusters, s, hint, squared_gap(clusters, s, hint))
            radius = min(radius, near * (1 + RELATIVE) + slack)
        found, radius = _collect(clusters, tree, s, radius, slack, candidate, gap, buffers)
        nearest[i], distance[i], tied[i], evaluated = nearest_among(
            clusters, s, candidate, gap, found, radius, limit, slack
        )
        pairs += evaluated
    return pairs


@njit(parallel=True, cache=True)
def search_kdtree(clusters, tree, queries, limit, slack):
    """The certified nearest cluster of each query within `limit`, and whether it is tied.

    Returns (Q,) cluster numbers (-1: none), (Q,) distances (inf: none), (Q,) bool, and the point pairs evaluated."""
    total = len(queries)
    nearest, distance = np.full(total, -1, np.int64), np.full(total, np.inf)
    tied = np.zeros(total, np.bool_)
    chunks = (total + CHUNK - 1) // CHUNK
    pairs = np.zeros(chunks, np.int64)
    for chunk in prange(chunks):
        a, b = chunk * CHUNK, min(total, (chunk + 1) * CHUNK)
        pairs[chunk] = _search_chunk(clusters, tree, queries[a:b], limit, slack, nearest[a:b], distance[a:b], tied[a:b])
    return nearest, distance, tied, pairs.sum()
