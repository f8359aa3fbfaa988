"""The codebook in two dimensions: tokens as points coloured by cluster, and as decoded patches (an atlas).

t-SNE keeps neighbours, not distances: clusters that look far apart on the map need not be so in the codebook.
Shapes: n tokens on the map."""

from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from masc.runtime.streams import Purpose, random_stream
from masc.tree import Partition
from reports.figures import STYLE, plain_text, png

MAX_POINTS = 4096  # tokens on the map; a larger codebook is sampled at random
MAX_PATCHES = 1024  # in the atlas
PERPLEXITY = 30.0
SEVERAL, ALONE = "#c3c9d1", "#e6e9ed"  # tokens of clusters without a colour of their own
# Colours of the largest clusters: hues far apart, none close to grey.
CLUSTER_COLOURS = (
    *("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#17a2b8", "#f032e6", "#9acd32", "#008080", "#b8860b"),
    *("#800000", "#000075", "#ff7f9c", "#808000", "#00c49a", "#7b4fff", "#a0522d", "#ffb000", "#5aa9e6", "#2f4f2f"),
)


@dataclass(frozen=True)
class TokenMap:
    """Positions of tokens in two dimensions."""

    tokens: np.ndarray  # (n,) int64, ascending
    points: np.ndarray  # (n, 2) float64
    perplexity: float
    seed: int


def map_tokens(vectors: np.ndarray, seed: int = 0) -> TokenMap:
    """scikit-learn's t-SNE of the vectors (N, d), or of MAX_POINTS random ones, starting from their PCA."""
    from sklearn.manifold import TSNE

    tokens = np.arange(len(vectors))
    if len(tokens) > MAX_POINTS:
        tokens = np.sort(random_stream(seed, Purpose.MAP_POINTS).choice(len(vectors), MAX_POINTS, replace=False))
    shown = vectors[tokens]
    perplexity = min(PERPLEXITY, (len(tokens) - 1) / 3)
    if len(tokens) < 3 or shown.shape[1] < 2:  # nothing to reduce
        flat = np.pad(shown.astype(np.float64), ((0, 0), (0, 1)))[:, :2]
        return TokenMap(tokens, flat, perplexity, seed)
    engine = TSNE(init="pca", perplexity=perplexity, metric="euclidean", random_state=seed, n_jobs=1)
    return TokenMap(tokens, engine.fit_transform(shown).astype(np.float64), perplexity, seed)


def token_colours(partition: Partition) -> np.ndarray:
    """A colour for each token: (N, 3), 0 to 1. Only the largest clusters are coloured; single tokens are light grey."""
    of_cluster = np.tile(to_rgb(SEVERAL), (partition.num_clusters, 1))
    of_cluster[partition.sizes == 1] = to_rgb(ALONE)
    largest = np.argsort(-partition.sizes, kind="stable")[: len(CLUSTER_COLOURS)]
    largest = largest[partition.sizes[largest] > 1]
    of_cluster[largest] = np.array([to_rgb(colour) for colour in CLUSTER_COLOURS])[: len(largest)]
    return of_cluster[partition.cluster_of]


def is_coloured(partition: Partition) -> np.ndarray:
    """Whether each token's cluster has a colour of its own: (N,) bool."""
    colours = token_colours(partition)
    return ~((colours == to_rgb(SEVERAL)).all(axis=1) | (colours == to_rgb(ALONE)).all(axis=1))


def draw_map(found: TokenMap, partitions: dict[str, Partition]) -> str:
    """One panel for each partition over the same points, with its largest clusters in colour."""
    columns = 3 if len(partitions) > 1 else 1  # the panels keep their size
    rows = -(-len(partitions) // columns)
    width = 10.5 / columns if columns > 1 else 6.0
    extent = np.ptp(found.points, axis=0)
    height = width * float(np.clip(extent[1] / max(extent[0], 1e-12), 0.4, 1.6)) + 0.4
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for axis, (name, partition) in zip(axes.flat, partitions.items(), strict=False):
            _draw_points(axis, found, partition)
            share = is_coloured(partition).mean()
            axis.set_title(
                f"{plain_text(name)}, K = {partition.num_clusters:,}: {share:.0%} in colour", loc="left", fontsize=10
            )
        return png(figure, dpi=190)


def _draw_points(axis: Axes, found: TokenMap, partition: Partition) -> None:
    colours, bright = token_colours(partition)[found.tokens], is_coloured(partition)[found.tokens]
    size = float(np.clip(12000 / len(found.tokens), 4, 14))
    for shown, scale in ((~bright, 0.8), (bright, 1.2)):
        axis.scatter(*found.points[shown].T, s=size * scale, c=colours[shown], linewidths=0)
    axis.set_aspect("equal", adjustable="datalim")


def atlas(found: TokenMap, patches: np.ndarray, has_patch: np.ndarray, partition: Partition) -> np.ndarray:
    """Decoded patches of the map's tokens on a grid, each near its place on the map, framed by its cluster's colour.

    `patches` (N, side, side, 3) uint8 and whether each token has one (N,). The tokens that have one, or MAX_PATCHES
    of them drawn at random, are assigned to the cells so that the sum of squared moves is least.
    Returns an image (rows, columns, 3) uint8."""
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    shown = np.flatnonzero(has_patch[found.tokens])
    if len(shown) > MAX_PATCHES:
        shown = np.sort(random_stream(found.seed, Purpose.MAP_PATCHES).choice(shown, MAX_PATCHES, replace=False))
    columns = int(np.ceil(len(shown) ** 0.5))
    cells = np.stack(np.divmod(np.arange(-(-len(shown) // columns) * columns), columns), axis=1)
    points = found.points[shown][:, ::-1] * [-1, 1]  # rows run down, the map's second axis up
    low, high = points.min(axis=0), points.max(axis=0)
    places = (points - low) / np.maximum(high - low, 1e-12)
    order, cell = linear_sum_assignment(cdist(places, cells / np.maximum(cells.max(axis=0), 1), "sqeuclidean"))
    tokens, zoom = found.tokens[shown[order]], max(1, round(24 / patches.shape[1]))
    framed = _frame(patches[tokens].repeat(zoom, axis=1).repeat(zoom, axis=2), token_colours(partition)[tokens])
    side = framed.shape[1]
    image = np.full((cells[-1, 0] * side + side, columns * side, 3), 255, np.uint8)
    for (row, column), patch in zip(cells[cell], framed, strict=True):
        image[row * side : (row + 1) * side, column * side : (column + 1) * side] = patch
    return image


def _frame(patches: np.ndarray, colours: np.ndarray, frame: int = 3, gap: int = 1) -> np.ndarray:
    """Patches (n, s, s, 3) in frames of the colours (n, 3) and a white gap."""
    border = frame + gap
    side = patches.shape[1] + 2 * border
    framed = np.full((len(patches), side, side, 3), 255, np.uint8)
    framed[:, gap:-gap, gap:-gap] = (255 * colours).astype(np.uint8)[:, None, None]
    framed[:, border:-border, border:-border] = patches
    return framed
