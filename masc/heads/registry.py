"""All heads by kind, and the one way to build one."""

import numpy as np

from masc.heads.adaptive import AdaptiveHead
from masc.heads.base import Head
from masc.heads.bits import BitsHead
from masc.heads.config import HeadConfig
from masc.heads.flat import FlatHead
from masc.heads.masc import MascHead, MascTwoLevelHead
from masc.heads.shared import TreeSharedHead
from masc.heads.stages import CtfHead, MascRefineHead
from masc.heads.subtoken import SubtokenHead
from masc.heads.tree import MascTreeHead
from masc.tree import Clustering

HEADS: dict[str, type[Head]] = {  # by kind, as their configs in masc.heads.config.CONFIGS
    "flat": FlatHead,
    "masc": MascHead,
    "masc-two-level": MascTwoLevelHead,
    "masc-tree": MascTreeHead,
    "masc-refine": MascRefineHead,
    "tree-shared": TreeSharedHead,
    "subtoken": SubtokenHead,
    "bits": BitsHead,
    "ctf": CtfHead,
    "adaptive": AdaptiveHead,
}


def build_head(
    config: HeadConfig,
    dim: int,
    num_tokens: int,
    tree: Clustering | None,
    counts: np.ndarray | None = None,
) -> Head:
    """The head of a config over N tokens; `tree` is the whole tree, and None for a head that reads none.

    `counts` (N,) is how often each token occurs in training, for a head that reads it. Raises InputError for a cut that
    the tree does not have, ValueError for a tree or counts of other tokens."""
    if config.uses_tree and (tree is None or tree.num_tokens != num_tokens):
        found = "none" if tree is None else f"one of {tree.num_tokens}"
        raise ValueError(f"the head {config.name} needs a tree of {num_tokens} tokens, found {found}")
    if config.uses_counts and (counts is None or len(counts) != num_tokens):
        found = "none" if counts is None else f"those of {len(counts)}"
        raise ValueError(f"the head {config.name} needs the counts of {num_tokens} tokens, found {found}")
    return HEADS[config.kind].build(config, dim, num_tokens, tree, counts)
