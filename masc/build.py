"""From a codebook to tree.npz: which clustering, built how."""

import resource
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from masc.distances import METRICS
from masc.importers import import_partition
from masc.kmeans import kmeans, kmeans_balanced, kmeans_sklearn, random_balanced
from masc.linkage import ENGINES, average_linkage
from masc.runtime.artifacts import Codebook, InputError, Meta, hash_file
from masc.runtime.run import differences, provenance
from masc.tree import Partition, Tree, load_tree, save_tree
from masc.variants import LINKAGES, linkage_merges

TREES = ("linkage", "random")  # serve every k
PARTITIONS = {  # made at one k, from vectors, k and a seed
    "kmeans": kmeans,
    "kmeans-sklearn": kmeans_sklearn,
    "kmeans-balanced": kmeans_balanced,
    "random-balanced": lambda vectors, num_clusters, seed: random_balanced(len(vectors), num_clusters, seed),
}
METHODS = (*TREES, *PARTITIONS, "mapping")


@dataclass(kw_only=True)
class TreeConfig:
    """A clustering of the codebook by name."""

    name: str
    method: str  # one of METHODS
    linkage: str = "average"  # of `linkage`
    metric: str = "euclidean"  # of `linkage`
    num_neighbours: int = 10  # of the metrics that have neighbours
    seed: int = 0  # of k-means and of random clusters
    mapping: str | None = None  # the file that `mapping` imports
    cluster_size: int = 128  # of an imported permutation
    separate_dead: str | None = None  # data whose training codes say which tokens are dead; None: all are alive
    engine: str = "auto"  # of average linkage: one of masc.linkage.ENGINES, all of which give one tree
    coarsest: int = 1  # clusters at which average linkage may stop

    def __post_init__(self) -> None:
        for key, choices in (("method", METHODS), ("linkage", LINKAGES), ("metric", METRICS), ("engine", ENGINES)):
            if getattr(self, key) not in choices:
                raise ValueError(f"tree.{key} must be one of {', '.join(choices)}, not {getattr(self, key)!r}")
        if self.coarsest < 1:
            raise ValueError(f"tree.coarsest must be at least 1, found {self.coarsest}")
        if self.separate_dead and self.method == "mapping":
            raise ValueError("tree.separate_dead is for clusterings made here; an imported mapping has every token")
        if self.coarsest > 1 and not self.is_masc:
            raise ValueError("tree.coarsest is for average linkage of euclidean distances; other trees go to the root")

    @property
    def needs_k(self) -> bool:
        """Whether the result is a partition at one k rather than a tree."""
        return self.method not in TREES

    @property
    def is_masc(self) -> bool:
        """Whether this is the paper's tree: average linkage of Euclidean distances."""
        return (self.method, self.linkage, self.metric) == ("linkage", "average", "euclidean")

    @property
    def has_engine(self) -> bool:
        """Whether average linkage of Euclidean distances is at the bottom of it."""
        return self.is_masc or self.method == "random"

    def settings(self, num_clusters: int) -> dict[str, Any]:
        """Everything that decides the result: what the file says of itself."""
        settings = asdict(self) | ({"num_clusters": num_clusters} if self.needs_k else {})
        # An imported mapping is known by the hash of its file, not by where that lies.
        return {key: value for key, value in settings.items() if key not in ("engine", "coarsest", "mapping")}

    def file_name(self, num_clusters: int) -> str:
        """A tree serves every k, a partition one."""
        apart = f"-{self.separate_dead}-dead-apart" if self.separate_dead else ""
        return f"{self.name}{apart}-k{num_clusters}.npz" if self.needs_k else f"{self.name}{apart}.npz"


@dataclass(frozen=True)
class Usage:
    """Which tokens the training codes of some data use."""

    is_used: np.ndarray  # (N,) bool
    codes_sha256: str


