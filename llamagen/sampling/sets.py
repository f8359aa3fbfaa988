"""Sample sets on disk: their images, how they were drawn, and which labels they show."""

import hashlib
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from llamagen.release import Release
from llamagen.runs import Run
from llamagen.sampling.filters import SamplingConfig
from llamagen.sampling.images import UNIT, decode_unit, png_path
from masc.runtime.artifacts import hash_arrays
from masc.runtime.codes import check_tokens
from masc.runtime.errors import InputError, MissingArtifact, removal
from masc.runtime.files import recover
from masc.runtime.reading import Damaged, advising, open_array, parse_json, read_bytes
from metrics.streams import Images, open_samples
from vq.interface import Tokenizer, device_of

Source = Run | Release  # of samples


class TokenImages(Images):
    """Images that are decoded from their tokens (M, T) when they are read; none is stored."""

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


@dataclass(frozen=True)
class _Named:
    name: str


@dataclass(frozen=True)
class _ReleaseSettings:
    name: str
    grid: int
    resolution: int
    use_ema: bool
    tokenizer: _Named
    model: _Named


@dataclass(frozen=True)
class _Settings:
    num_images: int
    form: Literal["npz", "png", "tokens"]
    use_ema: bool
    sampling: dict[str, int | float | str]
    labels: str | None
    seed: int
    precision: str
    resolution: int | None
    release: _ReleaseSettings | None


