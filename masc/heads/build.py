"""Which head a config and a partition make."""

import numpy as np

from masc.heads.base import Head
from masc.heads.config import HeadConfig
from masc.heads.flat import FlatHead
from masc.heads.masc import PathHead
from masc.tree import Partition


def build_head(config: HeadConfig, dim: int, num_tokens: int, partition: Partition | None) -> Head:
    """The head of a config over N tokens; all but `flat` need a partition of them."""
    if config.kind == "flat":
        return FlatHead(dim, num_tokens)
    if partition is None or partition.num_tokens != num_tokens:
        found = "none" if partition is None else f"one of {partition.num_tokens}"
        raise ValueError(f"the head {config.name} needs a partition of {num_tokens} tokens, found {found}")
    if config.kind == "masc":
        return PathHead(dim, [partition], uniform_member=True)
    return PathHead(dim, [partition, Partition(np.arange(num_tokens))], uniform_member=False)
