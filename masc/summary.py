"""Numbers that describe a clustering of a codebook, and the summary that `make tree` prints."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from masc.coherence import residual_variance
from masc.linkage import count_equal_heights
from masc.tree import Partition, Tree


def describe(vectors: np.ndarray, partition: Partition) -> dict[str, float]:
    """Size and quality of one partition of the vectors (N, d)."""
    sizes = partition.sizes
    return {
        "K": partition.num_clusters,
        "largest": int(sizes.max()),
        "singletons": float((sizes == 1).mean()),  # share of the clusters
        "residual_variance": residual_variance(vectors, partition),
    }


def usual_ks(made: Tree | Partition, asked: int) -> list[int]:
    """The K to describe: `asked`, N / 2, N / 4 and N / 8, if the clustering has them."""
    if isinstance(made, Partition):
        return [made.num_clusters]
    wanted = {asked, *(made.num_tokens // share for share in (2, 4, 8))}
    return sorted((k for k in wanted if k >= made.coarsest), reverse=True)


def _ties(tree: Tree, tied_merges: int | None) -> str:
    """A text about ties, because a cut between two equal heights is one of several valid cuts."""
    equal = count_equal_heights(tree.merges)
    words = f"heights above 0 equal to the one before: {equal}" if equal else "no two heights above 0 are equal"
    return words + (f", {tied_merges} merges had several equally near partners" if tied_merges else "")


def summarise_tree(
    vectors: np.ndarray,
    made: Tree | Partition,
    about: dict[str, Any],
    dead: dict[str, np.ndarray],
    ks: Sequence[int],
) -> list[str]:
    """Lines of text: the codebook, how the tree was made, and its partitions at each K."""
    num_tokens, dims = vectors.shape
    duplicates = num_tokens - len(np.unique(vectors + np.float32(0), axis=0))
    never_used = ", ".join(f"{len(tokens)} of {num_tokens} never used by {data}" for data, tokens in dead.items())
    cost = f"{about.get('seconds')} s, peak memory of the process {about.get('peak_mib')} MiB"
    lines = [
        f"codebook   N = {num_tokens}, d = {dims}; {duplicates} duplicate rows; {never_used or 'dead codes unknown'}",
        f"engine     {about.get('engine')}{': ' + about['why'] if about.get('why') else ''}",
        f"made       {about.get('at')} in {cost}",
    ]
    if isinstance(made, Tree):
        ends = "the root" if made.coarsest == 1 else f"{made.coarsest} clusters"
        lines.append(f"tree       {len(made.merges)} merges, down to {ends}; {_ties(made, about.get('tied_merges'))}")
        partitions = made.cuts(ks)[::-1]
    else:
        partitions = [made]
    lines += ["", f"{'K':>9} {'largest':>9} {'singletons':>11} {'residual variance':>18}"]
    for partition in partitions:
        row = describe(vectors, partition)
        lines.append(f"{row['K']:9d} {row['largest']:9d} {row['singletons']:11.1%} {row['residual_variance']:18.4f}")
    return lines
