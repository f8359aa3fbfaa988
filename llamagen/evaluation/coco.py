"""COCO-30k: FID, IS and CLIP score of a text model's samples, or of any images (`make eval-coco`).

Captions are chosen once and encoded once (`make text-features`); image i shows caption i. The references are cropped
from COCO's own images: all of val2014, or those whose captions were shown."""

import logging
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from llamagen.conditions.features import TextFeatures
from llamagen.conditions.images import check_text_model
from llamagen.evaluation.fid import Evaluation
from llamagen.evaluation.images import EvalFidConfig, first_images
from llamagen.sampling.sets import SampleSet
from masc.layout import captions_file, reference_file, text_features_folder
from masc.runtime.captions import TABLES
from masc.runtime.errors import InputError, MissingArtifact, naming
from masc.runtime.files import write_text
from metrics.clip_score import MODEL, NAME, Clip, clip_cosines, clip_score, load_clip
from metrics.coco_protocol import (
    CocoProtocolConfig,
    choice_file,
    choose_captions,
    coco_source,
    load_captions,
    save_captions,
)
from metrics.reference import make_reference
from metrics.streams import FileImages, Images
from vq.hub.fetch import weights_path
from vq.hub.pins import pin_of
from vq.hub.releases import RELEASES

logger = logging.getLogger(__name__)
KEPT = 1000  # images that a reference keeps, for `make doctor` to look at


@dataclass(kw_only=True)
class ClipConfig:
    """The network of the CLIP score."""

    weights: str | None = None  # its file; None: that of `make weights NAME=clip-vit-b-32`
    sha256: str | None = None  # of another file than the published one
    model: str = MODEL  # as open_clip calls it
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"clip.batch_size must be positive, found {self.batch_size}")

    def load(self, folder: Path, state: PartialState) -> Clip | None:
        """The network on this process's device; None, with a warning, if no file is named and `folder` has none."""
        if self.weights is not None:
            return load_clip(Path(self.weights), self.sha256, state.device, self.model)
        try:
            path = weights_path(NAME, folder)
        except InputError as error:
            logger.warning("no CLIP score: %s", error)
            return None
        release = RELEASES[NAME]
        pinned = pin_of(release, release.files[0], folder).sha256
        return load_clip(path, self.sha256 or pinned, state.device, self.model)


@dataclass(kw_only=True)
class ChoiceConfig:
    """A choice of captions (`make coco-captions`)."""

    coco: str | None = None  # COCO's folder: annotations/ and val2014/ or val2014.zip
    split: str = "val2014"
    num_images: int = 30_000
    caption_seed: int = 0
    captions: str | None = None  # LlamaGen's coco_captions.csv instead, made into lines that `make text-features` takes
    artifacts: str = "artifacts"


@dataclass(kw_only=True)
class EvalCocoConfig(EvalFidConfig):
    """Images to be measured on COCO, and their protocols.

    `captions` are text features, as `make sample` takes them; None: those of the list, in artifacts/text."""

    protocols: dict[str, CocoProtocolConfig] = field(default_factory=dict)
    coco: str | None = None  # its folder; not needed where captions and references are made already
    split: str = "val2014"
    caption_list: str | None = None  # a choice, a .txt or LlamaGen's .csv; None: chosen by `caption_seed`
    caption_seed: int = 0
    clip: ClipConfig = field(default_factory=ClipConfig)

    @property
    def wanted(self) -> int:
        """Number of images to be measured."""
        return self.num_images or max(protocol.num_images for protocol in self.protocols.values())


def make_captions(config: ChoiceConfig) -> Path:
    """Write the captions to be shown, unless they are there, and return their file."""
    if config.captions is not None:
        return _as_lines(Path(config.captions), Path(config.artifacts))
    path = choice_file(Path(config.artifacts), config.split, config.num_images, config.caption_seed)
    if not path.exists():
        if config.coco is None:
            annotations = MissingArtifact("weights", path, name="coco-annotations")
            problem = f"no captions at {path}; choose them from COCO's annotations, whose folder is FOLDER"
            raise MissingArtifact("captions", path, problem, overrides={"coco": "FOLDER"}, first=[annotations])
        save_captions(path, choose_captions(Path(config.coco), config.split, config.num_images, config.caption_seed))
    load_captions(path)
    return path


def _as_lines(path: Path, artifacts: Path) -> Path:
    """The path of LlamaGen's table as lines, for `make text-features`; other files as they are."""
    if path.suffix.lower() not in TABLES:
        return path
    lines = captions_file(artifacts, f"{path.stem}.txt")
    write_text(lines, "".join(f"{text}\n" for text in load_captions(path).texts))
    return lines


