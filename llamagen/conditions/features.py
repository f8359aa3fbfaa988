"""Text features of captions: the output of a text encoder, computed once and kept (`make text-features`).

Follows LlamaGen at ce98ec4 (language/extract_t5_feature.py, dataset/t2i.py, and the left padding of
autoregressive/sample/sample_t2i.py): captions are cleaned twice and cut at the encoder's number of tokens; the
generator gets them padded on the left with zeros. LlamaGen keeps one float32 file a caption. Here one memory-mapped
file of bfloat16 holds all: half the size, and exact unless dtype=float32, whose output is rounded to bfloat16."""

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from llamagen.conditions.captions import Captions, clean_caption, warn_of_empty
from llamagen.conditions.encoders import DTYPES, TextEncoder
from masc.runtime.captions import CAPTIONS_AT_MOST
from masc.runtime.device import from_main, patient_accelerator
from masc.runtime.errors import InputError, MissingArtifact, removal
from masc.runtime.files import hash_file, recover, replacing, write_json
from masc.runtime.marks import forget, is_verified, remember, state_of
from masc.runtime.npy import check_length, save_npy, write_npy
from masc.runtime.reading import Damaged, check_array, damaged_is_missing, open_array, read_json, read_npz
from masc.runtime.run import locked

logger = logging.getLogger(__name__)
FORMAT, VERSION = "masc-text-features", 1
FILES = ("features.npy", "offsets.npy", "captions.json")
LONGEST = 8192  # tokens of a caption that an encoder may keep
SHARD = 1024  # captions; an interruption loses at most one shard a process

# Shapes: M captions, B of a batch, P the encoder's most tokens of a caption, C its width, S the lengths of all captions
# together.


def extract_text_features(
    captions: Captions,
    encoder: TextEncoder,
    path: Path,
    batch_size: int = 32,
    dtype: str = "bfloat16",
    accelerator: Accelerator | None = None,
) -> None:
    """Write the features of `captions` by `encoder` to the directory `path`, unless they are there.

    Processes share the captions in shards of 1024, and finished shards are kept: after an interruption the same command
    continues. All batches have the same shape, so neither the number of processes nor an interruption changes the
    result; another batch size may round differently. Raises InputError if `path` holds other features, or if another
    command makes these."""
    path, accelerator = Path(path), accelerator or patient_accelerator()
    if dtype not in DTYPES or batch_size < 1:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)} and batch_size at least 1: {dtype!r}, {batch_size}")
    config = {
        "encoder": encoder.name,
        "encoder_sha256": from_main(encoder.sha256),
        "max_tokens": encoder.max_tokens,
        "dtype": dtype,
        "batch_size": batch_size,
        "captions_sha256": hashlib.sha256(json.dumps(asdict(captions)).encode()).hexdigest(),
    }
    if from_main(lambda: _is_done(path, config)):
        return
    if accelerator.is_main_process:
        warn_of_empty(captions)
    # The name holds a hash, so that shards of other captions or of another encoder are never used.
    key = hashlib.sha256(json.dumps(config).encode()).hexdigest()[:12]
    shards = path.with_name(f".{path.name}.{key}.shards")
    starts = range(0, len(captions), SHARD)
    mine = starts[accelerator.process_index :: accelerator.num_processes]
    with contextlib.ExitStack() as held:
        from_main(lambda: held.enter_context(locked(shards)))
        todo = [start for start in mine if not _shard(shards, start).exists()]
        if todo:
            encode = encoder.load(dtype, accelerator.device)
            quiet = None if accelerator.is_main_process else True
            for start in tqdm(todo, desc="text features", unit="shard", disable=quiet):
                texts = [clean_caption(text) for text in captions.texts[start : start + SHARD]]
                _save_shard(_shard(shards, start), encode(texts, batch_size))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _join([_shard(shards, start) for start in starts], captions, config, path)
            shutil.rmtree(shards, ignore_errors=True)  # a network disk may keep the open file of the lock
        accelerator.wait_for_everyone()


def _is_done(path: Path, config: dict[str, Any]) -> bool:
    """Whether `path` holds these features already; InputError if it holds others."""
    if not recover(path).exists():
        return False
    there = TextFeatures.load(path, verify=True).config
    # The batch size changes only the rounding, the name of the encoder's directory nothing.
    decisive = config.keys() - {"batch_size", "encoder"}
    differing = [key for key in sorted(decisive) if there.get(key) != config[key]]
    if differing:
        listed = ", ".join(f"{key} {there.get(key)} there, {config[key]} now" for key in differing)
        raise InputError(f"{path} holds other text features: {listed}; choose another out=..., or `{removal(path)}`")
    return True


def _shard(shards: Path, start: int) -> Path:
    return shards / f"{start:09d}.npz"


def _save_shard(path: Path, encoded: Iterator[np.ndarray]) -> None:
    rows = list(encoded)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, features=np.concatenate(rows), lengths=np.array([len(row) for row in rows], np.int64))


