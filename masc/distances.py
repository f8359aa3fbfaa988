"""Distances between tokens: the paper's metric (MASC, Eq. 3) and others to compare it with.

All are dense: N (N - 1) / 2 float64 in the order of SciPy's pdist, 1.1 GB at N = 16,384. A token is not its own
neighbour. Exact duplicates are at distance 0 in every metric."""

from collections.abc import Iterator

import numpy as np

from masc.runtime.errors import InputError

METRICS = ("euclidean", "cosine", "geodesic", "mutual-reachability", "local-scaling")
MAX_DENSE = 32_768  # tokens: 4.3 GB of distances, and twice as much in tools that copy them
BLOCK = 256  # rows of the full matrix that are in memory at once


def condensed_distances(vectors: np.ndarray, metric: str, num_neighbours: int = 10) -> np.ndarray:
    """Distances of all pairs of vectors: (N, d) -> (N (N - 1) / 2,) float64, for one of METRICS.

    euclidean            the paper's (Eq. 3)
    cosine               1 - cos
    geodesic             shortest paths on the graph of nearest neighbours (Isomap, Tenenbaum et al. 2000)
    mutual-reachability  max(core_i, core_j, d_ij), where core is the distance to the last neighbour (HDBSCAN,
                         Campello et al. 2013; its min_samples counts the token itself, so it is larger by one)
    local-scaling        d_ij / sqrt(s_i s_j), where s is the distance to the last neighbour (Zelnik-Manor & Perona
                         2004, 7 neighbours)

    The last three use `num_neighbours`. Raises InputError if N is above MAX_DENSE, if `num_neighbours` is not in
    1..N-1, and where a metric is undefined: cosine of a zero vector, local scaling of many equal vectors."""
    from scipy.spatial.distance import pdist

    num_tokens = len(vectors)
    if metric not in METRICS:
        raise InputError(f"metric must be one of {', '.join(METRICS)}, not {metric!r}")
    if num_tokens > MAX_DENSE:
        raise InputError(
            f"{num_tokens} tokens need {4 * num_tokens * (num_tokens - 1):,} bytes of {metric} distances; dense "
            f"matrices stop at {MAX_DENSE} tokens. Use average, single, centroid or ward linkage with the "
            "euclidean metric, which need no matrix"
        )
    vectors = np.asarray(vectors, np.float64) + 0.0  # -0.0 becomes 0.0: equal rows are equal bits
    if metric == "euclidean":
        return pdist(vectors)
    if metric == "cosine":
        return _cosine(vectors)
    if not 1 <= num_neighbours < num_tokens:
        raise InputError(
            f"num_neighbours must lie between 1 and {num_tokens - 1} for {num_tokens} tokens, found {num_neighbours}"
        )
    if metric == "geodesic":
        return _geodesic(vectors, num_neighbours)
    scale = _nearest(vectors, num_neighbours)[0][:, -1]
    if metric == "local-scaling":
        _require_scale(scale, num_neighbours)
    distances = pdist(vectors)
    for token, row in _rows(distances, num_tokens):
        if metric == "mutual-reachability":
            np.maximum(row, np.maximum(scale[token], scale[token + 1 :]), out=row)
        else:
            row /= np.sqrt(scale[token] * scale[token + 1 :])
    return distances


def _cosine(vectors: np.ndarray) -> np.ndarray:
    """1 - cos, computed as half the squared distance of the unit vectors, so at least 0, and 0 for duplicates."""
    from scipy.spatial.distance import pdist

    norms = np.linalg.norm(vectors, axis=1)
    if not norms.all():
        zero = np.flatnonzero(norms == 0)
        raise InputError(
            f"the cosine metric needs nonzero vectors, but rows {zero[:5].tolist()} are zero "
            f"({len(zero)} in all); use the euclidean metric, or remove them from the codebook"
        )
    distances = pdist(vectors / norms[:, None], "sqeuclidean")
    distances /= 2
    return distances


def _require_scale(scale: np.ndarray, num_neighbours: int) -> None:
    """Raise InputError if a token has the scale 0, because all its neighbours are duplicates of it."""
    heaped = np.flatnonzero(scale == 0)
    if len(heaped):
        raise InputError(
            f"local scaling divides by the distance to neighbour {num_neighbours}, which is 0 for {len(heaped)} tokens "
            f"with as many exact duplicates (dead codes): rows {heaped[:5].tolist()} and so on; separate the dead "
            "codes first, or take another metric"
        )


