"""The tokens of packed codes against their checksums: read once, and the result remembered beside the codes."""

import contextlib
import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from masc.runtime.codes import CodesMeta, damaged_codes, mark_of, open_tokens, read_meta
from masc.runtime.errors import InputError
from masc.runtime.files import hash_file, write_json
from masc.runtime.reading import Damaged, read_json

logger = logging.getLogger(__name__)


def verify_codes(path: Path) -> int:
    """Read all tokens, compare each shard with its checksum, and return the number of shards.

    Raises MissingArtifact with the number and the images of the first shard that differs or holds a token outside of
    the codebook. The result is remembered for `verify_once`."""
    path = Path(path)
    meta = read_meta(path)
    with damaged_codes(path, meta):
        _verify(path, meta, open_tokens(path, meta))
    return len(meta.shards)


def verify_once(path: Path) -> None:
    """Verify the codes as `verify_codes`, unless that was done since codes.npy and meta.json were written."""
    try:
        is_verified = read_json(mark_of(Path(path))) == _state(Path(path))
    except (Damaged, OSError):  # not verified yet, or not readable, which is then said
        is_verified = False
    if not is_verified:
        verify_codes(path)


def _verify(path: Path, meta: CodesMeta, tokens: np.ndarray) -> None:
    """Compare the shards with their checksums and remember the result; `Damaged` for the first that differs."""
    state = _state(path)
    with contextlib.suppress(OSError):
        mark_of(path).unlink(missing_ok=True)
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
        start += shard.images
    try:
        write_json(mark_of(path), state)
    except InputError as error:
        logger.info("the codes are verified each time they are opened, because that cannot be remembered: %s", error)


def _state(path: Path) -> dict[str, Any]:
    """What changes when codes.npy or meta.json change."""
    status = (path / "codes.npy").stat()
    return {
        "codes": [status.st_size, status.st_mtime_ns, status.st_ino],
        "meta_sha256": hash_file(path / "meta.json"),
    }
