"""COCO-30k: FID, IS and CLIP score of a text model's samples, or of any pictures (`make eval-coco`).

Captions are chosen once, encoded once (`make text-features`), and shown one a sample: image i shows caption i. The
references are cropped from COCO's own pictures, all of val2014 or those whose captions were shown."""

import logging
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from accelerate import PartialState

from llamagen.conditions.features import TextFeatures
from llamagen.conditions.images import check_text_model
from llamagen.evaluation.images import EvalFidConfig, MeasuredImages, find_samples, open_images, save_beside
from llamagen.sampling.sets import SampleSet
from masc.runtime.artifacts import InputError, write_text
from masc.runtime.device import patient_state
from metrics.clip_score import MODEL, NAME, Clip, clip_cosines, clip_score, load_clip
from metrics.coco import (
    MAKE,
    CaptionList,
    CocoProtocolConfig,
    CroppedPictures,
    captions_file,
    choose_captions,
    coco_source,
    load_captions,
    save_captions,
)
from metrics.features import extract
from metrics.inception import Inception
from metrics.protocol import measure
from metrics.reference import Reference, load_statistics, make_reference, reference_file
from metrics.streams import FilePictures, Pictures
from vq.hub.fetch import weights_path
from vq.hub.pins import pin_of
from vq.hub.releases import RELEASES

logger = logging.getLogger(__name__)
KEPT = 1000  # pictures that a reference keeps, for `make doctor` to look at


@dataclass(kw_only=True)
class ClipConfig:
    """The network of the CLIP score."""

    weights: str | None = None  # its file; None: that of `make weights NAME=clip-vit-b-32`
    sha256: str | None = None  # of another file than the published one
    model: str = MODEL  # as open_clip calls it
    batch_size: int = 64


@dataclass(kw_only=True)
class ChoiceConfig:
    """Which captions are chosen (`make coco-captions`)."""

    coco: str | None = None  # COCO's folder: annotations/ and val2014/ or val2014.zip
    split: str = "val2014"
    num_images: int = 30_000
    caption_seed: int = 0
    captions: str | None = None  # LlamaGen's coco_captions.csv instead, made into lines that `make text-features` takes
    artifacts: str = "artifacts"


@dataclass(kw_only=True)
class EvalCocoConfig(EvalFidConfig):
    """What is measured on COCO, and how. `captions` are text features, as `make sample` takes them; None: those of
    the list, in artifacts/text."""

    protocols: dict[str, CocoProtocolConfig] = field(default_factory=dict)
    coco: str | None = None  # its folder; not needed where captions and references are made already
    split: str = "val2014"
    caption_list: str | None = None  # a choice, a .txt or LlamaGen's .csv; None: chosen by `caption_seed`
    caption_seed: int = 0
    clip: ClipConfig = field(default_factory=ClipConfig)

    @property
    def wanted(self) -> int:
        """Samples to be measured."""
        return self.num_images or max(protocol.num_images for protocol in self.protocols.values())


def make_captions(config: ChoiceConfig) -> Path:
    """Write the captions to be shown, unless they are there, and return their file."""
    if config.captions is not None:
        return _as_lines(Path(config.captions), Path(config.artifacts))
    path = captions_file(Path(config.artifacts), config.split, config.num_images, config.caption_seed)
    if not path.exists():
        if config.coco is None:
            raise InputError(
                f"no captions are chosen yet ({path}); say where COCO lies, as in `{MAKE}`. Its annotations come by "
                "`make weights NAME=coco-annotations`"
            )
        save_captions(path, choose_captions(Path(config.coco), config.split, config.num_images, config.caption_seed))
    load_captions(path)
    return path


def _as_lines(path: Path, artifacts: Path) -> Path:
    """LlamaGen's table as lines, for `make text-features`; other files as they are."""
    if path.suffix != ".csv":
        return path
    lines = artifacts / "coco" / f"{path.stem}.txt"
    write_text(lines, "".join(f"{text}\n" for text in load_captions(path).texts))
    return lines


