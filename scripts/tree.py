"""Build the tree over a codebook (`make tree`)."""

from dataclasses import dataclass
from pathlib import Path

from stage import run_stage

from masc.build import TreeConfig, make_tree
from masc.heads import HeadConfig
from masc.layout import Layout
from masc.tree import Tree


@dataclass(kw_only=True)
class TreeStage:
    tree: TreeConfig
    head: HeadConfig  # its number of clusters is what a k-means partition needs
    tokenizer_name: str = "emoji32"
    artifacts: str = "artifacts"


def main(stage: TreeStage) -> None:
    """Write artifacts/<tokenizer>/trees/<tree>.npz, uncut where the method makes a tree."""
    layout = Layout(Path(stage.artifacts), stage.tokenizer_name)
    codebook = layout.load_codebook()
    num_clusters = stage.head.clusters(codebook.num_tokens)
    path = layout.tree(stage.tree, num_clusters)
    made = make_tree(stage.tree, codebook, num_clusters, path)
    partition = made.cut(num_clusters) if isinstance(made, Tree) else made
    sizes = partition.sizes
    print(
        f"{path}: {made.num_tokens} tokens; at K = {num_clusters} the largest cluster has {sizes.max()} tokens "
        f"and {(sizes == 1).mean():.0%} have one"
    )


if __name__ == "__main__":
    run_stage("tree", TreeStage, main)
