"""Partitions beside MASC's tree: k-means (App. A.3), k-means in clusters of equal size (IAR), and random ones.

None has a tree: each makes K clusters at once, and another K is another run."""

import warnings

import numpy as np

from masc.runtime.artifacts import InputError
from masc.runtime.streams import Purpose, random_stream
from masc.tree import Partition

MAX_BALANCED_ROUNDS = 100  # IAR's limit
# The least time at N = 16,384, d = 8, for K = 128 and 8,192; they change rounding at most.
LISTED = 16  # nearest centres that a token is offered at once
SEARCHED = 128  # tokens that are offered centres at once


def kmeans(vectors: np.ndarray, num_clusters: int, seed: int, num_starts: int = 10) -> Partition:
    """Lloyd's k-means with random starting points, best of `num_starts` (MASC, App. A.3: 10).

    FAISS in place of the paper's scikit-learn. A cluster that ends empty gets the token farthest from its own
    centre. Raises InputError if K is not in 1..N."""
    import faiss

    _require_clusters(num_clusters, len(vectors))
    engine = faiss.Kmeans(
        vectors.shape[1],
        num_clusters,
        niter=50,
        nredo=num_starts,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(vectors),
    )
    engine.train(np.ascontiguousarray(vectors, np.float32))
    labels = engine.index.search(np.ascontiguousarray(vectors, np.float32), 1)[1].ravel()
    labels = _fill_empty(labels.astype(np.int64), vectors, num_clusters)
    return Partition(labels)


def kmeans_sklearn(vectors: np.ndarray, num_clusters: int, seed: int) -> Partition:
    """The paper's recipe to the letter: scikit-learn, init='random', 10 runs, the one of lowest inertia (App. A.3).

    Lloyd's algorithm, scikit-learn's default, in blocks: O(N K d) a round and little memory, where Elkan's would
    keep N x K bounds. One thread at N = 16,384, d = 8: 5 s for K = 128, 27 s for K = 8,192. A cluster that ends
    empty (fewer than K distinct vectors) gets the token farthest from its own centre. Raises InputError if K is not
    in 1..N."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    _require_clusters(num_clusters, len(vectors))
    engine = KMeans(num_clusters, init="random", n_init=10, algorithm="lloyd", random_state=seed)
    with warnings.catch_warnings():
        # Fewer distinct vectors than K: said of every start, and mended below.
        warnings.filterwarnings("ignore", "Number of distinct clusters", ConvergenceWarning)
        labels = engine.fit(np.ascontiguousarray(vectors, np.float32)).labels_
    return Partition(_fill_empty(labels.astype(np.int64), vectors, num_clusters))


def _require_clusters(num_clusters: int, num_tokens: int) -> None:
    if not 1 <= num_clusters <= num_tokens:
        raise InputError(f"k must lie between 1 and the codebook's {num_tokens} tokens, found {num_clusters}")


def _fill_empty(labels: np.ndarray, vectors: np.ndarray, num_clusters: int) -> np.ndarray:
    """Give each empty cluster the token farthest from its own centre among clusters of more than one."""
    sizes = np.bincount(labels, minlength=num_clusters)
    for empty in np.flatnonzero(sizes == 0):
        sums = np.zeros((num_clusters, vectors.shape[1]))
        np.add.at(sums, labels, vectors)
        centres = sums / np.maximum(sizes, 1)[:, None]
        distance = np.linalg.norm(vectors - centres[labels], axis=1)
        distance[sizes[labels] == 1] = -1.0
        taken = int(distance.argmax())
        sizes[labels[taken]] -= 1
        labels[taken] = empty
        sizes[empty] = 1
    return labels


def kmeans_balanced(vectors: np.ndarray, num_clusters: int, seed: int) -> Partition:
    """K-means in clusters of equal size, after IAR: N / K tokens each, or sizes that differ by one.

    Each round sorts the tokens by distance to their nearest centre and hands them, in that order, to the nearest
    centre with room; the centres become means. It ends when nothing changes, at the latest after
    MAX_BALANCED_ROUNDS. The rounds need not descend, so the one of least squared distance to its means is kept.

    IAR's description leaves open, and chosen here: the first centres are K tokens drawn without replacement; one
    start; where K does not divide N, the first N mod K clusters that ask for one more token get it; equal distances
    fall as FAISS lists them. One thread at N = 16,384, d = 8: 7 s for K = 128, 50 s for K = 8,192, little memory.
    Raises InputError if K is not in 1..N."""
    _require_clusters(num_clusters, len(vectors))
    vectors = np.ascontiguousarray(vectors, np.float32)
    centres = vectors[random_stream(seed, Purpose.FIRST_CENTRES).choice(len(vectors), num_clusters, replace=False)]
    best, least, previous = None, np.inf, None
    for _ in range(MAX_BALANCED_ROUNDS):
        labels = _assign_balanced(vectors, centres)
        if previous is not None and np.array_equal(labels, previous):
            break
        previous = labels
        sums = np.zeros((num_clusters, vectors.shape[1]))
        np.add.at(sums, labels, vectors)
        means = sums / np.bincount(labels)[:, None]
        objective = np.square(vectors - means[labels]).sum()
        if objective < least:
            best, least = labels, objective
        centres = means.astype(np.float32)
    return Partition(best)


def _assign_balanced(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Each token's centre, those nearest to one first, each to the nearest with room: (N, d), (K, d) -> (N,)."""
    import faiss

    base, extra = divmod(len(vectors), len(centres))  # `extra` centres take one token more
    sizes = [0] * len(centres)
    labels = np.empty(len(vectors), np.int64)
    order = np.argsort(faiss.knn(vectors, centres, 1)[0].ravel(), kind="stable")
    while len(order):
        size = np.array(sizes)
        room = np.flatnonzero((size < base) | ((size == base) & (extra > 0)))
        listed = faiss.knn(vectors[order[:SEARCHED]], centres[room], min(LISTED, len(room)))[1]
        done = 0
        for choices in room[listed].tolist():
            for centre in choices:
                if sizes[centre] < base or (extra and sizes[centre] == base):
                    break
            else:
                break  # all that were listed have filled up since: list again from this token on
            extra -= sizes[centre] == base
            sizes[centre] += 1
            labels[order[done]] = centre
            done += 1
        order = order[done:]
    return labels


def random_balanced(num_tokens: int, num_clusters: int, seed: int) -> Partition:
    """Random clusters of equal size: N / K tokens each, or sizes that differ by one.

    The paper's random baseline leaves its sizes unsaid; `masc.tree.Tree.shuffled` has those of MASC instead.
    Raises InputError if K is not in 1..N."""
    _require_clusters(num_clusters, num_tokens)
    return Partition(random_stream(seed, Purpose.RANDOM_CLUSTERS).permutation(num_tokens) % num_clusters)
