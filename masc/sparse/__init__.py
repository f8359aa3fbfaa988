"""Average linkage without the N x N matrix: exact, certified, in memory linear in N.

`engine` runs it; `bounds` holds what makes it exact, `kdtree` and `lists` the two searches, `clusters` what is kept of
each cluster, `finish` the dense top of the tree."""

import hashlib
from pathlib import Path

from numba import config

# Numba keeps compiled functions by the file they stand in, and would go on with one that has an old copy of a function
# from another file compiled into it. So what is compiled here is kept by the contents of all these files together.
_SOURCES = Path(__file__).parent
_DIGEST = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(_SOURCES.glob("*.py")))).hexdigest()
_BEFORE = config.CACHE_DIR
config.CACHE_DIR = _BEFORE or str(_SOURCES / "__pycache__" / f"numba-{_DIGEST[:12]}")
try:
    from masc.sparse.engine import SparseLinkage, sparse_linkage
finally:
    config.CACHE_DIR = _BEFORE

__all__ = ["SparseLinkage", "sparse_linkage"]
