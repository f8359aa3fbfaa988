"""The last merges, dense: all mean distances of the M remaining clusters, then the nearest-neighbour chain.

Every method needs one pass over all N^2 / 2 point pairs for the top of the tree. Here the pairs are streamed, and only
the M x M means are stored."""

from collections.abc import Callable

import numpy as np
from numba import njit, prange

from masc.sparse.bounds import FAST, LANES, TIE, add_squares, weighted_roots
from masc.sparse.clusters import Clusters, Merges

ROWS = 64  # of a group of clusters, at least, that share a tile


def finish(clusters: Clusters, next_node: int, advance: Callable[[int], None]) -> tuple[Merges, int]:
    """The M - 1 remaining merges, and the number of merges with several equally near partners.

    `advance` is called with the number of point pairs done. Needs M^2 float64 of memory."""
    rows = clusters.rows[clusters.order]
    weight = clusters.weight[clusters.order]
    dims = -(-rows.shape[1] // LANES) * LANES
    columns = np.zeros((dims, len(rows)), np.float32)
    columns[: rows.shape[1]] = rows.T
    count = len(clusters.size)
    means = np.zeros((count, count))
    groups = _groups(clusters.start)
    step = max(1, len(groups) // 100)
    tile = max(128, 8192 // dims)
    for begin in range(0, len(groups) - 1, step):
        part = groups[begin : begin + step + 1]
        _add_distances(means, columns, weight, clusters.start, part, tile)
        first, last = clusters.start[part[0]], clusters.start[part[-1]]
        advance(int((last - first) * (2 * len(rows) - first - last) // 2))
    _to_means(means, clusters.size)
    return _chain(means, clusters.size, clusters.node, next_node)


def _groups(start: np.ndarray) -> np.ndarray:
    """Consecutive clusters of at least ROWS rows together: where each group begins, and M."""
    begins = [0]
    for s in range(1, len(start) - 1):
        if start[s] - start[begins[-1]] >= ROWS:
            begins.append(s)
    return np.array([*begins, len(start) - 1])


@njit(parallel=True, fastmath=FAST, cache=True)
def _add_distances(means, columns, weight, start, groups, tile):
    """Add to means[s, t], t > s, the weighted distances of all point pairs, for the clusters s of each group.

    The order of the sums depends on groups and tile only, not on threads."""
    dims, total = columns.shape
    for g in prange(len(groups) - 1):
        distance = np.empty(tile)
        for begin in range(start[groups[g]], total, tile):
            end = min(total, begin + tile)
            width = end - begin
            b = np.searchsorted(start, begin, side="right") - 1  # the cluster that the tile begins in
            for s in range(groups[g], groups[g + 1]):
                if end <= start[s + 1]:
                    continue
                for i in range(start[s], start[s + 1]):
                    distance[:width] = 0.0
                    for k in range(0, dims, LANES):
                        add_squares(
                            distance,
                            np.float64(columns[k, i]),
                            np.float64(columns[k + 1, i]),
                            np.float64(columns[k + 2, i]),
                            np.float64(columns[k + 3, i]),
                            columns[k, begin:end],
                            columns[k + 1, begin:end],
                            columns[k + 2, begin:end],
                            columns[k + 3, begin:end],
                        )
                    weighted_roots(distance, weight[begin:end])
                    t = max(b, s + 1)
                    at = max(begin, start[s + 1])
                    while at < end:
                        stop = min(end, start[t + 1])
                        subtotal = 0.0
                        for p in range(at, stop):
                            subtotal += distance[p - begin]
                        means[s, t] += weight[i] * subtotal
                        at = stop
                        t += 1


@njit(cache=True)
def _to_means(means, size):
    """Sums above the diagonal become means, on both sides of it."""
    for s in range(len(size)):
        means[s, s] = np.inf
        for t in range(s + 1, len(size)):
            means[s, t] /= size[s] * size[t]
            means[t, s] = means[s, t]


@njit(cache=True)
def _chain(distance, size, node, next_node):
    """Nearest-neighbour chain (Murtagh 1983) with the weights of average linkage (Lance and Williams 1967).

    `distance` (M, M) is overwritten. Ties go to the chain's last cluster but one, then to the lowest number.
    Returns the merges, and how many had several equally near partners."""
    count = len(size)
    nodes, height, made = np.empty((count - 1, 2), np.int64), np.empty(count - 1), np.empty(count - 1)
    alive, left = np.arange(count), count
    chain, length = np.empty(count, np.int64), 0
    is_tied, ties = np.zeros(count, np.bool_), 0  # of each link of the chain: its next was one of several
    size, node = size.copy(), node.copy()
    for r in range(count - 1):
        if length == 0:
            chain[0], length = alive[0], 1
        while True:
            s = chain[length - 1]
            t, least, second = -1, np.inf, np.inf
            if length > 1:
                t = chain[length - 2]
                least = distance[s, t]
            for q in range(left):
                other = alive[q]
                if other in (s, t):
                    continue
                if distance[s, other] < least:
                    t, least, second = other, distance[s, other], least
                else:
                    second = min(second, distance[s, other])
            is_tied[length - 1] = second <= least * (1 + TIE) and least > 0
            if length > 1 and t == chain[length - 2]:
                break
            chain[length] = t
            length += 1
        length -= 2
        ties += is_tied[length] or is_tied[length + 1]
        a, b = size[s], size[t]
        nodes[r, 0], nodes[r, 1] = node[s], node[t]
        height[r], made[r] = least, a + b
        kept = 0
        for q in range(left):
            other = alive[q]
            if other == s:
                continue
            alive[kept] = other
            kept += 1
            if other != t:
                mean = (a * distance[s, other] + b * distance[t, other]) / (a + b)
                distance[t, other], distance[other, t] = mean, mean
        left = kept
        size[t], node[t] = a + b, next_node + r
    return Merges(nodes, height, made), ties
