"""The tree over a codebook, and the partitions it is cut into.

A Tree is stored uncut, and K is chosen when it is used. Methods without a tree, as k-means, make a Partition."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from masc.runtime.artifacts import Codebook, Meta, load_npz, require_parent, save_npz
from masc.runtime.errors import InputError, MissingArtifact
from masc.runtime.streams import Purpose, random_stream


@dataclass(frozen=True, eq=False)
class Partition:
    """N tokens in K clusters. Clusters are numbered in the order of their lowest tokens."""

    cluster_of: np.ndarray  # (N,) int64

    def __post_init__(self) -> None:
        labels = np.asarray(self.cluster_of)
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) == 0 or labels.min() < 0:
            raise InputError(f"a partition has one cluster number for each token, found {labels.dtype} {labels.shape}")
        if labels.max() >= len(labels):
            raise InputError(f"a partition of {len(labels)} tokens has fewer clusters than {labels.max() + 1}")
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
        """The start of each cluster in `members`, and their end: (K + 1,) int64."""
        return np.concatenate([[0], np.cumsum(self.sizes)])

    def order(self) -> np.ndarray:
        """All tokens, cluster by cluster: (N,) int64."""
        return self.members

    def cut(self, num_clusters: int) -> "Partition":
        """This partition if it has K clusters; InputError otherwise."""
        if num_clusters != self.num_clusters:
            raise InputError(
                f"a fixed partition in {self.num_clusters} clusters cannot be cut into {num_clusters}; make the one "
                f"you need with K={num_clusters}"
            )
        return self

    def with_dead(self, is_used: np.ndarray) -> "Partition":
        """This partition of the used tokens, with one more cluster for the dead: `is_used` (N,) bool."""
        cluster_of = np.full(len(is_used), self.num_clusters)
        cluster_of[is_used] = self.cluster_of
        return Partition(cluster_of)


@dataclass(frozen=True, eq=False)
class Tree:
    """A dendrogram over N tokens, in SciPy's linkage layout (see `masc.linkage.average_linkage`).

    It may end above the root, at a coarsest cut."""

    merges: np.ndarray  # (N - coarsest, 4) float64
    num_tokens: int = 0  # N; 0: one more than merges, for a tree that goes to the root

    def __post_init__(self) -> None:
        merges = self.merges
        if merges.ndim != 2 or merges.shape[1] != 4 or not np.isfinite(merges).all():
            raise InputError(f"a tree holds finite merges (N - 1, 4), found {merges.dtype} {merges.shape}")
        if not self.num_tokens:
            object.__setattr__(self, "num_tokens", len(merges) + 1)
        num_tokens = self.num_tokens
        if not len(merges) < num_tokens:
            raise InputError(f"a tree of {num_tokens} tokens has fewer merges than tokens, found {len(merges)}")
        children = merges[:, :2].astype(np.int64)
        made = num_tokens + np.arange(len(merges))
        once = len(np.unique(children)) == children.size
        if not once or (children != merges[:, :2]).any() or (children < 0).any() or (children >= made[:, None]).any():
            raise InputError("a tree must merge every token and cluster at most once, and only what exists")
        sizes = np.concatenate([np.ones(num_tokens), merges[:, 3]])
        if (sizes[children].sum(axis=1) != merges[:, 3]).any():
            raise InputError("a tree's clusters must have as many tokens as their two parts together")
        if (np.diff(merges[:, 2], prepend=0) < 0).any():
            raise InputError(
                "a tree's merge heights must begin at 0 or above and not descend; average linkage never makes another"
            )

    @property
    def coarsest(self) -> int:
        """The fewest clusters it can be cut into; 1 if it goes to the root."""
        return self.num_tokens - len(self.merges)

    def cut(self, num_clusters: int) -> Partition:
        """The partition in exactly K clusters: the result of the first N - K merges."""
        num_tokens = self.num_tokens
        if not 1 <= num_clusters <= num_tokens:
            raise InputError(
                f"K must lie between 1 and the {num_tokens} tokens of the tree, found {num_clusters}; "
                f"try K={num_tokens // 2}"
            )
        if num_clusters < self.coarsest:
            raise InputError(
                f"the tree was built down to {self.coarsest} clusters only, found k = {num_clusters}; build it "
                f"further, with ARGS=tree.coarsest={num_clusters}"
            )
        num_merges = num_tokens - num_clusters
        # From the last merge downwards, each cluster passes its number on to its two children.
        root_of = np.arange(num_tokens + num_merges)
        children = self.merges[:num_merges, :2].astype(np.int64)
        for row in range(num_merges - 1, -1, -1):
            root_of[children[row]] = root_of[num_tokens + row]
        return Partition(np.unique(root_of[:num_tokens], return_inverse=True)[1])

    def cuts(self, ks: Sequence[int]) -> list[Partition]:
        """The partitions at several K, coarsest first. Each is nested in the one before."""
        return [self.cut(k) for k in sorted(set(ks))]

    def order(self) -> np.ndarray:
        """All tokens as the leaves of the dendrogram stand, so that every cluster is one range: (N,) int64."""
        num_tokens = self.num_tokens
        children = self.merges[:, :2].astype(np.int64)
        sizes = np.concatenate([np.ones(num_tokens, np.int64), self.merges[:, 3].astype(np.int64)])
        tops = np.setdiff1d(np.arange(len(sizes)), children)
        start = np.zeros(len(sizes), np.int64)
        start[tops] = np.cumsum(sizes[tops]) - sizes[tops]
        for row in range(len(children) - 1, -1, -1):
            left, right = children[row]
            start[left] = start[num_tokens + row]
            start[right] = start[left] + sizes[left]
        return np.argsort(start[:num_tokens])

    def shuffled(self, seed: int) -> "Tree":
        """A tree of the same shape and heights over randomly permuted tokens.

        Its cut at any K is a random partition with the cluster sizes of this tree."""
        permutation = random_stream(seed, Purpose.SHUFFLED_TREE).permutation(self.num_tokens)
        return Tree(_relabelled(self.merges, permutation, self.num_tokens), self.num_tokens)

    def with_dead(self, is_used: np.ndarray) -> "Tree":
        """This tree over the used tokens, extended to all N: `is_used` (N,) bool is true for the tokens of this tree.

        The dead tokens are merged first, at height 0. Their cluster is merged with the rest last. So every cut, if it
        is coarse enough to hold them in one cluster, keeps them apart from the rest."""
        used, dead = np.flatnonzero(is_used), np.flatnonzero(~is_used)
        num_tokens = len(is_used)
        if len(used) != self.num_tokens:
            raise InputError(f"{len(used)} tokens are used, but the tree has {self.num_tokens}")
        if not len(dead):
            return self
        among_dead = np.zeros((len(dead) - 1, 4))
        chain = num_tokens + np.arange(len(dead) - 1)
        among_dead[:, 0], among_dead[:, 1] = dead[1:], np.concatenate([dead[:1], chain[:-1]])[: len(dead) - 1]
        among_dead[:, 3] = np.arange(2, len(dead) + 1)
        rest = _relabelled(self.merges, used, num_tokens + len(among_dead))
        parts = [among_dead, rest]
        if self.coarsest == 1:
            last = num_tokens + len(among_dead) + len(rest) - 1 if len(rest) else used[0]
            whole_dead = chain[-1] if len(among_dead) else dead[0]
            height = rest[-1, 2] if len(rest) else 0.0
            parts.append(np.array([[whole_dead, last, height, num_tokens]], np.float64))
        merges = np.concatenate(parts)
        merges[:, :2] = np.sort(merges[:, :2], axis=1)
        return Tree(merges, num_tokens)


Clustering = Tree | Partition  # both have `cut`: a tree at any K, a partition at its own K only


def _relabelled(merges: np.ndarray, tokens: np.ndarray, first_made: int) -> np.ndarray:
    """The merges with new numbers: tokens[t] for token t, and first_made + j for the cluster of row j."""
    children = merges[:, :2].astype(np.int64)
    is_token = children < len(tokens)
    children = np.where(is_token, tokens[np.where(is_token, children, 0)], children - len(tokens) + first_made)
    return np.column_stack([np.sort(children, axis=1).astype(np.float64), merges[:, 2:]])


VERSION = 2
# The arrays of a stored tree, and of a stored partition.
SCHEMAS = ({"merges": ("f", (None, 4)), "num_tokens": ("iu", ())}, {"cluster_of": ("iu", (None,))})


def save_tree(
    path: Path,
    made: Tree | Partition,
    config: dict[str, Any],
    codebook: Codebook,
    parents: dict[str, str] | None = None,
    about: dict[str, Any] | None = None,
) -> Meta:
    """Write an uncut tree or a partition, with the hashes of its codebook and its other `parents`.

    `about` records how it was made; the reader compares nothing with it."""
    if made.num_tokens != codebook.num_tokens:
        raise InputError(f"the tree has {made.num_tokens} tokens, the codebook {codebook.num_tokens} ({path})")
    if isinstance(made, Tree):
        arrays = {"merges": made.merges, "num_tokens": np.array(made.num_tokens)}
    else:
        arrays = {"cluster_of": made.cluster_of}
    return save_npz(path, "tree", VERSION, arrays, config, {"codebook": codebook.meta.sha256, **(parents or {})}, about)


def load_tree(path: Path, codebook: Codebook) -> tuple[Tree | Partition, Meta]:
    """The tree or partition that `save_tree` wrote; MissingArtifact if it is broken or of another codebook."""
    arrays, meta = load_npz(path, "tree", VERSION, *SCHEMAS)
    require_parent(meta, "codebook", codebook.meta.sha256, path)
    is_tree = "merges" in arrays
    num_tokens = int(arrays["num_tokens"]) if is_tree else len(arrays["cluster_of"])
    if num_tokens != codebook.num_tokens:
        raise MissingArtifact("tree", path, f"{path} holds {num_tokens} tokens, the codebook {codebook.num_tokens}")
    try:
        made = Tree(arrays["merges"], num_tokens) if is_tree else Partition(arrays["cluster_of"])
    except InputError as error:
        raise MissingArtifact("tree", path, f"{path} holds no tree: {error}") from error
    return made, meta


def check_cuts(made: Clustering, cuts: Sequence[int], path: Path) -> None:
    """Raise MissingArtifact unless the clustering stored at `path` has every one of `cuts`."""
    for num_clusters in cuts:
        if isinstance(made, Tree) and num_clusters < made.coarsest:
            raise MissingArtifact(
                "tree",
                path,
                f"{path} goes down to {made.coarsest} clusters only, found k = {num_clusters}; build it further",
                overrides={"tree.coarsest": num_clusters},
            )
        if isinstance(made, Partition) and made.num_clusters != num_clusters:
            problem = f"{path} holds a fixed partition in {made.num_clusters} clusters, not {num_clusters}"
            raise MissingArtifact("tree", path, problem, k=num_clusters)


def load_partition(path: Path, num_clusters: int, codebook: Codebook) -> tuple[Partition, Meta]:
    """The partition in K clusters from a stored tree, or a stored partition if it has that K."""
    made, meta = load_tree(path, codebook)
    check_cuts(made, [num_clusters], path)
    return made.cut(num_clusters), meta
