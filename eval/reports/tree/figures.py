"""Figures of trees and partitions: dendrogram, merge heights, cluster sizes, coherence.

Shapes: N tokens, K clusters."""

import heapq
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection

from masc.tree import Partition, Tree
from reports.curves import COLOURS
from reports.figures import INK, STYLE, plain_text, png, svg

CUT, ABOVE, BELOW, WEDGE = "#d1495b", "#4a5568", "#2e7fb8", "#b9d4e8"
WHOLE_TREE = 1024  # trees of up to this many tokens are drawn completely
UPPER_LEAVES = 256  # clusters at which the drawing of a larger tree ends
DISTANCE = "average pairwise distance"  # meaning of the height of an average-linkage merge


@dataclass(frozen=True)
class UpperTree:
    """The upper part of a tree: its highest merges, with clusters as leaves."""

    roots: list[int]  # left to right; several if the tree ends early
    num_roots: int  # of the whole tree; only the largest are shown
    opened: set[int]  # the merges drawn
    leaves: list[int]  # left to right: tokens, and clusters drawn as wedges


def upper_tree(tree: Tree, num_leaves: int) -> UpperTree:
    """Open the highest merges until `num_leaves` clusters are left. Costs O(N) for any depth.

    If a tree ends in many clusters, only the largest num_leaves / 4 are shown."""
    num_tokens, children = tree.num_tokens, tree.merges[:, :2].astype(np.int64)
    roots = np.setdiff1d(np.arange(num_tokens + len(children)), children)
    sizes = np.concatenate([np.ones(num_tokens), tree.merges[:, 3]])
    largest = roots[np.argsort(-sizes[roots], kind="stable")][: max(1, num_leaves // 4)]
    # Merges are numbered from the lowest to the highest, so the highest merge has the largest number.
    waiting, opened = [-int(root) for root in largest], set()
    heapq.heapify(waiting)
    while len(waiting) < num_leaves and -waiting[0] >= num_tokens:
        node = -heapq.heappop(waiting)
        opened.add(node)
        for child in children[node - num_tokens]:
            heapq.heappush(waiting, -int(child))
    leaves, stack = [], [int(root) for root in largest[::-1]]
    while stack:
        node = stack.pop()
        if node not in opened:
            leaves.append(node)
            continue
        first, second = children[node - num_tokens].tolist()
        stack += [second, first] if sizes[first] >= sizes[second] else [first, second]  # the larger one left
    return UpperTree([int(root) for root in largest], len(roots), opened, leaves)


def cut_height(tree: Tree, num_clusters: int) -> float:
    """A height between the last merge below the cut at K and the first merge above it."""
    heights, done = tree.merges[:, 2], tree.num_tokens - num_clusters
    return float(heights[max(done - 1, 0)] + heights[min(done, len(heights) - 1)]) / 2


def dendrogram(tree: Tree, num_clusters: int, height: str = DISTANCE) -> str:
    """A figure of the tree (the upper part of a large one) with the height of the cut, and of its merge heights."""
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.0), width_ratios=(2.5, 1))
        _draw_tree(axes[0], tree, num_clusters)
        axes[0].set_ylabel(height)
        _draw_heights(axes[1], tree, num_clusters)
        return png(figure, dpi=180)


def _draw_tree(axis: Axes, tree: Tree, num_clusters: int) -> None:
    num_tokens = tree.num_tokens
    upper = upper_tree(tree, num_tokens if num_tokens <= WHOLE_TREE else UPPER_LEAVES)
    heights = np.concatenate([np.zeros(num_tokens), tree.merges[:, 2]])
    place = {leaf: float(index) for index, leaf in enumerate(upper.leaves)}
    lines, colours = [], []
    for node in sorted(upper.opened):  # children before parents
        left, right = sorted(tree.merges[node - num_tokens, :2].astype(int).tolist(), key=place.__getitem__)
        top = heights[node]
        lines.append(
            [(place[left], heights[left]), (place[left], top), (place[right], top), (place[right], heights[right])]
        )
        colours.append(ABOVE if node - num_tokens >= num_tokens - num_clusters else BELOW)
        place[node] = (place[left] + place[right]) / 2
    wedges = [
        [(place[leaf] - 0.4, 0), (place[leaf], heights[leaf]), (place[leaf] + 0.4, 0)]
        for leaf in upper.leaves
        if leaf >= num_tokens
    ]
    axis.add_collection(PolyCollection(wedges, facecolors=WEDGE, edgecolors="none"))
    width = 0.4 if len(upper.leaves) > UPPER_LEAVES else 0.8
    axis.add_collection(LineCollection(lines, colors=colours, linewidths=width))
    at, top = cut_height(tree, num_clusters), max(float(heights.max()), 1e-12)
    axis.axhline(at, color=CUT, linewidth=1.2)
    axis.annotate(
        f" cut:\n K = {num_clusters:,}", (1, at), xycoords=("axes fraction", "data"), va="center", color=CUT, fontsize=9
    )
    axis.set_xlim(-1, len(upper.leaves))
    axis.set_ylim(0, 1.05 * top)
    axis.set_xticks([])
    axis.set_title(_title(tree, upper), loc="left", fontsize=10)
    axis.grid(visible=False, axis="x")


