"""The tree of MASC's Algorithm 1, built in rounds: each round searches nearest clusters and merges all mutual pairs.

Algorithm 1 merges one closest pair at a time. The rounds give the same tree because average linkage is reducible: a
union is at least as far from a third cluster as its nearer part. Therefore two clusters that are each other's nearest
remain so until they merge, in any order of the other merges. A nearest cluster remains the nearest while it exists. The
last known distance of a cluster, or the height at which it was made, is a lower bound on its next distance. The least
distance of a live pair never decreases. When every bound reaches the (N - k)-th smallest height made so far, these
N - k merges are the first ones of Algorithm 1, so a cut at k is certified without the rest of the tree.

Rows are first sorted by their contents, and one function computes every distance from them. So the result does not
depend on the order of the codebook or the number of threads."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from masc.sparse.bounds import TIE, absolute_slack
from masc.sparse.clusters import Clusters, Merges, merge_pairs, singletons
from masc.sparse.finish import finish
from masc.sparse.kdtree import build_kdtree, search_kdtree
from masc.sparse.lists import Lists

KDTREE_DIMENSIONS = 32  # with more dimensions the boxes exclude nothing
FINISH_AT = (1024, 4096)  # clusters left when the dense finish is the cheaper way to the root: between these,
FINISH_SHARE = {"kdtree": 1 / 8, "lists": 1 / 4}  # at this share of N
FINISH_BELOW = 512  # a coarser cut than this is cheaper through the dense finish
PATIENCE = 0.5  # exact distances over N^2 after which the dense finish, which needs as many, takes over
LARGEST_FINISH = 16_384  # clusters that a finish may start from: 2 GiB of distances


@dataclass(frozen=True)
class SparseLinkage:
    """A dendrogram, and the search and work that it needed."""

    merges: np.ndarray  # (N - coarsest, 4) float64, SciPy's layout
    tied_merges: int  # merges at a positive height whose partner was one of several equally near
    search: str  # "kdtree" or "lists"
    rounds: int
    point_pairs: int  # exact distances computed
    finished_from: int  # clusters left when the dense finish took over; 0: it did not


@dataclass
class _Made:
    """Merges so far, in the order done."""

    parts: list[Merges] = field(default_factory=list)
    count: int = 0

    def add(self, merges: Merges) -> None:
        self.parts.append(merges)
        self.count += len(merges.height)

    def joined(self) -> Merges:
        return Merges(*(np.concatenate(columns) for columns in zip(*self.parts, strict=True)))

    def height_of(self, count: int) -> float:
        """The count-th smallest height."""
        heights = np.concatenate([part.height for part in self.parts])
        return float(np.partition(heights, count - 1)[count - 1])


def sparse_linkage(
    vectors: np.ndarray,
    coarsest: int = 1,
    search: str | None = None,
    finish_at: int | None = None,
    threads: int | None = None,
) -> SparseLinkage:
    """Average linkage of vectors (N, d) float32 until `coarsest` clusters are left.

    `search` is "kdtree" or "lists" (FAISS); None takes the kd-tree up to 32 dimensions. `finish_at` is how many
    clusters the dense finish starts from, if more merges are asked for. Cost grows little faster than N for a cut at
    a fixed share of N; a full tree costs N^2 / 2 distances more."""
    with _threads(threads):
        return _run(np.ascontiguousarray(vectors, np.float32), coarsest, search, finish_at)


def _run(vectors: np.ndarray, coarsest: int, search: str | None, finish_at: int | None) -> SparseLinkage:
    total = len(vectors)
    target = total - coarsest
    search = search or ("kdtree" if vectors.shape[1] <= KDTREE_DIMENSIONS else "lists")
    if finish_at is None:
        finish_at = int(np.clip(FINISH_SHARE[search] * total, *FINISH_AT)) if coarsest < FINISH_BELOW else 0
    clusters, made = _distinct(vectors)
    slack = absolute_slack(clusters.rows)
    lists = Lists(clusters.rows) if search == "lists" else None
    rounds, pairs, tied_merges, finished_from, limit = 0, 0, 0, 0, np.inf
    stalls = 0
    with tqdm(total=target, desc="tree", unit="merge", disable=None, leave=False) as bar:
        bar.update(min(made.count, target))
        while len(clusters.size) > 1:
            if made.count >= target:
                limit = made.height_of(target) if target else 0.0
                if clusters.bound.min() >= limit * (1 - TIE):
                    break  # certified: no merge below the cut is left, except ties that rounding separates
            live = len(clusters.size)
            worth_it = made.count < target and (live <= finish_at or pairs > PATIENCE * total**2)
            if (worth_it or stalls > 1) and live <= max(finish_at, LARGEST_FINISH):
                finished_from = live
                merges, ties = _finish(clusters, total + made.count)
                made.add(merges)
                tied_merges += ties
                break
            queries = np.flatnonzero(clusters.stale & (clusters.bound <= limit))
            pairs += _search(clusters, queries, limit, slack, lists)
            rounds += 1
            chosen = _mutual(clusters, limit, made.count < target)
            if not len(chosen):
                if len(queries) and limit < np.inf:
                    continue  # bounds rose: look at the certificate again
                stalls += 1  # rounding made a circle of equal distances: search all of them again
                if stalls > 2:
                    raise RuntimeError(f"no two of {live} clusters are nearest to each other")
                clusters.stale[clusters.bound <= clusters.bound.min() + slack] = True
                clusters.hint[:] = -1
                continue
            stalls = 0
            if 0 < target - made.count < len(chosen):
                chosen = chosen[np.argsort(clusters.bound[chosen], kind="stable")[: target - made.count]]
            partners = clusters.nearest[chosen]
            mate = np.full(len(clusters.size), -1)
            mate[chosen], mate[partners] = partners, chosen
            tied_merges += int((clusters.tied[chosen] | clusters.tied[partners]).sum())
            clusters, merges = merge_pairs(clusters, mate, total + made.count)
            made.add(merges)
            bar.update(min(len(merges.height), max(0, target - bar.n)))
        bar.update(max(0, target - bar.n))
    merges = scipy_layout(made.joined(), total)[:target] if made.parts else np.empty((0, 4))
    return SparseLinkage(merges, tied_merges, search, rounds, pairs, finished_from)


def _distinct(vectors: np.ndarray) -> tuple[Clusters, _Made]:
    """Equal rows merged at height 0, and the distinct ones in an order of their contents."""
    rows = vectors + np.float32(0)  # -0.0 becomes +0.0
    key = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
    _, first, inverse, count = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
    node, made = first.copy(), _Made()
    if len(first) < len(rows):
        # The members of each group after its first, one merge each: with the first, then with what the last merge made.
        grouped = np.argsort(inverse, kind="stable")
        group = inverse[grouped]
        place = np.arange(len(rows)) - np.concatenate([[0], np.cumsum(count)])[group]
        later = place > 0
        number = len(rows) + np.arange(later.sum())
        left = np.where(place[later] == 1, first[group[later]], number - 1)
        made.add(
            Merges(np.column_stack([left, grouped[later]]), np.zeros(len(number)), (place[later] + 1).astype(float))
        )
        node[group[later]] = number  # the last one of a group stays
    return singletons(np.ascontiguousarray(rows[first]), count.astype(np.float64), node), made


def _search(clusters: Clusters, queries: np.ndarray, limit: float, slack: float, lists: Lists | None) -> int:
    """Search the nearest clusters of the queries and store them; returns the number of point pairs evaluated."""
    if lists is None:
        tree = build_kdtree(clusters.centroid, clusters.spread)
        members = tree.members.ravel()
        place = np.empty(len(clusters.size), np.int64)
        place[members[members >= 0]] = np.flatnonzero(members >= 0)
        queries = queries[np.argsort(place[queries])]  # neighbours in space one after another
        nearest, distance, tied, pairs = search_kdtree(clusters, tree, queries, limit, slack)
    else:
        nearest, distance, tied, pairs = lists.search(clusters, queries, limit, slack)
    clusters.nearest[queries], clusters.bound[queries], clusters.tied[queries] = nearest, distance, tied
    clusters.stale[queries] = False
    return int(pairs)


def _mutual(clusters: Clusters, limit: float, at_limit: bool) -> np.ndarray:
    """The lower of each two clusters that are each other's nearest, below the limit (or at it)."""
    known = np.flatnonzero((clusters.nearest >= 0) & ~clusters.stale)
    nearest = clusters.nearest[known]
    mutual = (clusters.nearest[nearest] == known) & ~clusters.stale[nearest] & (nearest > known)
    chosen = known[mutual]
    bound = clusters.bound[chosen]
    return chosen[(bound <= limit) if at_limit else (bound < limit)]


