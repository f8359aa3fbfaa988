"""How much alike the tokens of a cluster are, and how far two clusterings agree.

A pair is two distinct tokens of one cluster, in either order; a mean over pairs weighs each cluster by its pairs.

Shapes: N tokens, d dimensions, K clusters."""

from dataclasses import dataclass

import numpy as np

from masc.runtime.artifacts import InputError
from masc.tree import Partition

BLOCK = 1024  # members that are compared with as many others at once: 8 MiB of distances


@dataclass(frozen=True)
class WithinClusters:
    """A mean over the pairs of tokens that share a cluster."""

    overall: float  # over the pairs of all clusters
    by_cluster: np.ndarray  # (K,) float64


def num_pairs(partition: Partition) -> int:
    """How many pairs of tokens share a cluster: what `intra_cluster_distance` has to look at."""
    return int((partition.sizes * (partition.sizes - 1) // 2).sum())


def intra_cluster_distance(vectors: np.ndarray, partition: Partition) -> WithinClusters:
    """Mean Euclidean distance of the pairs within clusters, exact: vectors (N, d). A token alone is at distance 0.

    O(d) time a pair and BLOCK x BLOCK memory; `num_pairs` says how many there are."""
    vectors = _checked(vectors, partition)
    sums, sizes = np.zeros(partition.num_clusters), partition.sizes
    for cluster in np.flatnonzero(sizes > 1):
        members = vectors[partition.members[partition.offsets[cluster] : partition.offsets[cluster + 1]]]
        sums[cluster] = _sum_of_distances(members - members.mean(axis=0))
    return _mean_over_pairs(sums, sizes, alone=0.0)


def intra_cluster_similarity(vectors: np.ndarray, partition: Partition) -> WithinClusters:
    """Mean cosine similarity of the pairs within clusters: vectors (N, d), O(N d). A token alone has similarity 1.

    With unit vectors u the sum over ordered pairs is |sum u|^2 - sum |u|^2. A zero vector is like none other (0)."""
    vectors = _checked(vectors, partition)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    own = np.bincount(partition.cluster_of, weights=norms[:, 0] > 0)
    sums = ((_cluster_sums(units, partition) ** 2).sum(axis=1) - own) / 2
    return _mean_over_pairs(sums, partition.sizes, alone=1.0)


def residual_variance(vectors: np.ndarray, partition: Partition) -> float:
    """The share of the variance of the vectors (N, d) that is left inside clusters, 0 to 1: O(N d).

    Squared distances to the cluster's mean over squared distances to the mean of all: what k-means minimises."""
    vectors = _checked(vectors, partition)
    vectors = vectors - vectors.mean(axis=0)
    total = float((vectors**2).sum())
    means = _cluster_sums(vectors, partition) / partition.sizes[:, None]
    left = float(((vectors - means[partition.cluster_of]) ** 2).sum())
    return left / total if total else 0.0


def agreement(a: Partition, b: Partition) -> dict[str, float]:
    """Adjusted Rand index `ari` and adjusted mutual information `ami` of two partitions of N tokens.

    1 for the same partition, near 0 for independent ones. AMI is scikit-learn's (arithmetic mean of the entropies),
    with its expectation summed over pairs of distinct sizes rather than of clusters: seconds for N of 262,144.
    Raises InputError if the partitions have different numbers of tokens."""
    from sklearn.metrics import adjusted_rand_score, mutual_info_score

    if a.num_tokens != b.num_tokens:
        raise InputError(f"two partitions of one codebook must have as many tokens: {a.num_tokens}, {b.num_tokens}")
    if np.array_equal(a.cluster_of, b.cluster_of):  # canonical labels; the formula would be 0 / 0 at K = 1 and K = N
        return {"ari": 1.0, "ami": 1.0}
    expected = _expected_information(a.sizes, b.sizes)
    most = (_entropy(a.sizes) + _entropy(b.sizes)) / 2
    information = float(mutual_info_score(a.cluster_of, b.cluster_of))
    room = most - expected
    return {
        "ari": float(adjusted_rand_score(a.cluster_of, b.cluster_of)),
        "ami": (information - expected) / room if abs(room) > 1e-12 else 0.0,
    }


def _checked(vectors: np.ndarray, partition: Partition) -> np.ndarray:
    if len(vectors) != partition.num_tokens:
        raise InputError(f"the partition has {partition.num_tokens} tokens, the codebook {len(vectors)}")
    return np.asarray(vectors, np.float64)


def _sum_of_distances(members: np.ndarray) -> float:
    """Sum over unordered pairs of the rows (m, d), block by block."""
    squares, total = (members**2).sum(axis=1), 0.0
    for top in range(0, len(members), BLOCK):
        rows = slice(top, top + BLOCK)
        for left in range(top, len(members), BLOCK):
            columns = slice(left, left + BLOCK)
            squared = squares[rows, None] + squares[columns] - 2 * members[rows] @ members[columns].T
            if left == top:
                np.fill_diagonal(squared, 0)
            block = float(np.sqrt(np.maximum(squared, 0)).sum())
            total += block / 2 if left == top else block
    return total


def _cluster_sums(vectors: np.ndarray, partition: Partition) -> np.ndarray:
    return np.add.reduceat(vectors[partition.members], partition.offsets[:-1], axis=0)


def _mean_over_pairs(sums: np.ndarray, sizes: np.ndarray, alone: float) -> WithinClusters:
    pairs = sizes * (sizes - 1) / 2
    by_cluster = np.divide(sums, pairs, out=np.full(len(sums), alone), where=pairs > 0)
    return WithinClusters(float(sums.sum() / pairs.sum()) if pairs.any() else alone, by_cluster)


def _entropy(sizes: np.ndarray) -> float:
    shares = sizes / sizes.sum()
    return float(-(shares * np.log(shares)).sum())


def _expected_information(sizes_a: np.ndarray, sizes_b: np.ndarray) -> float:
    """Mutual information in nats of two partitions of these sizes over random assignments (Vinh et al. 2010, Eq. 24a).

    Two clusters of sizes m and n share a hypergeometric number of tokens."""
    from scipy.special import gammaln

    total = int(sizes_a.sum())
    log_factorial = gammaln(np.arange(total + 1) + 1.0)
    expected = 0.0
    for m, count_m in zip(*np.unique(sizes_a, return_counts=True), strict=True):
        for n, count_n in zip(*np.unique(sizes_b, return_counts=True), strict=True):
            shared = np.arange(max(1, m + n - total), min(m, n) + 1)
            log_chance = (
                log_factorial[[m, n, total - m, total - n]].sum()
                - log_factorial[total]
                - log_factorial[shared]
                - log_factorial[m - shared]
                - log_factorial[n - shared]
                - log_factorial[total - m - n + shared]
            )
            information = shared / total * np.log(total * shared / (float(m) * n))
            expected += count_m * count_n * float((np.exp(log_chance) * information).sum())
    return expected