@dataclass(frozen=True)
class _Manifest:
    """The keys of a manifest that are read. It has more: it holds everything that decides the samples."""

    config: _Settings
    weights_sha256: str
    tokenizer_sha256: str
    captions: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.config.num_images < 1:
            raise ValueError(f"num_images must be positive, found {self.config.num_images}")
        try:
            SamplingConfig(**self.config.sampling)
        except TypeError as error:  # a key that is none of this version
            raise ValueError(str(error)) from error


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of a sample set, finished or not; None if there is none. InputError if it is damaged."""
    file = directory / "manifest.json"
    return parse_manifest(read_bytes(file), directory) if file.exists() else None


def parse_manifest(stored: bytes, directory: Path) -> dict[str, Any]:
    """The content of the manifest of the sample set at `directory`; InputError if it is damaged.

    A setting of sampling that is younger than the set has its default."""
    file = directory / "manifest.json"
    with advising("copy it back, draw another set with SAMPLES=..., or remove this one"):
        sampling = parse_json(stored, _Manifest, file).config.sampling
        manifest = parse_json(stored, dict[str, Any], file)
    manifest["config"]["sampling"] = asdict(SamplingConfig(**sampling))
    return manifest


def resolution_of(settings: dict[str, Any]) -> int | None:
    """Pixels a side of the images that these settings draw; None: the side that the tokenizer decodes to."""
    return settings["resolution"] or (settings["release"] or {}).get("resolution")


@dataclass(frozen=True, eq=False)
class SampleSet:
    """Samples of a run or a release. Its manifest, once it is drawn, is read once."""

    source: Source
    name: str

    @property
    def directory(self) -> Path:
        return recover(self.source.directory / "samples" / self.name)

    @property
    def unfinished(self) -> Path:
        """The directory that the set is drawn in."""
        return self.source.directory / "samples" / f".{self.name}.unfinished"

    @property
    def is_drawn(self) -> bool:
        return (self.directory / "manifest.json").exists()

    def holds(self, manifest: dict[str, Any]) -> bool:
        """Whether the samples of this manifest are there, and the number of them that it says."""
        return self.is_drawn and self.manifest == manifest and not self._unfit

    @property
    def _unfit(self) -> str:
        """What a drawn set lacks, or has too much or damaged; empty if it is whole."""
        form, wanted = self.settings["form"], self.settings["num_images"]
        names = ["tokens.npy"] + ["labels.npy"] * (not self._shows_captions) + ["images.npz"] * (form == "npz")
        gone = [name for name in names if not (self.directory / name).exists()]
        if form == "png":
            found = sum(png_path(self.directory / "images", index, wanted).exists() for index in range(wanted))
            gone += [f"{wanted - found} of {wanted} images"] * (found < wanted)
        if gone:
            return f"lacks {', '.join(gone)}"
        try:
            found = wanted if form == "tokens" else len(self._stored_images())
        except InputError as error:
            return f"is damaged: {error}"
        return "" if found == wanted else f"holds {found} images, but its manifest says {wanted}"

    @property
    def _shows_captions(self) -> bool:
        return self.manifest.get("captions") is not None

    def _stored_images(self) -> Images:
        return open_samples(self.directory / ("images.npz" if self.settings["form"] == "npz" else "images"))

    @cached_property
    def _stored_manifest(self) -> bytes:
        if not self.is_drawn:
            is_run = isinstance(self.source, Run)
            raise MissingArtifact(
                "samples",
                self.directory,
                samples=self.name,
                run=self.source.directory if is_run else None,
                release=None if is_run else self.source.config.name,
            )
        return read_bytes(self.directory / "manifest.json")

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Settings and hashes that decide the samples; MissingArtifact if none are drawn, InputError for a damaged
        file."""
        return parse_manifest(self._stored_manifest, self.directory)

    @property
    def settings(self) -> dict[str, Any]:
        """The config that the samples were drawn with."""
        return self.manifest["config"]

    @property
    def tokens(self) -> np.ndarray:
        """The tokens (M, T), memory-mapped; InputError if their file is damaged."""
        with advising(self._again):
            return open_array(self.directory / "tokens.npy", "iu", (self.settings["num_images"], None), mapped=True)

    @property
    def labels(self) -> np.ndarray | None:
        """The labels (M,); None where captions were shown. InputError if their file is missing or damaged."""
        if self._shows_captions:
            return None
        file = self.directory / "labels.npy"
        with advising(self._again):
            labels = open_array(file, "iu", (self.settings["num_images"],))
            num_classes = self.source.num_classes
            if labels.min() < 0 or (num_classes and labels.max() >= num_classes):
                raise Damaged(
                    f"expected labels of {num_classes} classes in {file}, found {labels.min()} to {labels.max()}"
                )
        return labels

    @property
    def _again(self) -> str:
        return f"draw another set with SAMPLES=..., or delete this one with `{removal(self.directory)}`"

    def open_images(self, device: torch.device) -> Images:
        """The images, read as they are needed. A set kept as tokens is decoded on `device`.

        Raises InputError if the source has another tokenizer than the set was drawn with, or images or labels are
        missing."""
        if problem := self._unfit:
            raise InputError(f"{self.directory} {problem}; {self._again}")
        if self.settings["form"] != "tokens":
            return self._stored_images()
        drawn, present = self.manifest["tokenizer_sha256"], self.source.tokenizer_sha256
        if drawn != present:
            raise InputError(
                f"{self.directory} holds tokens of the tokenizer {drawn[:12]}, but the one in use is "
                f"{str(present)[:12]}, which decodes them to other images; {self._again}"
            )
        tokenizer, tokens = self.source.load_tokenizer().to(device), self.tokens
        check_tokens(tokens, tokenizer.num_tokens, f"{self.directory}/tokens.npy")
        return TokenImages(tokens, tokenizer, resolution_of(self.settings), str(self.directory))

    def protocol(self) -> dict[str, Any]:
        """Settings and hashes that a result of these samples must carry."""
        manifest, settings = self.manifest, self.settings
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
            "manifest_sha256": hashlib.sha256(self._stored_manifest).hexdigest(),
        }

    def label_evidence(self, count: int | None = None) -> dict[str, Any] | None:
        """How often each class was drawn in the first `count` images (None: all), and whether classes come in order.

        None where captions were shown, or the number of classes is not known."""
        labels, num_classes = self.labels, self.source.num_classes
        if labels is None or not num_classes:
            return None
        counts = np.bincount(labels[:count], minlength=num_classes)
        return {
            "classes": len(counts),
            "present": int((counts > 0).sum()),
            "fewest": int(counts.min()),
            "most": int(counts.max()),
            "sorted": bool((np.diff(labels[:count]) >= 0).all()),
        }
