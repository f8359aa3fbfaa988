"""The tree over a codebook, and the partitions it is cut into.

A Tree is stored uncut; k is chosen when it is used. K-means has no tree: it makes a Partition at once."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from masc.artifacts import Codebook, InputError, Meta, load_npz, require_parent, save_npz


@dataclass(frozen=True, eq=False)
class Partition:
    """N tokens in K clusters. Clusters are numbered by their lowest token: the canonical labels."""

    cluster_of: np.ndarray  # (N,) int64

    def __post_init__(self) -> None:
        labels = np.asarray(self.cluster_of)
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) == 0 or labels.min() < 0:
            raise InputError(f"a partition is one cluster number a token, found {labels.dtype} {labels.shape}")
        present, first = np.unique(labels, return_index=True)
        if len(present) != labels.max() + 1:
            missing = np.setdiff1d(np.arange(labels.max() + 1), present)
            raise InputError(f"clusters {missing[:5].tolist()} of {labels.max() + 1} have no token")
        rank = np.empty(len(present), np.int64)
        rank[np.argsort(first)] = np.arange(len(present))
        object.__setattr__(self, "cluster_of", rank[labels])

    @property
    def num_tokens(self) -> int:
        return len(self.cluster_of)

    @property
    def num_clusters(self) -> int:
        return int(self.cluster_of.max()) + 1

    @cached_property
    def sizes(self) -> np.ndarray:
        """Tokens in each cluster: (K,) int64."""
        return np.bincount(self.cluster_of)

    @cached_property
    def members(self) -> np.ndarray:
        """Tokens sorted by cluster: (N,) int64; cluster c owns members[offsets[c] : offsets[c + 1]]."""
        return np.argsort(self.cluster_of, kind="stable")

    @cached_property
    def offsets(self) -> np.ndarray:
        """Where each cluster starts in `members`: (K + 1,) int64."""
        return np.concatenate([[0], np.cumsum(self.sizes)])


@dataclass(frozen=True, eq=False)
class Tree:
    """A dendrogram over N tokens, in SciPy's linkage layout (see `masc.linkage.average_linkage`)."""

    merges: np.ndarray  # (N - 1, 4) float64

    def __post_init__(self) -> None:
        merges = self.merges
        if merges.ndim != 2 or merges.shape[1] != 4 or not np.isfinite(merges).all():
            raise InputError(f"a tree holds finite merges (N - 1, 4), found {merges.dtype} {merges.shape}")
        num_tokens = len(merges) + 1
        children = merges[:, :2].astype(np.int64)
        made = num_tokens + np.arange(len(merges))
        if not np.array_equal(np.sort(children.ravel()), np.arange(2 * len(merges))) or (
            (children >= made[:, None]).any()
        ):
            raise InputError("a tree must merge every token and cluster exactly once, and only what exists")
        if (np.diff(merges[:, 2]) < 0).any():
            raise InputError("a tree's merge heights must not descend; average linkage never makes such a tree")

    @property
    def num_tokens(self) -> int:
        return len(self.merges) + 1

    def cut(self, num_clusters: int) -> Partition:
        """The partition with exactly K clusters: the first N - K merges done."""
        num_tokens = self.num_tokens
        if not 1 <= num_clusters <= num_tokens:
            raise InputError(
                f"k must lie between 1 and the {num_tokens} tokens of the tree, found {num_clusters}; "
                f"try K={num_tokens // 2}"
            )
        num_merges = num_tokens - num_clusters
        # Downward from the last merge done: each cluster hands its own number to its two children.
        root_of = np.arange(num_tokens + num_merges)
        children = self.merges[:num_merges, :2].astype(np.int64)
        for row in range(num_merges - 1, -1, -1):
            root_of[children[row]] = root_of[num_tokens + row]
        return Partition(np.unique(root_of[:num_tokens], return_inverse=True)[1])

    def shuffled(self, seed: int) -> "Tree":
        """The same shape and heights over randomly permuted tokens: at every k a random partition with
        exactly this tree's cluster sizes."""
        num_tokens = self.num_tokens
        permutation = np.random.default_rng(seed).permutation(num_tokens)
        merges = self.merges.copy()
        children = merges[:, :2].astype(np.int64)
        leaf = children < num_tokens
        children[leaf] = permutation[children[leaf]]
        merges[:, :2] = np.sort(children, axis=1)
        return Tree(merges)


VERSION = 1


def save_tree(path: Path, made: Tree | Partition, config: dict[str, Any], codebook: Codebook) -> Meta:
    """Write a tree (uncut) or a partition (k-means) with the hash of the codebook it belongs to."""
    if made.num_tokens != codebook.num_tokens:
        raise InputError(f"the tree has {made.num_tokens} tokens, the codebook {codebook.num_tokens} ({path})")
    arrays = {"merges": made.merges} if isinstance(made, Tree) else {"cluster_of": made.cluster_of}
    return save_npz(path, "tree", VERSION, arrays, config, {"codebook": codebook.meta.sha256})


def load_tree(path: Path, codebook: Codebook, make: str) -> tuple[Tree | Partition, Meta]:
    """Read what `save_tree` wrote; InputError if it belongs to another codebook."""
    arrays, meta = load_npz(path, "tree", VERSION, make)
    require_parent(meta, "codebook", codebook.meta.sha256, path, make)
    if "merges" in arrays:
        return Tree(arrays["merges"]), meta
    return Partition(arrays["cluster_of"]), meta


def load_partition(path: Path, num_clusters: int, codebook: Codebook, make: str) -> tuple[Partition, Meta]:
    """The partition in K clusters from a stored tree, or a stored partition if it has that K."""
    made, meta = load_tree(path, codebook, make)
    if isinstance(made, Tree):
        return made.cut(num_clusters), meta
    if made.num_clusters != num_clusters:
        raise InputError(
            f"{path} holds a fixed partition in {made.num_clusters} clusters, not {num_clusters}; "
            f"make the one you need with `{make} K={num_clusters}`"
        )
    return made, meta