class CocoEvaluation(Evaluation):
    """Images that show one caption each, measured against COCO's own images."""

    def __init__(self, config: EvalCocoConfig):
        """Finds captions and their features; raises InputError if they are missing or do not fit the images."""
        super().__init__(config)
        self.samples = self.found if isinstance(self.found, SampleSet) else None
        if self.samples is not None:
            check_text_model(self.samples.source.config.model, "captions")
        self.captions_path = _captions_file(config, self.state)
        captions = load_captions(self.captions_path)
        if len(captions) < config.wanted:
            raise MissingArtifact(
                "captions",
                self.captions_path,
                f"image i shows caption i, and {self.captions_path} holds {len(captions):,} captions for "
                f"{config.wanted:,} images; set num_images={len(captions)}, or choose more captions of COCO",
                overrides={"coco": config.coco or "FOLDER", "num_images": config.wanted},
            )
        self.captions_sha256, self.shown = captions.sha256, captions.first(config.wanted)
        if self.samples is not None and not self.samples.is_drawn:
            self.config = replace(config, captions=str(self._find_features()))
        wants_clip = any(protocol.clip_score for protocol in config.protocols.values())
        self.clip = config.clip.load(Path(config.extractor.folder), self.state) if wants_clip else None
        self.cosines: dict[tuple[Any, ...], np.ndarray] = {}

    def _find_features(self) -> Path:
        """The folder of text features that samples are drawn from; InputError if they are of other captions."""
        path = self.captions_path
        folder = Path(self.config.captions or text_features_folder(Path(self.config.extractor.artifacts), path))
        with naming({"out": folder}, captions=path):
            problem = self._mismatch(f"the text features in {folder}", TextFeatures.load(folder).config)
            if problem:
                raise MissingArtifact("text features", folder, f"{problem}, or make them again", remove=True)
        return folder

    def _mismatch(self, what: str, about: dict[str, str]) -> str:
        """A message that `what` was made from other captions; empty if it was made from these."""
        found = about.get("captions_sha256")
        if found == self.captions_sha256:
            return ""
        return (
            f"{what} are of the captions {str(found)[:12]}, but {self.captions_path} has "
            f"{self.captions_sha256[:12]}; name their list with ARGS=caption_list=FILE"
        )

    def find_reference(self, protocol: CocoProtocolConfig) -> str:
        """The name of a protocol's reference, which is made of COCO's images unless it is there."""
        config, shown, paired = self.config, self.shown, protocol.pairing == "paired"
        if paired and shown.image_ids is None:
            raise InputError(
                "paired references need the image ids of the captions, and this list has none; take pairing=all, or "
                "captions that this project chose from COCO's"
            )
        name = protocol.reference_name(config.split, shown.ids_sha256)
        path = reference_file(Path(config.extractor.artifacts), name)
        if config.coco is None and not path.exists():
            raise InputError(f"no reference {path}; say where COCO lies with DATA_PATH=FOLDER")
        if config.coco is None:
            return name
        source = coco_source(
            Path(config.coco), config.split, protocol.size, protocol.crop, shown.image_ids if paired else None
        )
        if source.missing and not paired:
            absent, first = f"{len(source.missing):,}", source.missing[0]
            logger.warning("%s: %s of its images are not in %s, %s first", name, absent, config.coco, first)
        more = {"crop": protocol.crop, **({"ids_sha256": shown.ids_sha256} if paired else {})}
        batch_size = config.extractor.batch_size
        make_reference(path, source, self.model, protocol.resize, KEPT, 0, batch_size, self.state, more)
        return name

    def choose(self, images: Images) -> Images:
        """The images in the order of their captions; InputError if there are too few, or they show other captions."""
        if self.samples is not None:
            about = self.samples.manifest.get("captions", {})
            problem = self._mismatch(f"the samples in {self.samples.directory}", about)
            if problem:
                raise InputError(f"{problem}, or draw samples of another name with SAMPLES=NAME")
        elif isinstance(images, FileImages):
            # By number, as LlamaGen sorts: 10.png comes after 9.png.
            names = images.members.names
            order = sorted(range(len(names)), key=lambda row: _numbers_apart(names[row]))
            images.members = images.members.take(order)
        return first_images(images, self.config.wanted)

    def about(self, protocol: CocoProtocolConfig) -> dict[str, Any]:
        """The captions shown, and the crop."""
        return {**self.shown.protocol, "crop": protocol.crop}

    def further_rows(self, protocol: CocoProtocolConfig, images: Images, about: dict[str, Any]) -> list[dict[str, Any]]:
        """The CLIP score, if the protocol has it and its weights are there."""
        if self.clip is None or not protocol.clip_score:
            return []
        key, clip = protocol.preparation, self.config.clip
        if key not in self.cosines:
            self.cosines[key] = clip_cosines(images, self.shown.texts, self.clip, clip.batch_size, self.state)
        about = {**about, "protocol": protocol.name, "image_size": protocol.size}
        return [clip_score(self.cosines[key], self.clip, about, self.config.bootstrap)]


def evaluate_coco(config: EvalCocoConfig) -> list[Path]:
    """Write <eval>/<samples>-<protocol>.json for each protocol; return the files.

    Raises InputError for what is missing, broken, or does not belong together."""
    return CocoEvaluation(config).run()


def _captions_file(config: EvalCocoConfig, state: PartialState) -> Path:
    """The file of the captions that the images show, chosen here unless `caption_list` names one.

    Raises InputError for images that are not drawn here and have no list."""
    artifacts = Path(config.extractor.artifacts)
    if config.caption_list is None and config.sample_config is None:
        raise InputError(
            "say which captions the images show, image i caption i, with ARGS=caption_list=FILE: a choice of "
            "COCO's captions, LlamaGen's coco_captions.csv, or the captions.txt that its sampler writes"
        )
    choice = ChoiceConfig(
        coco=config.coco,
        split=config.split,
        num_images=config.wanted,
        caption_seed=config.caption_seed,
        captions=config.caption_list,
        artifacts=str(artifacts),
    )
    if state.is_main_process:
        make_captions(choice)
    state.wait_for_everyone()
    return make_captions(choice)


def _numbers_apart(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]