def _title(tree: Tree, upper: UpperTree) -> str:
    if len(upper.leaves) == tree.num_tokens:
        return f"all {tree.num_tokens:,} tokens"
    if len(upper.roots) < upper.num_roots:
        return f"the largest {len(upper.roots)} of the {upper.num_roots:,} clusters in which the tree ends"
    return f"the upper {len(upper.leaves):,} clusters of {tree.num_tokens:,} tokens; a wedge holds all below it"


def _draw_heights(axis: Axes, tree: Tree, num_clusters: int) -> None:
    heights = tree.merges[:, 2]
    left = np.arange(tree.num_tokens - 1, tree.num_tokens - 1 - len(heights), -1)
    axis.plot(left, heights, color=BELOW, linewidth=1.6)
    axis.axvline(num_clusters, color=CUT, linewidth=1.2)
    axis.set_xscale("log")
    positive = heights[heights > 0]
    if len(positive) and positive.max() > 100 * positive.min():
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=0)
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.set_xlabel("clusters left")
    axis.set_title("merge height", loc="left", fontsize=10)


def palette(names: list[str]) -> dict[str, str]:
    """A fixed colour for each clustering, in the order given."""
    return {name: COLOURS[1 + index % (len(COLOURS) - 1)] for index, name in enumerate(names)}


def by_sizes(partitions: dict[str, Partition]) -> dict[str, Partition]:
    """Partitions with the same cluster sizes (MASC and its random permutation) under one joint name."""
    names: dict[bytes, list[str]] = {}
    for name, partition in partitions.items():
        names.setdefault(np.sort(partition.sizes).tobytes(), []).append(name)
    return {", ".join(group): partitions[group[0]] for group in names.values()}


def cluster_sizes(partitions: dict[str, Partition]) -> str:
    """A figure of the cluster sizes, largest first, one step line for each partition."""
    colours = palette(list(partitions))
    with mpl.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(5.2, 3.2))
        for label, partition in by_sizes(partitions).items():
            sizes = np.sort(partition.sizes)[::-1]
            colour = colours[label.partition(", ")[0]]
            axis.plot(np.arange(1, len(sizes) + 1), sizes, color=colour, label=label, linewidth=1.8)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.yaxis.set_major_formatter("{x:,.0f}")
        axis.set_xlabel("clusters, largest first")
        axis.set_ylabel("tokens in the cluster")
        axis.legend(frameon=False)
        return svg(figure)


def size_histogram(partitions: dict[str, Partition]) -> str:
    """A figure of the share of tokens in clusters of 1, 2, 3-4, 5-8, ... tokens, one bar for each partition."""
    colours, shown = palette(list(partitions)), by_sizes(partitions)
    last = max(size_bin(partition.sizes).max() for partition in shown.values())
    with mpl.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(5.2, 3.2))
        width = 0.8 / len(shown)
        for index, (label, partition) in enumerate(shown.items()):
            shares = np.bincount(size_bin(partition.sizes), weights=partition.sizes, minlength=last + 1)
            place = np.arange(last + 1) + (index - (len(shown) - 1) / 2) * width
            colour = colours[label.partition(", ")[0]]
            axis.bar(place, shares / partition.num_tokens, width * 0.92, color=colour, label=label)
        names = ["1", "2", *[f"{2 ** (n - 1) + 1}–{2**n}" for n in range(2, last + 1)]]
        crowded = last > 7
        axis.set_xticks(np.arange(last + 1), names, rotation=45 if crowded else 0, ha="right" if crowded else "center")
        axis.set_xlabel("tokens in the cluster")
        axis.set_ylabel("share of all tokens")
        axis.set_axisbelow(True)
        axis.grid(visible=False, axis="x")
        axis.legend(frameon=False)
        return svg(figure)


def size_bin(sizes: np.ndarray) -> np.ndarray:
    """The bin of each size: 0 for 1, 1 for 2, 2 for 3-4, 3 for 5-8, and so on."""
    return np.ceil(np.log2(sizes)).astype(np.int64)


def coherence(rows: list[dict[str, Any]], everything: dict[str, Any], measures: dict[str, str], at: int) -> str:
    """A figure of each measure (key -> name) over K, one line a clustering; dashed: one cluster of all tokens."""
    names = list(dict.fromkeys(row["clustering"] for row in rows))
    colours = palette(names)
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(measures), figsize=(10.5, 3.5))
        for axis, (measure, label) in zip(axes, measures.items(), strict=True):
            for name in names:
                found = [row for row in rows if row["clustering"] == name and row[measure] is not None]
                axis.plot(
                    [row["K"] for row in found],
                    [row[measure] for row in found],
                    color=colours[name],
                    label=name,
                    linewidth=1.8,
                    marker="o",
                    markersize=4.5,
                )
            if everything[measure] is not None:
                axis.axhline(everything[measure], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
            axis.axvline(at, color=CUT, linewidth=0.8, alpha=0.5)
            axis.set_xscale("log", base=2)
            ticks = sorted({row["K"] for row in rows})
            axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=9, rotation=45 if ticks[-1] > 999 else 0)
            axis.set_xlabel("K")
            axis.set_title(plain_text(label), loc="left", fontsize=10)
        axes[0].set_ylim(bottom=0)
        axes[0].legend(frameon=False, fontsize=9)
        return svg(figure)
