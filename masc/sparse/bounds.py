"""The distance of two clusters, and four bounds that often make its computation unnecessary.

D(S, T) is the mean Euclidean distance of all pairs (MASC, Eq. 3): |S| |T| d work. With centroids c, mean squared
distances to them v, and W the mean distance of two tokens of one cluster (drawn with replacement):

    D >= |c_S - c_T|                            Jensen: a norm is convex
    D >= (W_S + W_T) / 2                        the energy distance 2 D - W_S - W_T is at least 0
    D >= mean over x in S of |x - c_T|          Jensen over T alone
    D <= sqrt(|c_S - c_T|^2 + v_S + v_T)        Jensen: the root is concave; the radicand is the mean squared distance

Bounds are compared with a slack that exceeds their rounding: RELATIVE of the value, and `clusters_slack` as an absolute
number. The slack causes more distance computations, but never a wrong merge."""

import numpy as np
from numba import njit

RELATIVE = 1e-10
TIE = 1e-12  # distances that agree to this relative difference are called equal

LANES = 4  # dimensions in one pass over points side by side
SIDE_BY_SIDE = 8  # rows of the larger cluster from which it pays to lay them so
ONE_SIDED_FROM = 4  # rows of the smaller cluster beyond which the third bound is worth its cost

# Sums may be reordered and fused; infinities keep their meaning.
FAST = {"contract", "nsz", "reassoc", "arcp"}


def absolute_slack(rows: np.ndarray) -> float:
    """The absolute error allowed for centroids and bounds, 1e-12 of the largest norm: rows (U, d) -> a number."""
    return 1e-12 * float(np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64).max()))


@njit(fastmath=FAST, cache=True)
def add_squares(distance, x0, x1, x2, x3, y0, y1, y2, y3):
    """Add to distance (W,) the squared differences of LANES dimensions between W points, y (W,) each, and a point x."""
    for j in range(len(y0)):
        d0, d1, d2, d3 = y0[j] - x0, y1[j] - x1, y2[j] - x2, y3[j] - x3
        distance[j] += d0 * d0 + d1 * d1 + d2 * d2 + d3 * d3


@njit(fastmath=FAST, cache=True)
def weighted_roots(distance, weight):
    """Squared distances (W,) become weighted distances."""
    for j in range(len(weight)):
        distance[j] = np.sqrt(distance[j]) * weight[j]


@njit(fastmath=FAST, cache=True)
def _sum_pair_by_pair(clusters, s, t):
    rows, weight, order = clusters.rows, clusters.weight, clusters.order
    total = 0.0
    for i in range(clusters.start[s], clusters.start[s + 1]):
        x = rows[order[i]]
        subtotal = 0.0
        for j in range(clusters.start[t], clusters.start[t + 1]):
            y = rows[order[j]]
            squared = 0.0
            for k in range(x.shape[0]):
                difference = np.float64(x[k]) - np.float64(y[k])
                squared += difference * difference
            subtotal += weight[order[j]] * np.sqrt(squared)
        total += weight[order[i]] * subtotal
    return total


@njit(fastmath=FAST, cache=True)
def _sum_side_by_side(clusters, s, t):
    """The same sum with the rows of t side by side, which is several times as fast if t has many rows."""
    rows, order = clusters.rows, clusters.order
    members = order[clusters.start[t] : clusters.start[t + 1]]
    width = len(members)
    dims = (rows.shape[1] + LANES - 1) // LANES * LANES
    columns, weight = np.zeros((dims, width)), np.empty(width)
    for j in range(width):
        weight[j] = clusters.weight[members[j]]
        for k in range(rows.shape[1]):
            columns[k, j] = rows[members[j], k]
    distance, x = np.empty(width), np.zeros(dims)
    total = 0.0
    for i in range(clusters.start[s], clusters.start[s + 1]):
        for k in range(rows.shape[1]):
            x[k] = rows[order[i], k]
        distance[:] = 0.0
        for k in range(0, dims, LANES):
            add_squares(
                distance,
                *(x[k], x[k + 1], x[k + 2], x[k + 3]),
                *(columns[k], columns[k + 1], columns[k + 2], columns[k + 3]),
            )
        weighted_roots(distance, weight)
        subtotal = 0.0
        for j in range(width):
            subtotal += distance[j]
        total += clusters.weight[order[i]] * subtotal
    return total


