"""Nearest clusters by FAISS: the search for many dimensions, and for a GPU.

FAISS lists the K centroids nearest to the centroid of each query. Every cluster outside the list is at least as far as
the K-th centroid (Jensen: D >= |c_S - c_T|), so the best cluster of the list is certified if it is nearer. The other
queries are compared with all centroids, row by row.

Both searches work in float32 on fewer dimensions: the leading principal ones, and one for the length of the rest, all
in units of the longest vector. This never makes a distance longer, so it excludes no cluster by mistake; the error of
float32 is bounded and added. The distances themselves are computed from the rows in float64."""

import numpy as np
from numba import njit, prange

from masc.sparse.bounds import RELATIVE, nearest_among, squared_gap
from masc.sparse.clusters import Clusters

LISTED = 32  # candidates a query
SHARE = 0.9  # of the variance, in the principal dimensions kept
BLOCK_BYTES = 2**26  # of one block of the rows' distances


class Lists:
    """The principal dimensions of a codebook, and the FAISS index that searches them."""

    def __init__(self, rows: np.ndarray):
        """`rows` (U, d) float32 choose the dimensions, once; centroids of the same space are searched in them."""
        self.mean = rows.mean(axis=0, dtype=np.float64)
        centred = rows - self.mean
        self.scale = float(np.sqrt(np.einsum("ij,ij->i", centred, centred).max()))
        variance, axes = np.linalg.eigh(centred.T @ centred)
        kept = int(np.searchsorted(np.cumsum(variance[::-1]) / max(variance.sum(), 1e-300), SHARE)) + 1
        self.axes = axes[:, ::-1][:, :kept] if 2 * kept <= rows.shape[1] else None
        self.error = _float32_error(rows.shape[1] if self.axes is None else kept + 1)
        self.on_gpu = _gpu_count() > 0

    def shorten(self, centroid: np.ndarray) -> np.ndarray:
        """Centroids (M, d) in the dimensions that are searched: (M, r) float32, no two further apart than before, in
        units of `scale`."""
        centred = (centroid - self.mean) / self.scale
        if self.axes is None:
            return centred.astype(np.float32)
        leading = centred @ self.axes
        left = np.einsum("ij,ij->i", centred, centred) - np.einsum("ij,ij->i", leading, leading)
        return np.column_stack([leading, np.sqrt(np.maximum(left, 0))]).astype(np.float32)

    def search(
        self, clusters: Clusters, queries: np.ndarray, limit: float, slack: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """As `masc.sparse.kdtree.search_kdtree`."""
        short = self.shorten(clusters.centroid)
        listed = min(LISTED + 1, len(short))  # a cluster lists itself
        radius_squared, members = self._index(short).search(short[queries], listed)
        unit = self.scale**2
        outside = (radius_squared[:, -1].astype(np.float64) - self.error) * unit
        if listed == len(short):
            outside[:] = np.inf
        nearest, distance, tied, certified, pairs = _search_lists(clusters, queries, members, outside, limit, slack)
        again = np.flatnonzero(~certified)
        block = max(16, BLOCK_BYTES // (4 * len(short)))
        lengths = np.einsum("ij,ij->i", short, short)
        for begin in range(0, len(again), block):
            part = again[begin : begin + block]
            gaps = short[queries[part]] @ short.T
            gaps *= -2
            gaps += lengths
            gaps += lengths[queries[part], None]
            found = _search_rows(
                clusters, queries[part], gaps, unit, self.error, np.minimum(distance[part], limit), limit, slack
            )
            nearest[part], distance[part], tied[part] = found[:3]
            pairs += found[3]
        return nearest, distance, tied, pairs

    def _index(self, short: np.ndarray):
        import faiss

        index = faiss.IndexFlatL2(short.shape[1])
        if self.on_gpu:
            index = faiss.index_cpu_to_all_gpus(index)
        index.add(short)
        return index


def _gpu_count() -> int:
    """Number of GPUs that FAISS can use; 0 with faiss-cpu."""
    import faiss

    return faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0


def _float32_error(dims: int) -> float:
    """What a squared distance of vectors no longer than 1 may be off by, computed as |x|^2 + |y|^2 - 2 x.y in float32
    from rounded coordinates: (d + 8) units of rounding of 2^2, twice."""
    return 4 * (dims + 8) * 2.0**-23


@njit(parallel=True, cache=True)
def _search_lists(clusters, queries, members, outside, limit, slack):
    """The nearest listed cluster of each query, and whether none outside its list can be nearer.

    `members` (Q, K) are cluster numbers, -1 for none; a cluster not listed has a squared centroid distance of at
    least `outside` (Q,)."""
    total, listed = members.shape
    nearest, distance = np.full(total, -1, np.int64), np.full(total, np.inf)
    tied, certified = np.zeros(total, np.bool_), np.zeros(total, np.bool_)
    pairs = np.zeros(total, np.int64)
    for i in prange(total):
        s = queries[i]
        candidate, gap = np.empty(listed, np.int64), np.empty(listed)
        count = 0
        for q in range(listed):
            t = members[i, q]
            if t >= 0 and t != s:
                candidate[count], gap[count] = t, squared_gap(clusters, s, t)
                count += 1
        nearest[i], distance[i], tied[i], pairs[i] = nearest_among(
            clusters, s, candidate, gap, count, np.inf, limit, slack
        )
        reach = min(distance[i], limit) + slack
        certified[i] = reach * reach * (1 + RELATIVE) < outside[i]
    return nearest, distance, tied, certified, pairs.sum()


@njit(parallel=True, cache=True)
def _search_rows(clusters, queries, gaps, unit, error, radius, limit, slack):
    """The nearest of all clusters, from approximate squared centroid distances `gaps` (Q, M), off by `error` at most,
    both in multiples of `unit`.

    Something is known to be within `radius` (Q,) of each query, or it is the limit."""
    total, count = gaps.shape
    nearest, distance = np.full(total, -1, np.int64), np.full(total, np.inf)
    tied, pairs = np.zeros(total, np.bool_), np.zeros(total, np.int64)
    for i in prange(total):
        s = queries[i]
        candidate = np.empty(count, np.int64)
        furthest = (radius[i] + slack) ** 2 * (1 + RELATIVE) / unit + error
        found = 0
        for t in range(count):
            if gaps[i, t] <= furthest and t != s:
                candidate[found] = t
                found += 1
        gap = np.empty(found)
        for q in range(found):
            gap[q] = squared_gap(clusters, s, candidate[q])
        nearest[i], distance[i], tied[i], pairs[i] = nearest_among(
            clusters, s, candidate, gap, found, radius[i], limit, slack
        )
    return nearest, distance, tied, pairs.sum()
