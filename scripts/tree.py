"""Build the tree over a codebook (`make tree`)."""

from dataclasses import dataclass
from pathlib import Path

from stage import run_stage

from masc.build import TreeConfig
from masc.heads.config import MascConfig
from masc.layout import Layout
from masc.runtime.errors import InputError
from masc.summary import summarise_tree, usual_ks
from masc.tree import Tree


@dataclass(kw_only=True)
class TreeStage:
    tree: TreeConfig
    head: MascConfig  # its last cut is the K of a partition
    tokenizer_name: str = "emoji32"
    artifacts: str = "artifacts"


def main(stage: TreeStage) -> None:
    """Write artifacts/<tokenizer>/trees/<tree>.npz, uncut where the method makes a tree, and describe it."""
    layout = Layout(Path(stage.artifacts), stage.tokenizer_name)
    codebook = layout.load_codebook()
    (num_clusters,) = stage.head.cuts(codebook.num_tokens)
    if stage.head.num_clusters is not None and 0 < num_clusters < stage.tree.coarsest:
        raise InputError(f"K={num_clusters} is coarser than tree.coarsest={stage.tree.coarsest}; lower the latter")
    made, meta = layout.make_tree(stage.tree, num_clusters, codebook)
    print(layout.tree(stage.tree, num_clusters))
    if isinstance(made, Tree) and made.coarsest < stage.tree.coarsest:
        print(f"kept, because it reaches {made.coarsest} cluster(s) and so holds what tree.coarsest asks for")
    ks = usual_ks(made, num_clusters)
    print("\n".join(summarise_tree(codebook.vectors, made, meta.about, layout.dead_tokens(codebook), ks)))


if __name__ == "__main__":
    run_stage("tree", TreeStage, main)
