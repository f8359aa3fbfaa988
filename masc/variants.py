"""Other linkages and metrics than the paper's average linkage of Euclidean distances (MASC, Sec. 3.2), for ablations.

fastcluster (Mullner 2013) computes all of them in O(N^2) to O(N^2 log N) time from the distances of
`masc.distances`."""

import numpy as np

from masc.distances import condensed_distances
from masc.runtime.errors import InputError

LINKAGES = ("average", "single", "complete", "centroid", "ward")
EUCLIDEAN_ONLY = ("centroid", "ward")  # they compare means of vectors, which only this metric defines


def linkage_merges(vectors: np.ndarray, linkage: str, metric: str, num_neighbours: int) -> np.ndarray:
    """Dendrogram of the vectors (N, d): merges (N - 1, 4) float64 in SciPy's linkage layout, heights ascending.

    `linkage` is one of LINKAGES, `metric` one of `masc.distances.METRICS`. With centroid linkage a merge may be lower
    than the merge before. Then the order of the merges is kept and the stored heights are their running maxima, so a
    cut at K is still the result of the first N - K merges.
    Raises InputError for centroid and ward with a metric other than euclidean, and as `condensed_distances` does."""
    import fastcluster

    if linkage not in LINKAGES:
        raise InputError(f"linkage must be one of {', '.join(LINKAGES)}, not {linkage!r}")
    if linkage in EUCLIDEAN_ONLY and metric != "euclidean":
        raise InputError(
            f"{linkage} linkage is defined for the euclidean metric only, found {metric!r}; take tree.metric=euclidean "
            "or tree.linkage=average"
        )
    if metric == "euclidean" and linkage in ("single", *EUCLIDEAN_ONLY):
        # The same tree in O(N d) memory. N = 16,384, d = 8: a fifth of the time too; d = 256: twice the time (Ward).
        merges = fastcluster.linkage_vector(np.asarray(vectors, np.float64), method=linkage)
    else:
        distances = condensed_distances(vectors, metric, num_neighbours)
        merges = fastcluster.linkage(distances, method=linkage, preserve_input=False)
    merges[:, 2] = np.maximum.accumulate(merges[:, 2])  # changes centroid linkage only
    return merges