def make_tree(
    config: TreeConfig, codebook: Codebook, num_clusters: int, path: Path, usage: Usage | None = None
) -> tuple[Tree | Partition, Meta]:
    """The tree or partition of a codebook, built and written to `path` unless it is there.

    `usage` is what `config.separate_dead` asks for."""
    settings, parents = config.settings(num_clusters), {}
    if config.method == "mapping":
        if config.mapping is None:
            raise InputError(f"the tree {config.name} is read from a file: name it with ARGS=tree.mapping=PATH")
        if not Path(config.mapping).is_file():
            raise InputError(f"no mapping at {config.mapping}; give the file with ARGS=tree.mapping=PATH")
        parents["mapping"] = hash_file(Path(config.mapping))
    if usage is not None:
        parents["codes"] = usage.codes_sha256
    there = _reuse(path, settings, parents, codebook, config)
    if there is not None:
        return there
    start, at = time.perf_counter(), datetime.now().isoformat(" ", "seconds")
    made, about = build_tree(config, codebook, num_clusters, None if usage is None else usage.is_used)
    about |= {"at": at, "seconds": round(time.perf_counter() - start, 2), "peak_mib": peak_mib()}
    meta = save_tree(path, made, settings, codebook, parents, about | {"packages": provenance()["packages"]})
    return made, meta


def _reuse(
    path: Path, settings: dict[str, Any], parents: dict[str, str], codebook: Codebook, config: TreeConfig
) -> tuple[Tree | Partition, Meta] | None:
    """What is at `path`, if it was made from these parents, goes down far enough, and by the engine asked for.

    Raises InputError for a clustering of this codebook by other settings: it is not thrown away for a name."""
    try:
        made, meta = load_tree(path, codebook)
    except InputError:
        return None
    lines = differences(meta.config, settings)
    if lines:
        raise InputError(
            f"{path} holds another clustering of that name:\n{lines}\nGive this one a name of its own, by a file in "
            f"configs/tree or tree.name=..., or delete the other with `rm {path}`"
        )
    same_parents = meta.parents == {"codebook": codebook.meta.sha256, **parents}
    deep_enough = not isinstance(made, Tree) or made.coarsest <= config.coarsest
    same_engine = config.engine in ("auto", meta.about.get("engine")) or not config.has_engine
    return (made, meta) if same_parents and deep_enough and same_engine else None


def peak_mib() -> int:
    """The most memory this process has had so far, in MiB (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def build_tree(
    config: TreeConfig, codebook: Codebook, num_clusters: int, is_used: np.ndarray | None = None
) -> tuple[Tree | Partition, dict[str, Any]]:
    """The tree (`linkage`, `random`) or the partition in K clusters of a codebook, and how it was made.

    `random` is the average-linkage tree with its tokens permuted: random, and of the same sizes at each k. Of dead
    tokens, where `is_used` (N,) says which they are, one cluster is made and the rest is built without them."""
    vectors = codebook.vectors
    if is_used is not None and is_used.all():
        is_used = None
    if is_used is not None:
        vectors = vectors[is_used]
        if len(vectors) < 2:
            raise InputError(f"only {len(vectors)} of the {len(is_used)} tokens are used; there is nothing to cluster")
    if config.needs_k:
        if is_used is not None and not 2 <= num_clusters <= len(vectors) + 1:
            raise InputError(
                f"with {len(vectors)} used tokens and the dead in one cluster, k must lie between 2 and "
                f"{len(vectors) + 1}, found {num_clusters}"
            )
        partition = _make_partition(config, vectors, num_clusters - (is_used is not None))
        return partition if is_used is None else partition.with_dead(is_used), {"engine": config.method}
    if config.has_engine:
        if config.coarsest > codebook.num_tokens:
            raise InputError(
                f"tree.coarsest must not exceed the {codebook.num_tokens} tokens of the codebook, found "
                f"{config.coarsest}"
            )
        of_used = max(1, config.coarsest - (is_used is not None))  # the dead are one cluster more
        found = average_linkage(vectors, config.engine, min(of_used, len(vectors)))
        tree = Tree(found.merges, len(vectors))
        about = {"engine": found.engine, "why": found.why, "tied_merges": found.tied_merges}
    else:
        merges = linkage_merges(vectors, config.linkage, config.metric, config.num_neighbours)
        tree, about = Tree(merges), {"engine": f"{config.linkage} linkage of {config.metric} distances, dense"}
    if config.method == "random":
        tree = tree.shuffled(config.seed)
    return tree if is_used is None else tree.with_dead(is_used), about


def _make_partition(config: TreeConfig, vectors: np.ndarray, num_clusters: int) -> Partition:
    if config.method != "mapping":
        return PARTITIONS[config.method](vectors, num_clusters, config.seed)
    partition = import_partition(Path(config.mapping), len(vectors), config.cluster_size)
    if partition.num_clusters != num_clusters:
        raise InputError(
            f"{config.mapping} holds {partition.num_clusters} clusters, not {num_clusters}; "
            f"say so with K={partition.num_clusters}"
        )
    return partition
