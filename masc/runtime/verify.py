"""The tokens of packed codes against their checksums: read once, and the result remembered beside the codes."""

import hashlib
from pathlib import Path

import numpy as np
from tqdm import tqdm

from masc.runtime.codes import CODES, CodesMeta, damaged_codes, open_tokens, read_meta
from masc.runtime.marks import forget, is_verified, remember, state_of
from masc.runtime.near import DISTANCES, NEAR, NearCodes, open_near, verify_near
from masc.runtime.reading import Damaged


def verify_codes(path: Path) -> int:
    """Read all tokens and near codes, compare each shard with its checksum, and return the number of shards.

    Raises MissingArtifact with the number and the images of the first shard that differs or holds a token outside of
    the codebook. The result is remembered for `verify_once`."""
    path = Path(path)
    meta = read_meta(path)
    with damaged_codes(path, meta):
        _verify(path, meta, open_tokens(path, meta))
    return len(meta.shards)


def verify_once(path: Path) -> None:
    """Verify the codes as `verify_codes`, unless that was done since its files were written."""
    if not is_verified(Path(path), *_large_files(Path(path))):
        verify_codes(path)


def _large_files(path: Path) -> list[str]:
    """The names of the files that are read whole: near codes are there if they were asked for."""
    return [CODES, *(name for name in (NEAR, DISTANCES) if (path / name).exists())]


def _verify(path: Path, meta: CodesMeta, tokens: np.ndarray) -> None:
    """Compare the shards with their checksums and remember the result; `Damaged` for the first that differs."""
    state = state_of(path, *_large_files(path))
    forget(path)
    near = None if meta.near is None else open_near(path, meta.near, tokens)
    if [shard for shard in meta.shards if shard.images < 0] or sum(s.images for s in meta.shards) != len(tokens):
        raise Damaged(f"the shards in {path}/meta.json do not add up to the {len(tokens)} images of codes.npy")
    start = 0
    for number, shard in enumerate(tqdm(meta.shards, desc=f"verifying {path}", disable=None, leave=False, delay=1)):
        rows, where = tokens[start : start + shard.images], f"images {start} to {start + shard.images - 1}"
        if hashlib.sha256(np.ascontiguousarray(rows).data).hexdigest() != shard.sha256:
            raise Damaged(f"shard {number} of {path}/codes.npy ({where}) does not match its checksum")
        if rows.size and int(rows.max()) >= meta.num_tokens:
            raise Damaged(
                f"shard {number} of {path}/codes.npy ({where}) holds the token {rows.max()}, outside the codebook of "
                f"{meta.num_tokens}"
            )
        if near is not None:
            part = NearCodes(*(array[start : start + shard.images] for array in near))
            verify_near(part, meta.near, number, rows, meta.num_tokens, f"{path} ({where})")
        start += shard.images
    remember(path, state)
