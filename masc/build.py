"""Configs of clusterings, and building and storing a tree or a partition from a codebook."""

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
from masc.runtime.artifacts import Codebook, Meta
from masc.runtime.errors import InputError, removal
from masc.runtime.files import check_name, hash_file
from masc.runtime.run import differences, provenance
from masc.tree import Partition, Tree, load_tree, save_tree
from masc.variants import LINKAGES, linkage_merges

TREES = ("linkage", "random")  # can be cut at every K
PARTITIONS = {  # made at one K, from vectors, K and a seed
    "kmeans": kmeans,
    "kmeans-sklearn": kmeans_sklearn,
    "kmeans-balanced": kmeans_balanced,
    "random-balanced": lambda vectors, num_clusters, seed: random_balanced(len(vectors), num_clusters, seed),
}
METHODS = (*TREES, *PARTITIONS, "mapping")


@dataclass(kw_only=True)
class TreeConfig:
    """A clustering of the codebook. A method ignores the settings that are not its own; the file stores them all."""

    name: str
    method: str  # one of METHODS
    linkage: str = "average"  # of `linkage`
    metric: str = "euclidean"  # of `linkage`
    num_neighbours: int = 10  # of the metrics geodesic, mutual-reachability and local-scaling
    seed: int = 0  # of k-means and of random clusters
    mapping: str | None = None  # of `mapping`: the file to import
    cluster_size: int = 128  # of `mapping`, if the file is a permutation
    separate_dead: str | None = None  # data whose training codes define dead tokens; None: no token is dead
    engine: str = "auto"  # of average linkage: one of masc.linkage.ENGINES, which all give the same tree
    coarsest: int = 1  # number of clusters at which average linkage may stop

    def __post_init__(self) -> None:
        check_name(self.name, "tree.name")
        if self.separate_dead is not None:
            check_name(self.separate_dead, "tree.separate_dead")
        for key, choices in (("method", METHODS), ("linkage", LINKAGES), ("metric", METRICS), ("engine", ENGINES)):
            if getattr(self, key) not in choices:
                raise ValueError(f"tree.{key} must be one of {', '.join(choices)}, not {getattr(self, key)!r}")
        if self.coarsest < 1:
            raise ValueError(f"tree.coarsest must be at least 1, found {self.coarsest}")
        if self.separate_dead and self.method == "mapping":
            raise ValueError("tree.separate_dead is for clusterings made here; an imported mapping has all tokens")
        if self.coarsest > 1 and not self.is_masc:
            raise ValueError("tree.coarsest is for average linkage of euclidean distances; other trees end at the root")

    @property
    def needs_k(self) -> bool:
        """Whether the result is a partition at one K and not a tree."""
        return self.method not in TREES

    @property
    def is_masc(self) -> bool:
        """Whether this is the paper's tree: average linkage of Euclidean distances."""
        return (self.method, self.linkage, self.metric) == ("linkage", "average", "euclidean")

    @property
    def has_engine(self) -> bool:
        """Whether the tree is built by average linkage of Euclidean distances."""
        return self.is_masc or self.method == "random"

    def settings(self, num_clusters: int) -> dict[str, Any]:
        """The settings that decide the result; the file stores them in its header."""
        settings = asdict(self) | ({"num_clusters": num_clusters} if self.needs_k else {})
        # An imported mapping is identified by the hash of its file, not by its path.
        return {key: value for key, value in settings.items() if key not in ("engine", "coarsest", "mapping")}

    def file_name(self, num_clusters: int) -> str:
        """Name of the file; only a partition has K in it."""
        apart = f"-{self.separate_dead}-dead-apart" if self.separate_dead else ""
        return f"{self.name}{apart}-k{num_clusters}.npz" if self.needs_k else f"{self.name}{apart}.npz"


@dataclass(frozen=True)
class Usage:
    """The tokens that occur in the training codes of a data set."""

    is_used: np.ndarray  # (N,) bool
    codes_sha256: str


def make_tree(
    config: TreeConfig, codebook: Codebook, num_clusters: int, path: Path, usage: Usage | None = None
) -> tuple[Tree | Partition, Meta]:
    """The tree or partition of a codebook, built and written to `path` unless it is there.

    `usage` belongs to the data of `config.separate_dead`. Raises InputError if `path` holds other settings."""
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
    """The tree or partition at `path` if it has these parents and the engine of `config`, and goes down far enough.

    Raises InputError for a clustering of this codebook by other settings, so that it is not overwritten."""
    try:
        made, meta = load_tree(path, codebook)
    except InputError:
        return None
    lines = differences(meta.config, settings)
    if lines:
        raise InputError(
            f"{path} holds another clustering of that name:\n{lines}\nGive the new one another name, by a file in "
            f"configs/tree or tree.name=..., or delete the old one with `{removal(path)}`"
        )
    same_parents = meta.parents == {"codebook": codebook.meta.sha256, **parents}
    deep_enough = not isinstance(made, Tree) or made.coarsest <= config.coarsest
    same_engine = config.engine in ("auto", meta.about.get("engine")) or not config.has_engine
    return (made, meta) if same_parents and deep_enough and same_engine else None


def peak_mib() -> int:
    """Peak memory of this process so far in MiB (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def build_tree(
    config: TreeConfig, codebook: Codebook, num_clusters: int, is_used: np.ndarray | None = None
) -> tuple[Tree | Partition, dict[str, Any]]:
    """The tree (`linkage`, `random`) or the partition in K clusters of a codebook, and how it was made.

    `random` is the average-linkage tree with permuted tokens, so its clusters have the same sizes at each K. With
    `is_used` (N,) the dead tokens become one cluster, and the rest is built without them."""
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
                f"with {len(vectors)} used tokens and the dead in one cluster, K must lie between 2 and "
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
        of_used = max(1, config.coarsest - (is_used is not None))  # the dead tokens are one more cluster
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
            f"set K={partition.num_clusters}"
        )
    return partition