def _rows(distances: np.ndarray, num_tokens: int) -> Iterator[tuple[int, np.ndarray]]:
    """Pairs of a token i and its distances to i+1..N-1, a view into the condensed matrix."""
    start = 0
    for token in range(num_tokens - 1):
        stop = start + num_tokens - 1 - token
        yield token, distances[start:stop]
        start = stop


def _nearest(vectors: np.ndarray, num_neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """The n nearest other tokens of each, nearest first: (N, d) -> distances (N, n) float64, tokens (N, n) int64.

    O(N^2 d) time, BLOCK x N memory."""
    from scipy.spatial.distance import cdist

    distances = np.empty((len(vectors), num_neighbours))
    tokens = np.empty((len(vectors), num_neighbours), np.int64)
    for start in range(0, len(vectors), BLOCK):
        block = cdist(vectors[start : start + BLOCK], vectors)
        own = np.arange(len(block))
        block[own, start + own] = np.inf
        found = np.argpartition(block, num_neighbours - 1, axis=1)[:, :num_neighbours]
        reached = np.take_along_axis(block, found, 1)
        order = np.argsort(reached, axis=1, kind="stable")
        distances[start : start + BLOCK] = np.take_along_axis(reached, order, 1)
        tokens[start : start + BLOCK] = np.take_along_axis(found, order, 1)
    return distances, tokens


def _geodesic(vectors: np.ndarray, num_neighbours: int) -> np.ndarray:
    """Shortest paths on the symmetrised graph of nearest neighbours, its components joined by shortest edges.

    Exact duplicates are one vertex. Otherwise many equal dead codes would only have each other as neighbours, and a
    sparse matrix has no edges of length 0. N runs of Dijkstra's algorithm take O(n N^2 log N) time: 74 s of one thread
    at N = 16,384, n = 10, while the other metrics take 2 to 5 s."""
    from scipy.sparse.csgraph import dijkstra

    distinct, vertex_of = np.unique(vectors, axis=0, return_inverse=True)
    vertex_of = vertex_of.ravel()
    distances = np.zeros(len(vectors) * (len(vectors) - 1) // 2)
    if len(distinct) == 1:
        return distances
    graph = _neighbour_graph(distinct, min(num_neighbours, len(distinct) - 1))
    rows = [row for _, row in _rows(distances, len(vectors))]
    for start in range(0, len(distinct), BLOCK):
        paths = dijkstra(graph, indices=np.arange(start, min(start + BLOCK, len(distinct))))
        for token in np.flatnonzero((vertex_of[:-1] >= start) & (vertex_of[:-1] < start + BLOCK)):
            rows[token][:] = paths[vertex_of[token] - start, vertex_of[token + 1 :]]
    return distances


def _neighbour_graph(vectors: np.ndarray, num_neighbours: int):
    """The connected symmetric graph of `_geodesic` over distinct vectors: (N, d) -> sparse (N, N) of lengths."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    lengths, tokens = _nearest(vectors, num_neighbours)
    tails = np.repeat(np.arange(len(vectors)), num_neighbours)
    graph = csr_array((lengths.ravel(), (tails, tokens.ravel())), shape=(len(vectors),) * 2)
    component_of = connected_components(graph, directed=False)[1]
    bridges = _bridges(vectors, component_of)
    if bridges:
        length, tail, head = zip(*bridges, strict=True)
        graph = graph + csr_array((length, (tail, head)), shape=graph.shape)  # components share no edge
    return graph.maximum(graph.T).tocsr()


def _bridges(vectors: np.ndarray, component_of: np.ndarray) -> list[tuple[float, int, int]]:
    """The minimum spanning tree over components, as edges (length, token, token), by Prim's rule: O(N^2 d)."""
    from scipy.spatial.distance import cdist

    bridges = []
    outside = np.flatnonzero(component_of != component_of[0])
    entered = np.flatnonzero(component_of == component_of[0])
    nearest = np.full(len(vectors), np.inf)  # distance to the part that the tree has reached
    source = np.zeros(len(vectors), np.int64)
    while len(outside):
        for start in range(0, len(entered), BLOCK):
            block = cdist(vectors[entered[start : start + BLOCK]], vectors[outside])
            closest = block.argmin(axis=0)
            length = block[closest, np.arange(len(outside))]
            shorter = length < nearest[outside]
            nearest[outside[shorter]] = length[shorter]
            source[outside[shorter]] = entered[start + closest[shorter]]
        head = outside[nearest[outside].argmin()]
        bridges.append((nearest[head], source[head], head))
        joins = component_of[outside] == component_of[head]
        entered, outside = outside[joins], outside[~joins]
    return bridges