def _join(shards: list[Path], captions: Captions, config: dict[str, Any], path: Path) -> None:
    """Write all shards to the directory `path`, whole or not at all."""
    lengths = np.concatenate([_read_shard(shard, "lengths") for shard in shards])
    most = config["max_tokens"]
    cut = int((lengths == most).sum())
    if cut:
        logger.warning("%d of %d captions have %d tokens or more; the rest is cut", cut, len(lengths), most)
    width = _read_shard(shards[0], "features").shape[1]
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int64)
    with replacing(path) as temporary:
        temporary.mkdir()
        # Not a memory map: on a full disk, a write to one ends the process.
        with (temporary / "features.npy").open("wb") as file:
            write_npy(file, (_read_shard(shard, "features") for shard in shards), int(offsets[-1]), str(path))
        save_npy(temporary / "offsets.npy", offsets)
        write_json(temporary / "captions.json", asdict(captions))
        meta = {
            "format": FORMAT,
            "version": VERSION,
            "shape": [int(offsets[-1]), width],
            "config": config,
            "sha256": {name: hash_file(temporary / name) for name in FILES},
        }
        write_json(temporary / "meta.json", meta)


def _read_shard(path: Path, name: str) -> np.ndarray:
    """An array of a shard; a shard that is damaged is removed, so that the same command makes it again."""
    kinds, shape = {"features": ("u", (None, None)), "lengths": ("i", (None,))}[name]
    try:
        found = read_npz(path, [name], at_most=0)
        if name not in found:
            raise Damaged(f"{path} has no {name}")
        return check_array(path, found[name], kinds, shape)
    except Damaged as error:
        path.unlink(missing_ok=True)
        raise InputError(f"{error}; the shard was removed, and the same command makes it again") from error


@dataclass(frozen=True)
class _Meta:
    """meta.json of text features."""

    format: str
    version: int
    shape: tuple[int, int]  # S, C
    config: dict[str, Any]
    sha256: dict[str, str]  # of FILES


@dataclass(frozen=True, eq=False)
class TextFeatures:
    """The features of M captions, memory-mapped."""

    bits: np.ndarray  # (S, C) uint16: the bit patterns of bfloat16
    offsets: np.ndarray  # (M + 1,) int64: caption m has rows offsets[m] to offsets[m + 1]
    captions: list[str]
    images: list[str] | None  # name of the image of each caption, if the file has names
    config: dict[str, Any]
    sha256: str  # of the features

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def dim(self) -> int:
        return self.bits.shape[1]

    @property
    def max_tokens(self) -> int:
        """Positions of a caption in a batch."""
        return self.config["max_tokens"]

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Captions in the generator's form: features (B, P, C) float32, zeros first, and mask (B, P) bool.

        Raises InputError if the file was shortened since it was opened."""
        check_length(self.bits)
        features = np.zeros((len(indices), self.max_tokens, self.dim), np.float32)
        mask = np.zeros((len(indices), self.max_tokens), bool)
        for row, index in enumerate(indices):
            if not 0 <= index < len(self):
                raise IndexError(f"caption {index} of {len(self)}")
            bits = self.bits[self.offsets[index] : self.offsets[index + 1]]
            # bfloat16 is the upper half of float32.
            features[row, self.max_tokens - len(bits) :] = (bits.astype(np.uint32) << 16).view(np.float32)
            mask[row, self.max_tokens - len(bits) :] = True
        return torch.from_numpy(features), torch.from_numpy(mask)

    @staticmethod
    def load(path: Path, verify: bool = False) -> "TextFeatures":
        """The features in a directory.

        The memory-mapped file is checked against its shape, and against its SHA-256 unless that was done since it was
        written; with `verify` again. Raises MissingArtifact if the features are missing, truncated, altered or of
        another version."""
        path = recover(path)
        if not (path / "meta.json").exists():
            raise MissingArtifact("text features", path)
        with damaged_is_missing("text features", path, remove=True):
            meta = read_json(path / "meta.json", _Meta)
            if (meta.format, meta.version) != (FORMAT, VERSION):
                raise Damaged(
                    f"expected {FORMAT} version {VERSION}, found {meta.format!r} version {meta.version} in "
                    f"{path}/meta.json"
                )
            most = meta.config.get("max_tokens")
            if not isinstance(meta.config.get("encoder"), str) or type(most) is not int or not 1 <= most <= LONGEST:
                raise Damaged(
                    f"{path}/meta.json does not name the encoder and its most tokens of a caption, at most {LONGEST}"
                )
            bits = open_array(path / "features.npy", "u", meta.shape, mapped=True)
            offsets = open_array(path / "offsets.npy", "i", (None,))
            captions = read_json(path / "captions.json", Captions, at_most=CAPTIONS_AT_MOST)
            state, reads_all = state_of(path, FILES[0]), verify or not is_verified(path, FILES[0])
            for name in FILES if reads_all else FILES[1:]:
                if hash_file(path / name) != meta.sha256.get(name):
                    forget(path)
                    raise Damaged(f"{path / name} does not match the SHA-256 in meta.json")
            if reads_all:
                remember(path, state)
            _check_offsets(offsets, bits, captions, most, path)
        return TextFeatures(
            bits, offsets, captions.texts, captions.images, meta.config, meta.sha256.get("features.npy", "")
        )


def _check_offsets(offsets: np.ndarray, bits: np.ndarray, captions: Captions, most: int, path: Path) -> None:
    """Raise `Damaged` unless every caption has its own rows of `bits`, in order, `most` of them or fewer."""
    lengths = np.diff(offsets)
    fits = len(lengths) == len(captions) == len(captions.images or captions.texts) and bits.dtype == np.uint16
    if not fits or offsets[0] != 0 or offsets[-1] != len(bits) or not ((lengths >= 0) & (lengths <= most)).all():
        raise Damaged(
            f"{path}/features.npy has {len(bits)} rows of {bits.dtype} for {len(captions)} captions; offsets.npy, with "
            f"{len(offsets)} values up to {offsets.max(initial=0)}, does not give each caption rows of its own"
        )
