"""MASC: a tree over a VQ codebook, and heads that predict a token along it (arXiv 2510.04220).

`import masc` needs NumPy and SciPy only; the heads, which need torch, are in `masc.heads`."""

from masc.runtime.artifacts import Codebook
from masc.runtime.errors import InputError
from masc.tree import Partition, Tree, load_partition

__all__ = ["Codebook", "InputError", "Partition", "Tree", "load_partition"]
