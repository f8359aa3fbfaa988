"""The page about a tree: dendrogram, maps, clusters and coherence, compared with other clusterings (HTML and JSON)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from masc.build import TreeConfig
from masc.coherence import agreement, intra_cluster_distance, intra_cluster_similarity, num_pairs
from masc.layout import Layout
from masc.runtime.artifacts import Codebook
from masc.runtime.codes import Codes
from masc.runtime.errors import InputError, MissingArtifact
from masc.runtime.files import write_json, write_text
from masc.runtime.run import provenance
from masc.runtime.streams import Purpose, random_stream
from masc.summary import describe
from masc.tree import Partition, Tree, load_tree
from reports import figures
from reports.page import render_page
from reports.tree import figures as tree_figures
from reports.tree.patches import cluster_sheet, token_patches
from reports.tree.token_map import CLUSTER_COLOURS, MAX_PATCHES, atlas, draw_map, map_tokens
from vq.interface import Tokenizer
from vq.pixels import decode_pixels

NUM_HALVINGS = 5  # coherence is shown at K = N / 2, N / 4, ...
FEW = 32  # and at few enough clusters that most tokens have a colour on the map
MAX_PAIRS = 2 * 10**9  # distances within the clusters of one partition: about a minute on one core
MEASURES = {
    "residual_variance": "residual variance",
    "distance": "distance within clusters",
    "similarity": "cosine similarity within clusters",
}
OUTLINE = 212  # grey around patches, so that white ones are seen
MARGIN = 4  # pixels around a token's own cell in its patch


@dataclass(frozen=True)
class Clustering:
    """A clustering of the codebook: its partitions by K, and its tree if it has one."""

    partitions: dict[int, Partition]
    sha256: dict[int, str]  # of the file of each partition, by K
    tree: Tree | None = None
    height: str = tree_figures.DISTANCE  # meaning of the heights of the tree's merges


@dataclass
class TreeReportInputs:
    """Inputs of the page. Without `tokenizer` and `codes` it has no patches; `no_patches` says why."""

    tokenizer_name: str
    codebook: Codebook
    num_clusters: int  # K
    clusterings: dict[str, Clustering]  # by name; the page is about the first; all have K
    missing: dict[str, str] = field(default_factory=dict)  # by name: the command that makes it
    tokenizer: Tokenizer | None = None
    codes: Codes | None = None
    no_patches: str = ""
    num_images: int = 1500  # decoded images for the patches of tokens
    seed: int = 0  # of the map and of the random choices for map and patches
    attribution: str = ""

    @property
    def coarsest(self) -> int:
        """The smallest K of the first clustering."""
        return min(next(iter(self.clusterings.values())).partitions)

    def cuts(self, num_clusters: int) -> dict[str, Partition]:
        """The partitions into K clusters, by name; clusterings without one are left out."""
        made = {name: clustering.partitions for name, clustering in self.clusterings.items()}
        return {name: cuts[num_clusters] for name, cuts in made.items() if num_clusters in cuts}


def load_clusterings(
    layout: Layout, trees: dict[str, TreeConfig], num_clusters: int, codebook: Codebook
) -> tuple[dict[str, Clustering], dict[str, MissingArtifact]]:
    """The existing clusterings, and an error for each missing one, by name.

    Raises InputError if no tree is named, MissingArtifact if the first one is missing."""
    if not trees:
        raise InputError("no trees to look at; name at least one, as in ARGS=+tree@trees.masc=masc")
    num_tokens, found, missing = codebook.num_tokens, {}, {}
    halved = [num_tokens >> shift for shift in range(1, NUM_HALVINGS + 1)]
    ks = sorted({num_clusters, *[k for k in (*halved, FEW) if 1 < k <= halved[0]]}, reverse=True)
    for name, config in trees.items():
        if layout.tree(config, num_clusters).exists():
            found[name] = _load_clustering(layout, config, num_clusters, ks, codebook)
        elif not found:
            raise layout.missing_tree(config, num_clusters)
        else:
            missing[name] = layout.missing_tree(config, num_clusters)
    return found, missing


def _load_clustering(
    layout: Layout, config: TreeConfig, num_clusters: int, ks: list[int], codebook: Codebook
) -> Clustering:
    partition, sha256 = layout.load_partition(config, num_clusters, codebook)
    made, _ = load_tree(layout.tree(config, num_clusters), codebook)
    if isinstance(made, Tree):
        cuts = {k: made.cut(k) for k in ks if k >= made.coarsest}
        kind = (config.linkage, config.metric)
        height = tree_figures.DISTANCE if kind == ("average", "euclidean") else f"height ({kind[0]} linkage, {kind[1]})"
        return Clustering(cuts, dict.fromkeys(cuts, sha256), made, height)
    others = [k for k in ks if config.needs_k and k != num_clusters and layout.tree(config, k).exists()]
    loaded = {num_clusters: (partition, sha256)} | {k: layout.load_partition(config, k, codebook) for k in others}
    return Clustering({k: cut for k, (cut, _) in loaded.items()}, {k: sha for k, (_, sha) in loaded.items()})


def measure_partition(vectors: np.ndarray, partition: Partition) -> dict[str, Any]:
    """Sizes and coherence of a partition of the vectors (N, d). The distance is None for more than MAX_PAIRS pairs."""
    near_enough = num_pairs(partition) <= MAX_PAIRS
    return {
        **describe(vectors, partition),
        "median_size": float(np.median(partition.sizes)),
        "distance": intra_cluster_distance(vectors, partition).overall if near_enough else None,
        "similarity": intra_cluster_similarity(vectors, partition).overall,
    }


def agreements(partitions: dict[str, Partition]) -> dict[str, Any]:
    """Names, and ARI and AMI of every pair of partitions as matrices."""
    names, size = list(partitions), len(partitions)
    found = {measure: [[1.0] * size for _ in range(size)] for measure in ("ari", "ami")}
    for i in range(size):
        for j in range(i):
            for measure, value in agreement(partitions[names[i]], partitions[names[j]]).items():
                found[measure][i][j] = found[measure][j][i] = value
    return {"names": names, **found}


def tree_images(inputs: TreeReportInputs) -> list[dict[str, str]]:
    """The dendrogram of each tree. A tree that only permutes the tokens of another looks the same and is left out."""
    shown: dict[bytes, dict[str, str]] = {}
    for name, made in inputs.clusterings.items():
        if made.tree is not None and len(made.tree.merges):
            image = shown.setdefault(made.tree.merges[:, 2].tobytes(), {"name": name, "image": ""})
            image["image"] = image["image"] or tree_figures.dendrogram(made.tree, inputs.num_clusters, made.height)
    return list(shown.values())


def decoded_patches(inputs: TreeReportInputs) -> tuple[np.ndarray, np.ndarray] | None:
    """A decoded patch of each token (N, side, side, 3) uint8, and whether it has one (N,).

    None without tokenizer or codes."""
    if inputs.tokenizer is None or inputs.codes is None:
        return None
    count = min(inputs.num_images, inputs.codes.num_images)
    rng = random_stream(inputs.seed, Purpose.REPORTED_IMAGES)
    rows = np.sort(rng.choice(inputs.codes.num_images, count, replace=False))
    tokens = inputs.codes.read(rows, 0)
    images = decode_pixels(inputs.tokenizer, tokens)
    used = np.bincount(tokens.ravel(), minlength=inputs.codes.num_tokens) > 0
    return token_patches(tokens, images, inputs.codes.num_tokens, MARGIN), used


def cluster_sheets(patches: np.ndarray, used: np.ndarray, partitions: dict[str, Partition]) -> dict[str, np.ndarray]:
    """Clusters of each partition as outlined patches, one cluster in a row; tokens without a patch are grey."""
    shown = np.where(used[:, None, None, None], patches, np.uint8(OUTLINE)).repeat(2, axis=1).repeat(2, axis=2)
    shown = np.pad(shown, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=OUTLINE)
    return {name: cluster_sheet(shown, cut, rows=12, columns=12, gap=4) for name, cut in partitions.items()}


def write_tree_report(inputs: TreeReportInputs, directory: Path) -> Path:
    """Write tree-report.html and tree-report.json to `directory`; return the page's path.

    Raises InputError if there are no clusterings, or one of them has other tokens than the codebook."""
    if not inputs.clusterings:
        raise InputError("no trees to look at; name at least one, as in ARGS=+tree@trees.masc=masc")
    vectors, cuts = inputs.codebook.vectors, inputs.cuts(inputs.num_clusters)
    rows = [
        {"clustering": name, **measure_partition(vectors, made.partitions[k])}
        for name, made in inputs.clusterings.items()
        for k in sorted(made.partitions, reverse=True)
    ]
    everything = measure_partition(vectors, Partition(np.zeros(len(vectors), np.int64)))
    found, patches = map_tokens(vectors, inputs.seed), decoded_patches(inputs)
    content = {
        "tokenizer": inputs.tokenizer_name,
        "num_tokens": len(vectors),
        "dimension": vectors.shape[1],
        "num_clusters": inputs.num_clusters,
        "codebook_sha256": inputs.codebook.meta.sha256,
        "tree_sha256": {name: made.sha256 for name, made in inputs.clusterings.items()},
        "rows": rows,
        "one_cluster": everything,
        "agreement": agreements(cuts),
        "map": {"num_tokens": len(found.tokens), "perplexity": found.perplexity, "seed": inputs.seed},
        "patches": None if patches is None else {"codes_sha256": inputs.codes.sha256, "tokens": int(patches[1].sum())},
        "missing": inputs.missing,
        "no_patches": inputs.no_patches,
        "provenance": provenance(),
    }
    page = render_page(
        "tree/report.html.j2",
        **content,
        attribution=inputs.attribution,
        colours=tree_figures.palette(list(cuts)),
        num_coloured=len(CLUSTER_COLOURS),
        max_pairs=MAX_PAIRS,
        max_patches=MAX_PATCHES,
        dendrograms=tree_images(inputs),
        maps={k: draw_map(found, inputs.cuts(k)) for k in sorted({inputs.num_clusters, inputs.coarsest}, reverse=True)},
        sizes=tree_figures.cluster_sizes(cuts),
        size_histogram=tree_figures.size_histogram(cuts),
        coherence=tree_figures.coherence(rows, everything, MEASURES, inputs.num_clusters),
        atlas=patches and figures.image(atlas(found, *patches, next(iter(cuts.values())))),
        sheets={name: figures.image(sheet) for name, sheet in cluster_sheets(*patches, cuts).items()}
        if patches
        else {},
    )
    write_text(directory / "tree-report.html", page)
    write_json(directory / "tree-report.json", content)
    return directory / "tree-report.html"