def evaluate_coco(config: EvalCocoConfig) -> list[Path]:
    """Write <eval>/<samples>-<protocol>.json for each protocol; return the files.

    Captions, weights and references are looked for before anything is drawn. Raises InputError for what is missing,
    broken, or does not belong together."""
    state = patient_state()
    samples = find_samples(config)
    _check_model(samples)
    path = _captions_file(config, state)
    captions = load_captions(path)
    if len(captions) < config.wanted:
        raise InputError(
            f"image i shows caption i, and {path} holds {len(captions):,} captions for {config.wanted:,} images; set "
            f"num_images={len(captions)}, or choose more with `make coco-captions`"
        )
    config = _with_features(config, samples, path, captions)
    shown = captions.first(config.wanted)
    model, clip = config.extractor.load(state), _load_clip(config, state)
    references = {
        name: _reference(config, protocol, shown, model, state) for name, protocol in config.protocols.items()
    }
    images = open_images(config, samples, state.device)
    pictures = _pictures(config, samples, images.pictures, path, captions)
    return _measure(config, images, pictures, shown, model, clip, references, state)


def _measure(
    config: EvalCocoConfig,
    images: MeasuredImages,
    pictures: Pictures,
    shown: CaptionList,
    model: Inception,
    clip: Clip | None,
    references: dict[str, Reference],
    state: PartialState,
) -> list[Path]:
    features, cosines, written = {}, {}, []
    for name, protocol in config.protocols.items():
        if config.wanted < protocol.num_images:
            wanted, full = f"{config.wanted:,}", f"{protocol.num_images:,}"
            logger.warning("%s: %s pictures, but COCO-30k is of %s; fewer give a higher FID", name, wanted, full)
        way = (protocol.crop, protocol.size)
        cropped = CroppedPictures(pictures, config.wanted, protocol.size, protocol.crop)
        if (*way, protocol.resize) not in features:
            batch_size = config.extractor.batch_size
            features[*way, protocol.resize] = extract(cropped, model, protocol.resize, batch_size, state)
        if clip is not None and protocol.clip_score and way not in cosines:
            cosines[way] = clip_cosines(cropped, shown.texts, clip, config.clip.batch_size, state)
        if not state.is_main_process:
            continue
        about = {**images.about, **shown.protocol, "crop": protocol.crop}
        found = measure(protocol, features[*way, protocol.resize], references[name], model, about, config.bootstrap)
        for row in found.rows:
            if "reference" in row["protocol"]:
                row["protocol"]["reference_images"] = protocol.pairing
        if clip is not None and protocol.clip_score:
            about |= {"protocol": protocol.name, "image_size": protocol.size}
            found.rows.append(clip_score(cosines[way], clip, about, config.bootstrap))
        found.evidence.update(images.evidence)
        written.append(save_beside(found, images.results.with_name(f"{images.results.name}-{name}.json")))
    state.wait_for_everyone()
    return written


def _check_model(samples: SampleSet | None) -> None:
    """Raise InputError if samples of a class model are asked for."""
    if samples is not None:
        check_text_model(samples.source.config.model, "captions")


