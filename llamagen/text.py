"""Text features of captions: FLAN-T5-XL's encoder, run once and kept (`make text-features`).

Follows LlamaGen at ce98ec4 (language/t5.py, language/extract_t5_feature.py, dataset/t2i.py, and the left padding of
autoregressive/sample/sample_t2i.py): captions cleaned twice, cut at 120 tokens, padded on the right for the encoder in
bfloat16; the generator gets them padded on the left with zeros. It keeps one float32 file a caption; here all are in
one memory-mapped file of bfloat16, half the size and just as exact, for that is what the encoder computes in."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from tqdm import tqdm

from llamagen.captions import Captions, clean_caption
from masc.artifacts import InputError, hash_file, recover, replacing, write_json

logger = logging.getLogger(__name__)
FORMAT, VERSION = "masc-text-features", 1
MAX_TOKENS = 120  # LlamaGen's cls_token_num for text
SHARD = 1024  # captions: what an interruption loses at most
MAKE = "make text-features CAPTIONS=..."

# Shapes: M captions, B of a batch, C the encoder's width (2048), S the lengths of all captions together.


def encoder_sha256(directory: Path) -> str:
    """SHA-256 over the encoder's configuration, tokenizer and weights: names and contents of the files that load.

    Raises InputError if the directory holds no encoder."""
    directory = Path(directory)
    files = [path for path in sorted(directory.glob("*")) if path.suffix in (".json", ".model", ".safetensors", ".bin")]
    if not (directory / "config.json").exists() or len(files) < 2:
        raise InputError(
            f"no text encoder at {directory}: expected config.json, a tokenizer and weights as on the Hugging Face hub; "
            "fetch LlamaGen's with `make weights NAME=flan-t5-xl`"
        )
    return hashlib.sha256("".join(f"{path.name} {hash_file(path)}\n" for path in files).encode()).hexdigest()


def extract_text_features(
    captions: Captions,
    encoder: Path,
    path: Path,
    batch_size: int = 32,
    dtype: str = "bfloat16",
    accelerator: Accelerator | None = None,
) -> None:
    """Write the directory of features of `captions` by the encoder stored at `encoder`, unless it is there.

    Shards of 1024 captions, shared out among the processes, are kept until all are done, so the same command goes on
    where it was interrupted. Every batch has the same shape, so the result depends neither on the number of processes
    nor on interruptions; another batch size may round otherwise. Raises InputError if `path` holds other features."""
    path, accelerator = Path(path), accelerator or Accelerator()
    config = {
        "encoder": Path(encoder).name,
        "encoder_sha256": _from_main(accelerator, lambda: encoder_sha256(encoder)),
        "max_tokens": MAX_TOKENS,
        "dtype": dtype,
        "batch_size": batch_size,
        "captions_sha256": hashlib.sha256(json.dumps(asdict(captions)).encode()).hexdigest(),
    }
    if _from_main(accelerator, lambda: _is_done(path, config)):
        return
    # The hash in the name: shards of other captions, or of another encoder, are never taken up.
    key = hashlib.sha256(json.dumps(config).encode()).hexdigest()[:12]
    shards = path.with_name(f".{path.name}.{key}.shards")
    starts = range(0, len(captions), SHARD)
    todo = [start for start in starts[accelerator.process_index :: accelerator.num_processes]]
    todo = [start for start in todo if not _shard(shards, start).exists()]
    if todo:
        tokenizer, model = _load_encoder(encoder, dtype)
        model.to(accelerator.device)
        for start in tqdm(todo, desc="text features", unit="shard", disable=not accelerator.is_main_process or None):
            texts = captions.texts[start : start + SHARD]
            _save_shard(_shard(shards, start), _encode(texts, tokenizer, model, batch_size))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _join([_shard(shards, start) for start in starts], captions, config, path)
        shutil.rmtree(shards)
    accelerator.wait_for_everyone()
