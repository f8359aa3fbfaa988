"""Partitions to compare with MASC's tree: k-means (App. A.3), k-means in clusters of equal size (IAR), random clusters.

They have no tree: each method makes K clusters at once, and every K needs a new run."""

import warnings

import numpy as np

from masc.runtime.errors import InputError
from masc.runtime.streams import Purpose, random_stream
from masc.tree import Partition

MAX_BALANCED_ROUNDS = 100  # IAR's limit
# Fastest values at N = 16,384, d = 8, for K = 128 and 8,192. They change results by rounding at most.
LISTED = 16  # nearest centres in one list of a token
SEARCHED = 128  # tokens in one search


def kmeans(vectors: np.ndarray, num_clusters: int, seed: int, num_starts: int = 10) -> Partition:
    """The best of `num_starts` runs of Lloyd's k-means from random starting points (MASC, App. A.3: 10).

    FAISS replaces the paper's scikit-learn. A cluster that ends empty gets the token that is farthest from its own
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
    """The paper's exact recipe: scikit-learn, init='random', 10 runs, the run of lowest inertia (App. A.3).

    It uses Lloyd's algorithm, scikit-learn's default: O(N K d) time a round and little memory, while Elkan's keeps
    N x K bounds. One thread takes 5 s for K = 128 and 27 s for K = 8,192 at N = 16,384, d = 8. A cluster that ends
    empty (there are fewer than K distinct vectors) gets the token that is farthest from its own centre. Raises
    InputError if K is not in 1..N."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    _require_clusters(num_clusters, len(vectors))
    engine = KMeans(num_clusters, init="random", n_init=10, algorithm="lloyd", random_state=seed)
    with warnings.catch_warnings():
        # With fewer distinct vectors than K every start warns; `_fill_empty` corrects the result.
        warnings.filterwarnings("ignore", "Number of distinct clusters", ConvergenceWarning)
        labels = engine.fit(np.ascontiguousarray(vectors, np.float32)).labels_
    return Partition(_fill_empty(labels.astype(np.int64), vectors, num_clusters))


def _require_clusters(num_clusters: int, num_tokens: int) -> None:
    if not 1 <= num_clusters <= num_tokens:
        raise InputError(f"K must lie between 1 and the codebook's {num_tokens} tokens, found {num_clusters}")


def _fill_empty(labels: np.ndarray, vectors: np.ndarray, num_clusters: int) -> np.ndarray:
    """The labels, with a token moved into each empty cluster: the one farthest from its centre in a larger cluster."""
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
    """K-means in clusters of equal size (N / K tokens, or sizes that differ by one), as IAR does it.

    Each round sorts the tokens by distance to their nearest centre and gives them, in this order, to the nearest
    centre that is not full; then the centres become means. The rounds end when no label changes, at the latest after
    MAX_BALANCED_ROUNDS. A round may be worse than the one before, so the round with the smallest squared distance to
    its means is returned.

    IAR does not describe the following choices. The first centres are K tokens drawn without replacement. There is one
    start. If K does not divide N, the first N mod K clusters that reach N // K tokens may take one more. Equal
    distances are ordered as FAISS lists them. One thread takes 7 s for K = 128 and 50 s for K = 8,192 at N = 16,384,
    d = 8. Raises InputError if K is not in 1..N."""
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
    """The centre of each token, (N, d), (K, d) -> (N,): the tokens nearest to a centre choose first."""
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
                break  # all listed centres are full by now: search again from this token
            extra -= sizes[centre] == base
            sizes[centre] += 1
            labels[order[done]] = centre
            done += 1
        order = order[done:]
    return labels


def random_balanced(num_tokens: int, num_clusters: int, seed: int) -> Partition:
    """Random clusters of equal size: N / K tokens each, or sizes that differ by one.

    The paper does not say how large the clusters of its random baseline are; `masc.tree.Tree.shuffled` has the sizes
    of MASC's clusters.
    Raises InputError if K is not in 1..N."""
    _require_clusters(num_clusters, num_tokens)
    return Partition(random_stream(seed, Purpose.RANDOM_CLUSTERS).permutation(num_tokens) % num_clusters)