def _captions_file(config: EvalCocoConfig, state: PartialState) -> Path:
    """The captions that samples show, chosen here if nothing else is said; InputError for pictures without any."""
    artifacts = Path(config.extractor.artifacts)
    if config.caption_list is None and config.sample_config is None:
        raise InputError(
            "say which captions the pictures show, picture i caption i, with ARGS=caption_list=FILE: a choice of `make "
            "coco-captions`, LlamaGen's coco_captions.csv, or the captions.txt that its sampler writes"
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


def _with_features(
    config: EvalCocoConfig, samples: SampleSet | None, path: Path, captions: CaptionList
) -> EvalCocoConfig:
    """The config with its text features named, if samples must be drawn; InputError if they are not there, or of
    other captions."""
    if samples is None or samples.is_drawn:
        return config
    folder = Path(config.captions or Path(config.extractor.artifacts) / "text" / path.stem)
    make = f"make text-features CAPTIONS={path} ARGS=out={folder}"
    _check_same(f"the text features in {folder}", TextFeatures.load(folder, make=make).config, path, captions, make)
    return replace(config, captions=str(folder))


def _check_same(what: str, about: dict[str, str], path: Path, captions: CaptionList, mend: str) -> None:
    found = about.get("captions_sha256")
    if found != captions.sha256:
        raise InputError(
            f"{what} are of the captions {str(found)[:12]}, but {path} has {captions.sha256[:12]}; name the list that "
            f"they are of with ARGS=caption_list=FILE, or make them anew: `{mend}`"
        )


def _pictures(
    config: EvalCocoConfig, samples: SampleSet | None, pictures: Pictures, path: Path, captions: CaptionList
) -> Pictures:
    """The samples in the order of their captions; InputError if there are too few, or they show other captions."""
    if samples is not None:
        shown = samples.manifest.get("captions", {})
        _check_same(f"the samples in {samples.directory}", shown, path, captions, "make eval-coco SAMPLES=ANOTHER_NAME")
    elif isinstance(pictures, FilePictures):
        # By number, as LlamaGen sorts: 10.png comes after 9.png.
        names = pictures.members.names
        order = sorted(range(len(names)), key=lambda row: _numbers_apart(names[row]))
        pictures.members = pictures.members.take(order)
    if len(pictures) < config.wanted:
        raise InputError(
            f"{config.wanted:,} pictures are wanted, but {pictures.name} holds {len(pictures):,}; draw more, or set "
            f"num_images={len(pictures)}"
        )
    if len(pictures) > config.wanted:
        logger.warning("%s: the first %s of %s pictures", pictures.name, f"{config.wanted:,}", f"{len(pictures):,}")
    return pictures


def _numbers_apart(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def _reference(
    config: EvalCocoConfig, protocol: CocoProtocolConfig, shown: CaptionList, model: Inception, state: PartialState
) -> Reference:
    """The reference of a protocol, made of COCO's pictures unless it is there."""
    paired = protocol.pairing == "paired"
    if paired and shown.image_ids is None:
        raise InputError(
            "paired references need the image ids of the captions, and this list has none; take pairing=all, or "
            "captions of `make coco-captions`"
        )
    name = protocol.reference_name(config.split, shown.ids_sha256)
    artifacts = Path(config.extractor.artifacts)
    path = reference_file(artifacts, name)
    if config.coco is not None:
        source = coco_source(
            Path(config.coco), config.split, protocol.size, protocol.crop, shown.image_ids if paired else None
        )
        if source.missing and not paired:
            absent, first = f"{len(source.missing):,}", source.missing[0]
            logger.warning("%s: %s of its pictures are not in %s, %s first", name, absent, config.coco, first)
        more = {"crop": protocol.crop, **({"ids_sha256": shown.ids_sha256} if paired else {})}
        make_reference(path, source, model, protocol.resize, KEPT, 0, config.extractor.batch_size, state, more)
    elif not path.exists():
        raise InputError(f'no reference {path}; say where COCO lies with ARGS="coco=FOLDER"')
    return load_statistics(
        name,
        artifacts,
        Path(config.extractor.folder),
        model,
        protocol.resize,
        config.extractor.batch_size,
        state,
    )


def _load_clip(config: EvalCocoConfig, state: PartialState) -> Clip | None:
    """The network of the CLIP score; None, with a warning, where its weights are absent."""
    given = config.clip
    if not any(protocol.clip_score for protocol in config.protocols.values()):
        return None
    if given.weights is not None:
        return load_clip(Path(given.weights), given.sha256, state.device, given.model)
    try:
        path = weights_path(NAME, Path(config.extractor.folder))
    except InputError as error:
        logger.warning("no CLIP score: %s", error)
        return None
    release = RELEASES[NAME]
    pinned = pin_of(release, release.files[0], Path(config.extractor.folder)).sha256
    return load_clip(path, given.sha256 or pinned, state.device, given.model)
