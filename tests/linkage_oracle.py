"""Average linkage in plain words, to compare the engines with; and codebooks of the kinds that tokenizers have."""

import numpy as np

from masc.sparse.bounds import mean_distance
from masc.sparse.clusters import merge_pairs, singletons
from masc.tree import Partition


def same_partition(a, b):
    """Whether two arrays of labels say the same, whatever the clusters are called."""
    return np.array_equal(*(Partition(np.unique(labels, return_inverse=True)[1]).cluster_of for labels in (a, b)))


def naive_average_linkage(vectors, num_clusters):
    """Algorithm 1 word by word: merge the two clusters of least mean distance until K are left. O(N^3) and more."""
    distances = np.linalg.norm(vectors[:, None].astype(float) - vectors[None], axis=-1)
    clusters = [[i] for i in range(len(vectors))]
    while len(clusters) > num_clusters:
        pairs = [
            (distances[np.ix_(a, b)].mean(), i, j) for i, a in enumerate(clusters) for j, b in enumerate(clusters[:i])
        ]
        _, i, j = min(pairs)
        clusters[j] += clusters.pop(i)
    labels = np.empty(len(vectors), int)
    for label, cluster in enumerate(clusters):
        labels[cluster] = label
    return labels


def assert_follows_algorithm_1(vectors, merges, tolerance=1e-9):
    """Every merge joins a pair of least mean distance, at that height: so for any way of breaking ties."""
    count = len(vectors)
    distances = np.linalg.norm(vectors[:, None].astype(float) - vectors[None], axis=-1)
    means = np.full((2 * count, 2 * count), np.inf)
    means[:count, :count] = distances
    np.fill_diagonal(means, np.inf)
    size, alive = np.ones(2 * count), np.arange(count)
    for row, (a, b, height, made) in enumerate(merges):
        a, b, new = int(a), int(b), count + row
        least = means[np.ix_(alive, alive)].min()
        assert means[a, b] <= least + tolerance, (row, means[a, b], least)
        assert abs(height - means[a, b]) <= tolerance, (row, height, means[a, b])
        means[new] = means[:, new] = (size[a] * means[a] + size[b] * means[b]) / (size[a] + size[b])
        means[new, new] = np.inf
        size[new] = size[a] + size[b]
        assert size[new] == made
        alive = np.append(alive[(alive != a) & (alive != b)], new)


def clusters_of(rows, weight, labels):
    """The clusters that `labels` name, merged pair by pair as the engine does."""
    clusters = singletons(rows, weight, np.arange(len(rows)))
    names, next_node = labels.copy(), len(rows)
    while len(names) > len(set(labels.tolist())):
        mate = np.full(len(names), -1)
        for label in set(names.tolist()):
            same = np.flatnonzero(names == label)
            for s, t in zip(same[::2], same[1::2], strict=False):
                mate[s], mate[t] = t, s
                clusters.bound[s] = clusters.bound[t] = mean_distance(clusters, s, t)
        names = np.array([name for s, name in enumerate(names) if not 0 <= mate[s] < s])
        clusters, merges = merge_pairs(clusters, mate, next_node)
        next_node += len(merges.height)
    return clusters, names


def _unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def sphere(count, dims=8, seed=0):
    """Unit vectors without structure."""
    return _unit(np.random.default_rng(seed).standard_normal((count, dims))).astype(np.float32)


def blobs(count, dims=8, seed=0):
    """Dense and sparse regions, of uneven norms: large clusters and many singletons."""
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal((max(2, count // 20), dims))
    which = rng.choice(len(centre), count, p=rng.dirichlet(np.full(len(centre), 0.5)))
    width = 0.3 * np.exp(rng.standard_normal((len(centre), 1)))
    return (centre[which] + width[which] * rng.standard_normal((count, dims))).astype(np.float32)


def with_duplicates(count, dims=8, seed=0):
    """A quarter of the rows in three heaps of equal ones, some pairs, some all but equal."""
    rng = np.random.default_rng(seed)
    rows = blobs(count, dims, seed + 1)
    heap = count // 4
    rows[:heap] = rows[heap + rng.integers(0, 3, heap)]
    rows[-5:] = rows[-10:-5]
    rows[heap + 10] = rows[heap + 11] + np.float32(1e-5)
    return rows[rng.permutation(count)]


def grid(count, dims=3, seed=0):
    """Distinct points of a coarse integer grid: nothing but ties."""
    cells = np.stack(np.meshgrid(*[np.arange(8)] * dims), -1).reshape(-1, dims)
    return np.random.default_rng(seed).permutation(cells)[:count].astype(np.float32)


CODEBOOKS = {"sphere": sphere, "blobs": blobs, "with_duplicates": with_duplicates}
