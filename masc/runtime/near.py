"""Near codes: for each token the codes nearest to the encoder's output before quantization, with squared distances.

The distances are those that the quantizer compares, between unit vectors if it normalises. Soft targets are made of
them (RQ-Transformer, arXiv 2203.01941; SNCE, arXiv 2603.15150). The files near.npy and near_distances.npy lie beside
codes.npy if near codes were asked for. They take 4 m bytes for a token of a codebook of at most 65,536, 32 for m = 8.

Shapes: B images, V views, T positions, m near codes of a token, ascending by distance, the token first."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from masc.runtime.errors import InputError
from masc.runtime.npy import NpyWriter
from masc.runtime.reading import Damaged, open_array

NEAR, DISTANCES = "near.npy", "near_distances.npy"


class NearCodes(NamedTuple):
    """Near codes of the tokens of some images."""

    ids: np.ndarray  # (B, V, T, m), of the type of the codes
    distances: np.ndarray  # (B, V, T, m) float16, squared


@dataclass(frozen=True)
class NearMeta:
    """What meta.json says of the near codes."""

    count: int  # m
    ids: list[str]  # SHA-256 of the bytes of each shard of near.npy; the shards are those of codes.npy
    distances: list[str]  # of near_distances.npy

    @property
    def sha256(self) -> str:
        """A hash of all near codes and distances."""
        return hashlib.sha256("".join([*self.ids, *self.distances]).encode()).hexdigest()


def pack_distances(distances: np.ndarray) -> np.ndarray:
    """Squared distances as float16, which has 3 to 4 digits; InputError if one is too large for it or no number."""
    largest = np.finfo(np.float16).max
    if distances.size and not distances.max() <= largest:
        raise InputError(
            f"a squared distance between a latent and its near codes is {distances.max()}, more than the {largest:.0f} "
            "that near_distances.npy holds; make the codes with near=0"
        )
    return distances.astype(np.float16)


def write_near(folder: Path, shards: Iterable[NearCodes], num_images: int) -> dict[str, Any]:
    """Write the near codes of `num_images` images, in the shards of the tokens, and return what meta.json says."""
    meta = {"count": 0, "ids": [], "distances": []}
    with (folder / NEAR).open("wb") as near_file, (folder / DISTANCES).open("wb") as distances_file:
        ids = NpyWriter(near_file, num_images, NEAR)
        distances = NpyWriter(distances_file, num_images, DISTANCES)
        for shard in shards:
            ids.append(shard.ids)
            distances.append(shard.distances)
            meta["ids"].append(_sha256(shard.ids))
            meta["distances"].append(_sha256(shard.distances))
        distances.finish()
        meta["count"] = ids.finish()[-1]
    return meta


def open_near(folder: Path, meta: NearMeta, tokens: np.ndarray) -> NearCodes:
    """The memory-mapped near codes of `tokens` (M, V, T); `Damaged` unless they have their shape and type."""
    if meta.count < 1:
        raise Damaged(f"{folder}/meta.json names {meta.count} near codes of a token, expected 1 or more")
    shape = (*tokens.shape, meta.count)
    found = NearCodes(
        open_array(folder / NEAR, "u", shape, mapped=True), open_array(folder / DISTANCES, "f", shape, mapped=True)
    )
    for name, array, expected in ((NEAR, found.ids, tokens.dtype), (DISTANCES, found.distances, np.dtype(np.float16))):
        if array.dtype != expected:
            raise Damaged(f"expected {expected} in {folder / name}, found {array.dtype}")
    return found


def verify_near(near: NearCodes, meta: NearMeta, number: int, tokens: np.ndarray, num_tokens: int, where: str) -> None:
    """Compare a shard with its checksums and with its tokens (B, V, T); `Damaged` if it differs.

    `where` names the directory and the images in messages."""
    for name, array, hashes in ((NEAR, near.ids, meta.ids), (DISTANCES, near.distances, meta.distances)):
        if hashes[number : number + 1] != [_sha256(array)]:
            raise Damaged(f"shard {number} of {name} in {where} does not match its checksum")
    if near.ids.size and int(near.ids.max()) >= num_tokens:
        raise Damaged(
            f"shard {number} of {NEAR} in {where} holds the code {near.ids.max()}, outside the codebook of {num_tokens}"
        )
    if not np.array_equal(near.ids[..., 0], tokens):
        raise Damaged(f"shard {number} of {NEAR} in {where} does not begin with the tokens of codes.npy")


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
