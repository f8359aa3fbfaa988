"""Similarity of the tokens within clusters, and agreement of two clusterings.

A pair is two distinct tokens of one cluster, without order. In a mean over pairs each cluster counts by its number of
pairs.

Shapes: N tokens, d dimensions, K clusters."""

from dataclasses import dataclass

import numpy as np

from masc.runtime.errors import InputError
from masc.tree import Partition

BLOCK = 1024  # rows and columns of the distances in memory at once: 8 MiB


@dataclass(frozen=True)
class WithinClusters:
    """A mean over the pairs of tokens that share a cluster."""

    overall: float  # over the pairs of all clusters
    by_cluster: np.ndarray  # (K,) float64


def num_pairs(partition: Partition) -> int:
    """Number of pairs of tokens that share a cluster; the time of `intra_cluster_distance` grows with it."""
    return int((partition.sizes * (partition.sizes - 1) // 2).sum())


def intra_cluster_distance(vectors: np.ndarray, partition: Partition) -> WithinClusters:
    """Exact mean Euclidean distance of the pairs within clusters: vectors (N, d). It is 0 for a cluster of one token.

    O(d) time for each of `num_pairs` pairs, and BLOCK x BLOCK memory."""
    vectors = _checked(vectors, partition)
    sums, sizes = np.zeros(partition.num_clusters), partition.sizes
    for cluster in np.flatnonzero(sizes > 1):
        members = vectors[partition.members[partition.offsets[cluster] : partition.offsets[cluster + 1]]]
        sums[cluster] = _sum_of_distances(members - members.mean(axis=0))
    return _mean_over_pairs(sums, sizes, alone=0.0)


def intra_cluster_similarity(vectors: np.ndarray, partition: Partition) -> WithinClusters:
    """Mean cosine similarity of the pairs within clusters: vectors (N, d). It is 1 for a cluster of one token.

    O(N d) time: with unit vectors u the sum over ordered pairs is |sum u|^2 - sum |u|^2. The similarity of a zero
    vector to any other is 0."""
    vectors = _checked(vectors, partition)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    own = np.bincount(partition.cluster_of, weights=norms[:, 0] > 0)
    sums = ((_cluster_sums(units, partition) ** 2).sum(axis=1) - own) / 2
    return _mean_over_pairs(sums, partition.sizes, alone=1.0)


def residual_variance(vectors: np.ndarray, partition: Partition) -> float:
    """Share of the variance of the vectors (N, d) that remains within clusters, from 0 to 1, in O(N d) time.

    It is the sum of squared distances to the clusters' means, which k-means minimises, over the sum of squared
    distances to the mean of all vectors."""
    vectors = _checked(vectors, partition)
    vectors = vectors - vectors.mean(axis=0)
    total = float((vectors**2).sum())
    means = _cluster_sums(vectors, partition) / partition.sizes[:, None]
    left = float(((vectors - means[partition.cluster_of]) ** 2).sum())
    return left / total if total else 0.0


def agreement(a: Partition, b: Partition) -> dict[str, float]:
    """Adjusted Rand index `ari` and adjusted mutual information `ami` of two partitions of N tokens.

    Both are 1 for equal partitions and near 0 for independent ones. AMI has scikit-learn's definition (arithmetic mean
    of the entropies). Its expectation is summed over pairs of distinct sizes instead of pairs of clusters, which takes
    seconds at N = 262,144. Raises InputError if the partitions have different numbers of tokens."""
    from sklearn.metrics import adjusted_rand_score, mutual_info_score

    if a.num_tokens != b.num_tokens:
        raise InputError(f"both partitions must have the same number of tokens, found {a.num_tokens}, {b.num_tokens}")
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
