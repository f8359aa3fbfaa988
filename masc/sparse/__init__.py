"""Exact average linkage without the N x N matrix, in memory linear in N.

`engine` runs the rounds. `bounds` holds the distance and its bounds, `kdtree` and `lists` are the two searches,
`clusters` holds the arrays of the live clusters, and `finish` builds the dense top of the tree."""

import hashlib
from pathlib import Path

from numba import config

# Numba caches a compiled function by its own file only. It would reuse a function that contains an old version of a
# function from another file. So the cache here depends on the contents of all these files together.
_SOURCES = Path(__file__).parent
_DIGEST = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(_SOURCES.glob("*.py")))).hexdigest()
_BEFORE = config.CACHE_DIR
config.CACHE_DIR = _BEFORE or str(_SOURCES / "__pycache__" / f"numba-{_DIGEST[:12]}")
try:
    from masc.sparse.engine import SparseLinkage, sparse_linkage
finally:
    config.CACHE_DIR = _BEFORE

__all__ = ["SparseLinkage", "sparse_linkage"]
