"""From a codebook to tree.npz: which clustering, built how."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from masc.artifacts import Codebook, InputError, reuse_npz
from masc.linkage import average_linkage
from masc.tree import VERSION, Partition, Tree, load_tree, save_tree

METHODS = ("average", "kmeans", "random")


@dataclass(kw_only=True)
class TreeConfig:
    """A clustering of the codebook by name."""

    name: str
    method: str  # one of METHODS
    seed: int = 0  # of k-means and of the random tree
    needs_k: bool = False  # whether the result is a partition at one k rather than a tree

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"tree.method must be one of {', '.join(METHODS)}, not {self.method!r}")

    def settings(self, num_clusters: int) -> dict[str, Any]:
        """Everything that decides the result: what the file says of itself."""
        return asdict(self) | ({"num_clusters": num_clusters} if self.needs_k else {})

    def file_name(self, num_clusters: int) -> str:
        """A tree serves every k, a partition one."""
        return f"{self.name}-k{num_clusters}.npz" if self.needs_k else f"{self.name}.npz"


def make_tree(config: TreeConfig, codebook: Codebook, num_clusters: int, path: Path) -> Tree | Partition:
    """The tree or partition of a codebook, built and written to `path` unless it is there."""
    settings = config.settings(num_clusters)
    if reuse_npz(path, "tree", VERSION, settings, {"codebook": codebook.meta.sha256}) is not None:
        return load_tree(path, codebook, make="")[0]
    made = build_tree(config, codebook, num_clusters)
    save_tree(path, made, settings, codebook)
    return made


def build_tree(config: TreeConfig, codebook: Codebook, num_clusters: int) -> Tree | Partition:
    """The tree (`average`, `random`) or the partition in K clusters (`kmeans`) of a codebook.

    `random` is the average-linkage tree with its tokens permuted: random, and of the same sizes at each k."""
    if config.method == "kmeans":
        return kmeans(codebook.vectors, num_clusters, config.seed)
    tree = Tree(average_linkage(codebook.vectors))
    return tree.shuffled(config.seed) if config.method == "random" else tree


def kmeans(vectors: np.ndarray, num_clusters: int, seed: int, num_starts: int = 10) -> Partition:
    """Lloyd's k-means with random starting points, best of `num_starts` (MASC, App. A.3: 10).

    FAISS in place of the paper's scikit-learn. A cluster that ends empty gets the token farthest from its own
    centre. Raises InputError if K is not in 1..N."""
    import faiss

    if not 1 <= num_clusters <= len(vectors):
        raise InputError(f"k must lie between 1 and the codebook's {len(vectors)} tokens, found {num_clusters}")
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
