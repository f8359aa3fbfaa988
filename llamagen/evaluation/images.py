"""Images to be measured: samples of a run or a release, or any images, and the config that names them."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from llamagen.release import ReleaseConfig
from llamagen.sampling.draw import sample
from llamagen.sampling.filters import SamplingConfig
from llamagen.sampling.plan import SampleConfig
from llamagen.sampling.sets import SampleSet
from masc.runtime.errors import InputError
from masc.runtime.run import differences, flatten, plain
from metrics.evaluators import NAME
from metrics.inception import Inception, load_inception
from metrics.protocol import ProtocolConfig
from metrics.streams import FirstImages, Images, open_samples
from vq.hub.fetch import weights_path

logger = logging.getLogger(__name__)
IMAGES = "runs/pictures/eval"  # results of images that no run or release of ours drew; `make report` finds them


@dataclass(kw_only=True)
class ExtractorConfig:
    """The Inception network, and the folders of its weights and of references."""

    folder: str = "weights"  # of `make weights`
    weights: str | None = None  # its file; None: the one in `folder`
    sha256: str | None = None  # of another file than the published one; its numbers compare with no published ones
    batch_size: int = 32
    artifacts: str = "artifacts"  # where references made here lie, and features that are kept

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"extractor.batch_size must be positive, found {self.batch_size}")

    def load(self, state: PartialState) -> Inception:
        """The network on this process's device; InputError if its file is missing or another."""
        path = Path(self.weights) if self.weights else weights_path(NAME, Path(self.folder))
        return load_inception(path, self.sha256, state.device)


@dataclass(kw_only=True)
class EvalFidConfig:
    """Images to be measured, and the protocols that they are measured under."""

    run: str | None = None  # a run's directory
    release: ReleaseConfig | None = None
    samples: str = "default"  # of a run or release: the name of its sample set; else a folder, .npz, .tar or .zip
    protocols: dict[str, ProtocolConfig] = field(default_factory=dict)
    extractor: ExtractorConfig = field(default_factory=ExtractorConfig)
    bootstrap: int = 20  # resamples for the confidence intervals; 0: none
    out: str | None = None  # folder of results; None: eval/ of the run or release, PICTURES of other images
    num_images: int | None = None  # to be measured; None: all, or as many as the protocols want if they must be drawn
    # For samples that are not there yet, as `make sample` takes them; None: the first protocol's own.
    labels: str | None = None
    captions: str | None = None
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    sample_batch_size: int = 64
    seed: int = 0
    precision: str = "auto"
    use_ema: bool = False

    def __post_init__(self) -> None:
        if self.run is not None and self.release is not None:
            raise ValueError("name only one of these: a run, a release, images (SAMPLES=folder or .npz)")
        if not self.protocols:
            raise ValueError("name a protocol, as in PROTOCOL=adm")
        if self.num_images is not None and self.num_images < 2:
            raise ValueError(f"num_images must be at least 2, found {self.num_images}")
        _ = self.sample_config  # raises ValueError for a bad value

    @property
    def sample_config(self) -> SampleConfig | None:
        """The config that draws samples of the run or release; None for other images."""
        if self.run is None and self.release is None:
            return None
        wanted = max(protocol.num_images for protocol in self.protocols.values())
        first = next(iter(self.protocols.values()))  # one set serves all, with the labels of the first
        return SampleConfig(
            run=self.run,
            release=self.release,
            num_images=self.num_images or wanted,
            batch_size=self.sample_batch_size,
            labels=self.labels or (first.labels if self.captions is None else None),
            captions=self.captions,
            form="tokens",
            seed=self.seed,
            precision=self.precision,
            use_ema=self.use_ema,
            sampling=self.sampling,
            name=self.samples,
            artifacts=self.extractor.artifacts,
        )


@dataclass(frozen=True)
class MeasuredImages:
    """Images, the path of their results, and what results say about them."""

    images: Images
    results: Path  # without the protocol and .json
    about: dict[str, Any]
    evidence: dict[str, Any]


def first_images(images: Images, wanted: int | None) -> Images:
    """The first `wanted` images, or all of them; InputError if there are fewer."""
    if wanted is None or wanted == len(images):
        return images
    if wanted > len(images):
        raise InputError(
            f"{wanted:,} images are wanted, but {images.name} holds {len(images):,}; set "
            f"num_images={len(images)}, or draw more under another name (SAMPLES=...)"
        )
    logger.warning("%s: the first %s of %s images", images.name, f"{wanted:,}", f"{len(images):,}")
    return FirstImages(images, wanted)


def find_images(config: EvalFidConfig) -> SampleSet | Images:
    """The sample set to be measured, drawn already or not, or any other images.

    Raises InputError if there is no such run, or there are no such images."""
    drawing = config.sample_config
    return open_samples(Path(config.samples)) if drawing is None else SampleSet(drawing.open_source(), drawing.name)


def open_images(config: EvalFidConfig, found: SampleSet | Images, device: torch.device) -> MeasuredImages:
    """The images that `find_images` found, ready to be measured. Samples are drawn if they are not there."""
    if not isinstance(found, SampleSet):
        return _other_images(config, found)
    drawing, source = config.sample_config, found.source
    if not found.is_drawn:
        sample(drawing, source=source)
    _warn_if_otherwise(found, drawing)
    images = found.open_images(device)
    about = {**found.protocol(), "file_type": images.file_type, "images_sha256": images.sha256}
    about |= source.protocol(found.manifest)
    evidence = {**_file_evidence(images), **source.evidence()}
    labels = found.label_evidence(config.num_images)
    if labels is not None:
        evidence["labels"] = labels
    out = Path(config.out) if config.out else source.directory / "eval"
    return MeasuredImages(images, out / found.name, about, evidence)


def _other_images(config: EvalFidConfig, images: Images) -> MeasuredImages:
    place, sha256 = Path(config.samples), images.sha256
    about = {"images": str(place), "images_sha256": sha256, "file_type": images.file_type}
    # A folder's name may have dots in it: v1.0 is not v1.5. Other images of that name keep their results.
    name = place.absolute().name if place.is_dir() else place.stem
    results = Path(config.out or IMAGES) / f"{name}-{sha256[:8]}"
    return MeasuredImages(images, results, about, _file_evidence(images))


def _warn_if_otherwise(samples: SampleSet, drawing: SampleConfig) -> None:
    """Warn if samples that are there differ from those that this command would draw: they are measured as they are."""
    keys = ["seed", "use_ema", "sampling"] + ["labels"] * (drawing.labels is not None)
    there, asked = ({key: settings[key] for key in keys} for settings in (samples.settings, plain(drawing)))
    lines = differences(flatten(there), flatten(asked))
    if lines:
        logger.warning(
            "%s is measured as it was drawn. This command would draw:\n%s\nFor that, name another set with SAMPLES=...",
            samples.directory,
            lines,
        )


def _file_evidence(images: Images) -> dict[str, Any]:
    return {"file_types": {images.file_type: len(images)}}