@njit(cache=True)
def mean_distance(clusters, s, t):
    """D(S, T), in float64 from the float32 rows. The same bits for (s, t) and (t, s)."""
    rows_s, rows_t = clusters.start[s + 1] - clusters.start[s], clusters.start[t + 1] - clusters.start[t]
    if rows_s > rows_t or (rows_s == rows_t and clusters.rank[s] > clusters.rank[t]):
        s, t, rows_s, rows_t = t, s, rows_t, rows_s
    many = rows_s > 1 and rows_t >= SIDE_BY_SIDE
    total = _sum_side_by_side(clusters, s, t) if many else _sum_pair_by_pair(clusters, s, t)
    return total / (clusters.size[s] * clusters.size[t])


@njit(fastmath=FAST, cache=True)
def squared_gap(clusters, s, t):
    """|c_S - c_T|^2."""
    total = 0.0
    for k in range(clusters.centroid.shape[1]):
        difference = clusters.centroid[s, k] - clusters.centroid[t, k]
        total += difference * difference
    return total


@njit(inline="always")
def spread_bound(clusters, s, t):
    """The lower bound (W_S + W_T) / 2."""
    return 0.5 * (clusters.spread[s] + clusters.spread[t])


@njit(inline="always")
def upper_bound(clusters, s, t, gap):
    """sqrt(gap + v_S + v_T), where gap = |c_S - c_T|^2."""
    return np.sqrt(gap + clusters.variance[s] + clusters.variance[t])


@njit(fastmath=FAST, cache=True)
def one_sided_bound(clusters, s, t):
    """The lower bound mean over x in S of |x - c_T|, where S is the cluster of more rows."""
    start = clusters.start
    if start[s + 1] - start[s] < start[t + 1] - start[t]:
        s, t = t, s
    centre = clusters.centroid[t]
    total = 0.0
    for i in range(start[s], start[s + 1]):
        x = clusters.rows[clusters.order[i]]
        squared = 0.0
        for k in range(centre.shape[0]):
            difference = np.float64(x[k]) - centre[k]
            squared += difference * difference
        total += clusters.weight[clusters.order[i]] * np.sqrt(squared)
    return total / clusters.size[s]


@njit(cache=True)
def nearest_among(clusters, s, candidate, gap, count, radius, limit, slack):
    """The nearest of the first `count` candidates to cluster s, if its distance is at most `limit`.

    `candidate` holds cluster numbers and `gap` their squared centroid distances, both reordered here by their upper
    bounds. No distance beyond `radius` matters: something is known to be that near. Equal distances go to the
    smallest pair of ranks. Returns (cluster or -1, distance, tied, point pairs evaluated)."""
    key = np.empty(count)
    for q in range(count):
        key[q] = gap[q] + clusters.variance[candidate[q]]
        radius = min(radius, upper_bound(clusters, s, candidate[q], gap[q]) * (1 + RELATIVE) + slack)
    best, distance, second, pairs = -1, np.inf, np.inf, 0
    for q in np.argsort(key):
        t = candidate[q]
        reach = radius + slack
        if gap[q] > reach * reach * (1 + RELATIVE) or spread_bound(clusters, s, t) * (1 - RELATIVE) > reach:
            continue
        rows_s, rows_t = clusters.start[s + 1] - clusters.start[s], clusters.start[t + 1] - clusters.start[t]
        if min(rows_s, rows_t) > ONE_SIDED_FROM and one_sided_bound(clusters, s, t) * (1 - RELATIVE) > reach:
            continue
        exact = mean_distance(clusters, s, t)
        pairs += rows_s * rows_t
        if exact > limit:
            continue
        if exact < distance or (exact == distance and _goes_first(clusters.rank, s, t, best)):
            best, distance, second = t, exact, distance
        elif exact < second:
            second = exact
        radius = min(radius, distance)
    return best, distance, second <= distance * (1 + TIE) and distance > 0 and best >= 0, pairs


@njit(inline="always")
def _goes_first(rank, s, t, other):
    """Whether the pair of ranks (s, t) comes before (s, other)."""
    low, high = min(rank[s], rank[t]), max(rank[s], rank[t])
    other_low, other_high = min(rank[s], rank[other]), max(rank[s], rank[other])
    return low < other_low or (low == other_low and high < other_high)