def _finish(clusters: Clusters, next_node: int) -> tuple[Merges, int]:
    rows = len(clusters.order)
    with tqdm(
        total=rows * (rows - 1) // 2, desc="top of the tree", unit="pair", unit_scale=True, disable=None, leave=False
    ) as bar:
        return finish(clusters, next_node, bar.update)


def scipy_layout(merges: Merges, total: int) -> np.ndarray:
    """Merges in the order done as SciPy's linkage of `total` tokens: by height, nodes numbered anew.

    A height below a child's, which only rounding makes, is raised to it."""
    height = merges.height.copy()
    nodes = merges.nodes
    inner = nodes >= total
    child = np.where(inner, nodes - total, 0)
    while True:  # a round raises one generation; rounding seldom needs a second round
        raised = np.maximum(height, np.where(inner, height[child], -np.inf).max(axis=1))
        if np.array_equal(raised, height):
            break
        height = raised
    order = np.argsort(height, kind="stable")
    renumbered = np.empty(len(height), np.int64)
    renumbered[order] = total + np.arange(len(height))
    nodes = np.sort(np.where(inner, renumbered[child], nodes), axis=1)
    return np.column_stack([nodes[order].astype(np.float64), height[order], merges.size[order]])


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Run compiled code on `count` threads; None keeps the current number."""
    import numba

    before = numba.get_num_threads()
    numba.set_num_threads(min(count or before, numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        numba.set_num_threads(before)
