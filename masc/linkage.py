"""Average-linkage clustering of a VQ codebook (MASC, Sec. 3.2, Algorithm 1).

The distance of two clusters is the mean Euclidean distance over all pairs of their vectors (Eq. 3), and
the closest two are merged until one is left. Here: the exact dense engine, O(N^2) time by the
nearest-neighbour chain of fastcluster (Mullner 2013) and N (N - 1) / 2 float64 distances of memory
(1.1 GB at N = 16,384)."""

import numpy as np


def average_linkage(vectors: np.ndarray) -> np.ndarray:
    """Dendrogram of the vectors (N, d): merges (N - 1, 4) float64 in SciPy's linkage layout.

    Row i joins clusters `merges[i, 0]` and `merges[i, 1]` (numbers below N are tokens, N + j is what row j
    made) at height `merges[i, 2]` into one of `merges[i, 3]` tokens; heights ascend."""
    import fastcluster
    from scipy.spatial.distance import pdist

    return fastcluster.linkage(pdist(np.asarray(vectors, np.float64)), method="average", preserve_input=False)
