"""What `make eval-fid` and `make eval-coco` measure: samples of a run or a release, or any images."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState

from llamagen.release import ReleaseConfig
from llamagen.runs import class_names, load_config_of, run_evidence, run_protocol
from llamagen.sampling.draw import sample
from llamagen.sampling.filters import SamplingConfig
from llamagen.sampling.plan import SampleConfig
from llamagen.sampling.sets import (
    check_tokenizer,
    label_evidence,
    load_labels,
    load_manifest,
    manifest_at,
    open_sample_set,
    release_protocol,
    samples_protocol,
)
from masc.runtime.artifacts import InputError, hash_file
from masc.runtime.device import patient_state
from masc.runtime.run import differences, flatten, plain
from metrics.inception import NAME, Inception, load_inception
from metrics.protocol import ProtocolConfig
from metrics.reference import hash_of
from metrics.results import Results
from metrics.streams import FirstPictures, Pictures, open_samples
from vq.hub.fetch import weights_path
from vq.interface import tokenizer_path
from vq.pretrained import load_tokenizer

logger = logging.getLogger(__name__)
PICTURES = "runs/pictures/eval"  # results of pictures that no run or release of ours drew; `make report` finds them


@dataclass(kw_only=True)
class ExtractorConfig:
    """The Inception network, and where its weights and those of references lie."""

    folder: str = "weights"  # of `make weights`
    weights: str | None = None  # its file; None: the one in `folder`
    sha256: str | None = None  # of another file than the published one; its numbers compare with nobody's
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
    """What is measured, and how."""

    run: str | None = None  # a run's directory
    release: ReleaseConfig | None = None
    samples: str = "default"  # of a run or release: the name of its sample set; else a folder, .npz, .tar or .zip
    protocols: dict[str, ProtocolConfig] = field(default_factory=dict)
    extractor: ExtractorConfig = field(default_factory=ExtractorConfig)
    bootstrap: int = 20  # resamples for the confidence intervals; 0: none
    out: str | None = None  # where results go; None: eval/ of the run or release; of other pictures, PICTURES
    num_images: int | None = None  # to be measured; None: all, or as many as the protocols want of a set not yet drawn
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
            raise ValueError("name a run, a release, or pictures (SAMPLES=folder or .npz), one of the three")
        if not self.protocols:
            raise ValueError("name a protocol, as in PROTOCOL=adm")
        if self.num_images is not None and self.num_images < 2:
            raise ValueError(f"num_images must be at least 2, found {self.num_images}")
        _ = self.sample_config  # its checks

    @property
    def sample_config(self) -> SampleConfig | None:
        """How samples of the run or release are drawn; None for pictures."""
        if self.run is None and self.release is None:
            return None
        wanted = max(protocol.num_images for protocol in self.protocols.values())
        first = next(iter(self.protocols.values()))  # one set of samples for all: labelled as the first wants it
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
class Subject:
    """Pictures, where results about them go, and what is known of them."""

    pictures: Pictures
    results: Path  # without the protocol and .json
    about: dict[str, Any]
    evidence: dict[str, Any]


def check_subject(config: EvalFidConfig) -> None:
    """Raise InputError if what is to be measured is not there: before weights are asked for, or a reference read."""
    if config.run is not None:
        load_config_of(Path(config.run))
    elif config.release is None:
        open_samples(Path(config.samples))


def save_beside(found: Results, path: Path) -> Path:
    """Save results, and return where. Those of another reference, number of images, extractor or resize that are at
    `path` already stay: then the hash of what differs goes into the name."""
    keys = ("reference_sha256", "num_images", "extractor_sha256", "resize")
    ours = {key: found.rows[0]["protocol"].get(key) for key in keys}
    try:
        there = Results.load(path).rows[0]["protocol"]
    except (InputError, IndexError):
        there = ours
    differing = [key for key in keys if there.get(key) != ours[key]]
    if differing:
        beside = path.with_name(f"{path.stem}-{hash_of(ours)[:8]}.json")
        logger.warning("%s holds results of another %s and stays; see %s", path, " and ".join(differing), beside.name)
        path = beside
    found.save(path)
    return path


def wanted_pictures(config: EvalFidConfig, pictures: Pictures) -> Pictures:
    """As many as are asked for, from the first on."""
    if config.num_images is None or config.num_images == len(pictures):
        return pictures
    if config.num_images > len(pictures):
        raise InputError(
            f"{config.num_images:,} pictures were asked for, but {pictures.name} holds {len(pictures):,}; set "
            "num_images, or draw more under another name (SAMPLES=...)"
        )
    logger.warning("%s: the first %s of %s pictures", pictures.name, f"{config.num_images:,}", f"{len(pictures):,}")
    return FirstPictures(pictures, config.num_images)


def open_subject(config: EvalFidConfig) -> Subject:
    """The pictures to be measured, drawn first if they are samples that are not there."""
    drawing = config.sample_config
    if drawing is None:
        pictures = open_samples(Path(config.samples))
        place = Path(config.samples)
        about = {"images": str(place), "images_sha256": pictures.sha256, "file_type": pictures.file_type}
        # A folder's name may have dots in it: v1.0 is not v1.5. Other pictures of that name keep their results.
        name = place.absolute().name if place.is_dir() else place.stem
        results = Path(config.out or PICTURES) / f"{name}-{pictures.sha256[:8]}"
        return Subject(pictures, results, about, _picture_evidence(pictures))
    directory = drawing.directory
    if manifest_at(directory) is None:
        sample(drawing)
    settings = load_manifest(directory)["config"]
    _warn_if_otherwise(directory, settings, drawing)
    tokenizer = None
    if config.release is not None:
        place = tokenizer_path(config.release.tokenizer, Path(config.extractor.artifacts))
        if settings["form"] == "tokens":
            check_tokenizer(directory, hash_file(place))
            tokenizer = load_tokenizer(place, config.release.tokenizer).to(patient_state().device)
    pictures = open_sample_set(directory, tokenizer)
    about = {**samples_protocol(directory), "file_type": pictures.file_type, "images_sha256": pictures.sha256}
    evidence = _picture_evidence(pictures)
    labels = load_labels(directory)
    if config.run is not None:
        run = Path(config.run)
        about |= run_protocol(run, about["weights_sha256"], settings["use_ema"])
        evidence |= run_evidence(run)
    else:
        about |= release_protocol(settings)
    release = config.release
    classes = release.num_classes if release is not None else len(class_names(load_config_of(Path(config.run))))
    if labels is not None and classes:
        evidence["labels"] = label_evidence(labels[: config.num_images], classes)
    out = Path(config.out) if config.out else directory.parent.parent / "eval"
    return Subject(pictures, out / directory.name, about, evidence)


def _warn_if_otherwise(directory: Path, settings: dict[str, Any], drawing: SampleConfig) -> None:
    """Say how samples that are there differ from what this command would draw: they are measured as they are."""
    keys = ["seed", "use_ema", "sampling"] + ["labels"] * (drawing.labels is not None)
    asked = plain(drawing)
    lines = differences(flatten({key: settings[key] for key in keys}), flatten({key: asked[key] for key in keys}))
    if lines:
        logger.warning(
            "%s is measured as it was drawn; this command alone would draw:\n%s\nFor that name another set with "
            "SAMPLES=...",
            directory,
            lines,
        )


def _picture_evidence(pictures: Pictures) -> dict[str, Any]:
    return {"file_types": {pictures.file_type: len(pictures)}}
