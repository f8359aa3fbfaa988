"""Average-linkage clustering of a VQ codebook (MASC, Sec. 3.2, Algorithm 1).

The distance of two clusters is the mean Euclidean distance over all pairs of their vectors (Eq. 3), and the closest
two clusters are merged until one is left. Two engines give the same tree:

    dense   all N (N - 1) / 2 distances, then fastcluster's nearest-neighbour chain (Mullner 2013): O(N^2) time and
            memory, 2.1 GB at N = 16,384. Tests compare the other engine with it.
    sparse  certified nearest clusters in rounds (`masc.sparse`): memory linear in N, and several to fifty times as fast
            (`make bench-tree`)

If several pairs are equally close, Algorithm 1 does not say which is merged first; then the engines may differ."""

import logging
import time
from dataclasses import dataclass

import numpy as np

from masc.distances import MAX_DENSE
from masc.runtime.errors import InputError
from masc.variants import linkage_merges

logger = logging.getLogger(__name__)

ENGINES = ("auto", "dense", "sparse")
SMALL = 4096  # tokens: dense takes half a second and 200 MB, and needs nothing compiled
DENSE_FOR_TIES = 16_384  # tokens up to which ties are worth a dense matrix
TIE = 1e-12  # heights that agree to this relative difference are called equal


@dataclass(frozen=True)
class Linkage:
    """A dendrogram, the engine that built it, and the reason for this engine."""

    merges: np.ndarray  # (N - coarsest, 4) float64 in SciPy's linkage layout
    engine: str  # "dense" or "sparse"
    why: str
    seconds: float
    tied_merges: int | None = None  # merges with several equally near partners; None: the engine does not count them


def average_linkage(vectors: np.ndarray, engine: str = "auto", coarsest: int = 1) -> Linkage:
    """Dendrogram of the vectors (N, d), down to `coarsest` clusters.

    Row i of the merges joins clusters `merges[i, 0]` and `merges[i, 1]` at height `merges[i, 2]` into a cluster of
    `merges[i, 3]` tokens. Numbers below N are tokens, N + j is the cluster of row j. Heights ascend. `auto` takes dense
    up to SMALL tokens and sparse above; it repeats with dense if sparse met ties and N is at most DENSE_FOR_TIES.
    Raises InputError for fewer than two vectors, non-finite values, an unknown engine, `coarsest` not in 1..N, or
    dense above MAX_DENSE tokens."""
    num_tokens = len(vectors)
    if engine not in ENGINES:
        raise InputError(f"engine must be one of {', '.join(ENGINES)}, not {engine!r}")
    if vectors.ndim != 2 or num_tokens < 2 or not np.isfinite(vectors).all():
        raise InputError(f"linkage needs finite vectors (N, d), N >= 2, found {vectors.dtype} {vectors.shape}")
    if not 1 <= coarsest <= num_tokens:
        raise InputError(f"the coarsest cut must lie between 1 and the {num_tokens} tokens, found {coarsest}")
    if engine == "dense" and num_tokens > MAX_DENSE:
        raise InputError(
            f"the dense engine stops at {MAX_DENSE} tokens, found {num_tokens}; take tree.engine=sparse, which gives "
            "the same tree"
        )
    start = time.perf_counter()
    if engine == "dense" or (engine == "auto" and num_tokens <= SMALL):
        why = "asked for" if engine == "dense" else f"N is at most {SMALL}"
        merges = _dense(vectors, coarsest)
        return Linkage(merges, "dense", why, time.perf_counter() - start)

    from masc.sparse import sparse_linkage

    found = sparse_linkage(vectors, coarsest)
    equal = count_equal_heights(found.merges)
    if (found.tied_merges or equal) and engine == "auto" and num_tokens <= DENSE_FOR_TIES:
        merges = _dense(vectors, coarsest)
        why = (
            f"the sparse engine met ties, which the reference breaks by row order: {found.tied_merges} merges with "
            f"several equally near partners, {equal} heights equal to the one before"
        )
        return Linkage(merges, "dense", why, time.perf_counter() - start, found.tied_merges)
    if found.tied_merges:
        logger.warning(
            "%d of %d merges had several equally near partners: this is one of several trees that Algorithm 1 allows",
            *(found.tied_merges, len(found.merges)),
        )
    how = f"nearest clusters by {'a kd-tree' if found.search == 'kdtree' else 'FAISS lists'}, {found.rounds} rounds"
    if found.finished_from:
        how += f", dense from {found.finished_from} clusters"
    why = f"{'asked for' if engine == 'sparse' else f'N is above {SMALL}'}; {how}"
    return Linkage(found.merges, "sparse", why, time.perf_counter() - start, found.tied_merges)


def count_equal_heights(merges: np.ndarray) -> int:
    """Number of merges (N - coarsest, 4) with the height of the merge before, above 0.

    A cut between two equal heights is one of several valid cuts."""
    heights = merges[:, 2]
    return int(((np.diff(heights) <= TIE * heights[1:]) & (heights[1:] > 0)).sum())


def _dense(vectors: np.ndarray, coarsest: int) -> np.ndarray:
    return linkage_merges(vectors, "average", "euclidean", num_neighbours=1)[: len(vectors) - coarsest]
