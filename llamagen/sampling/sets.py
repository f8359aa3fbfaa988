"""Sample sets on disk: what they hold, how they were drawn, and of which labels."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from llamagen.runs import load_config_of
from llamagen.sampling.pictures import UNIT, decode_unit
from masc.runtime.artifacts import InputError, hash_arrays, hash_file
from metrics.streams import Pictures, open_samples
from vq.interface import Tokenizer, device_of
from vq.pretrained import load_decoder

logger = logging.getLogger(__name__)
SIXTEEN_PIXELS = ("vq16", "vq16-t2i")  # a token and side: the tokenizers of all released models


class TokenPictures(Pictures):
    """Pictures that are decoded from their tokens (M, T) when they are read: nothing of them is stored."""

    file_type = "tokens"
    is_sequential = True  # one decoder

    def __init__(self, tokens: np.ndarray, tokenizer: Tokenizer, resolution: int | None, name: str = "samples"):
        self.tokens, self.tokenizer, self.resolution, self.name = tokens, tokenizer, resolution, name

    def __len__(self) -> int:
        return len(self.tokens)

    def read(self, start: int, stop: int) -> np.ndarray:
        device, first = device_of(self.tokenizer), start // UNIT * UNIT
        units = [
            decode_unit(self.tokenizer, np.asarray(self.tokens[unit : unit + UNIT]), self.resolution, device)
            for unit in range(first, min(stop, len(self)), UNIT)
        ]
        return np.concatenate(units)[start - first : stop - first]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(f"{hash_arrays({'': np.asarray(self.tokens)})} {self.resolution}".encode()).hexdigest()


def manifest_at(directory: Path) -> dict[str, Any] | None:
    """What made a sample set; None if there is none."""
    file = directory / "manifest.json"
    return json.loads(file.read_text()) if file.exists() else None


def load_manifest(directory: Path) -> dict[str, Any]:
    """What made a sample set; InputError if it is missing."""
    manifest = manifest_at(directory)
    if manifest is None:
        raise InputError(
            f"no samples at {directory}; draw them with `make sample RUN={directory.parent.parent} "
            f'ARGS="name={directory.name}"`'
        )
    return manifest


def open_sample_set(directory: Path, tokenizer: Tokenizer | None = None) -> Pictures:
    """The pictures of a sample set. Those of a run that were kept as tokens are decoded by the run's own tokenizer
    unless another is given: that of a release."""
    settings = load_manifest(directory)["config"]
    if settings["form"] != "tokens":
        return open_samples(directory / ("images.npz" if settings["form"] == "npz" else "images"))
    if tokenizer is None:
        layout = load_config_of(directory.parent.parent).layout
        codebook = layout.load_codebook()
        check_tokenizer(directory, codebook.meta.parents["tokenizer"])
        tokenizer = load_decoder(codebook, layout.root)
    release = settings["release"] or {}
    tokens = np.load(directory / "tokens.npy", mmap_mode="r", allow_pickle=False)
    return TokenPictures(tokens, tokenizer, settings["resolution"] or release.get("resolution"), str(directory))


def check_tokenizer(directory: Path, sha256: str) -> None:
    """Raise InputError unless a sample set's tokens are of this tokenizer."""
    drawn = load_manifest(directory)["tokenizer_sha256"]
    if drawn != sha256:
        raise InputError(
            f"{directory} holds tokens of the tokenizer {drawn[:12]}, but the one in use is {sha256[:12]}, which makes "
            f"other pictures of them; delete the set with `rm -r {directory}` to have it drawn anew"
        )


def load_samples(directory: Path) -> np.ndarray:
    """All pictures of a run's sample set: (M, H, W, 3) uint8."""
    pictures = open_sample_set(directory)
    return pictures.read(0, len(pictures))


def load_labels(directory: Path) -> np.ndarray | None:
    """The labels of a sample set (M,); None where captions were shown."""
    file = directory / "labels.npy"
    return np.load(file, allow_pickle=False) if file.exists() else None


def samples_protocol(directory: Path) -> dict[str, Any]:
    """Where the pictures of a sample set come from."""
    manifest = load_manifest(directory)
    settings = manifest["config"]
    return {
        "images": "samples",
        "num_images": settings["num_images"],
        "weights": "average" if settings["use_ema"] else "raw",
        "weights_sha256": manifest["weights_sha256"],
        "tokenizer_sha256": manifest["tokenizer_sha256"],
        **settings["sampling"],
        "labels": settings["labels"],
        "seed": settings["seed"],
        "sampling_precision": settings["precision"],
        "manifest_sha256": hash_file(directory / "manifest.json"),
    }


def release_protocol(settings: dict[str, Any]) -> dict[str, Any]:
    """Which release a sample set is of, from the settings in its manifest."""
    release = settings["release"]
    found = {"drawn_at": 16 * release["grid"]} if release["tokenizer"]["name"] in SIXTEEN_PIXELS else {}
    return found | {
        "release": release["name"],
        "model": release["model"]["name"],
        "head": "flat",
        "weights": "average" if release["use_ema"] else "raw",
        "resolution": settings["resolution"] or release["resolution"],
    }


def label_evidence(labels: np.ndarray, num_classes: int) -> dict[str, Any]:
    """How often each class was drawn, and whether the images are in the order of their classes."""
    counts = np.bincount(labels, minlength=num_classes)
    return {
        "classes": len(counts),
        "present": int((counts > 0).sum()),
        "fewest": int(counts.min()),
        "most": int(counts.max()),
        "sorted": bool((np.diff(labels) >= 0).all()),
    }
