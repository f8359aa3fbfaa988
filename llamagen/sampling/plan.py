"""Plan of a sample set: which model draws it, which labels or captions it shows, which tokenizer decodes it."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from llamagen.conditions.features import TextFeatures
from llamagen.conditions.images import Labels, check_features, check_text_model, draw_labels
from llamagen.model import ARModel
from llamagen.release import Release, ReleaseConfig
from llamagen.runs import Run
from llamagen.sampling.filters import SamplingConfig
from llamagen.sampling.generate import check_guidance
from llamagen.sampling.sets import Source
from masc.runtime.device import check_precision, resolve_precision
from masc.runtime.errors import InputError
from masc.runtime.files import check_name
from vq.interface import Tokenizer

logger = logging.getLogger(__name__)
LABEL_PLANS = ("training", "balanced", "uniform")
FORMS = ("npz", "png", "tokens")


@dataclass(kw_only=True)
class SampleConfig:
    """A sample set to be drawn from a run or a released model."""

    run: str | None = None  # its directory
    release: ReleaseConfig | None = None
    num_images: int = 1000
    batch_size: int = 100
    # `training`: as often as in training; `balanced`: each class in turn, 50 a class of 50,000; `uniform`: with equal
    # chances, LlamaGen's protocol. None: `training` for a run, `uniform` for a release.
    labels: str | None = None
    captions: str | None = None  # text features (`make text-features`): image i shows caption i
    resolution: int | None = None  # pixels a side; None: the release's, or what the tokenizer gives
    # `npz`: one file in ADM's layout; `png`: a folder of images; `tokens`: no images, they are decoded when measured
    form: str = "npz"
    seed: int = 0
    precision: str = "auto"  # of the transformer; auto: bf16 on a GPU, as released, fp32 on a CPU
    compile: bool = False  # the decoding step by torch.compile, with caches of fixed length
    use_ema: bool = False  # a run's averaged weights
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    name: str = "default"  # of the sample set: runs/.../samples/<name>
    artifacts: str = "artifacts"  # where a release's tokenizer lies if it was trained here

    def __post_init__(self) -> None:
        if (self.run is None) == (self.release is None):
            raise ValueError("name a run (RUN=runs/...) or a released model (RELEASE=c2i_B_256), one of the two")
        if self.use_ema and self.release is not None:
            raise ValueError("use_ema is for runs; the averaged weights of a released file are release.use_ema=true")
        if self.labels not in (None, *LABEL_PLANS):
            raise ValueError(f"labels must be one of {', '.join(LABEL_PLANS)}, not {self.labels!r}")
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, not {self.form!r}")
        resolution = 1 if self.resolution is None else self.resolution
        if min(self.num_images, self.batch_size, resolution) < 1:
            raise ValueError("num_images, batch_size and resolution must be positive")
        check_name(self.name, "name")
        check_precision(self.precision)

    @property
    def label_plan(self) -> str | None:
        """One of LABEL_PLANS; None where captions are shown."""
        if self.captions is not None:
            return None
        return self.labels or ("training" if self.run is not None else "uniform")

    def open_source(self) -> Source:
        """The run or release that samples are drawn from. Raises InputError if there is no run."""
        if self.release is not None:
            return Release(self.release, Path(self.artifacts))
        run = Run(Path(self.run), self.use_ema)
        _ = run.config  # raises InputError if there is no run
        return run

    def open_captions(self) -> TextFeatures | None:
        """The captions to be shown, encoded; None for a class model."""
        return None if self.captions is None else TextFeatures.load(Path(self.captions))


@dataclass(frozen=True)
class SamplePlan:
    """A model in evaluation mode on the CPU, the condition of each image, and the tokenizer that decodes its tokens."""

    model: ARModel
    conditions: Labels | TextFeatures  # by image index
    tokenizer: Tokenizer


def make_plan(config: SampleConfig, source: Source, captions: TextFeatures | None) -> SamplePlan:
    """The plan of a sample set; `source` and `captions` are those that `config` opens.

    Raises InputError for what is missing or does not fit together, before anything is drawn."""
    model, tokenizer = source.load_model(), source.load_tokenizer()
    check_text_model(model.backbone.config, config.captions)
    conditions: Labels | TextFeatures
    if captions is None:
        conditions = Labels(plan_labels(config.label_plan, source, config.num_images, config.seed))
    else:
        _check_captions(model, captions, config)
        conditions = captions
    check_guidance(model.backbone, config.sampling)
    _check_decoder(model, tokenizer)
    return SamplePlan(model, conditions, tokenizer)


def _check_captions(model: ARModel, captions: TextFeatures, config: SampleConfig) -> None:
    """Raise InputError unless the captions have the model's shape and there is one for each image."""
    check_features(model.backbone.config, captions, Path(config.captions))
    if config.num_images > len(captions):
        raise InputError(
            f"image i shows caption i, and {config.captions} holds {len(captions)} captions for {config.num_images} "
            f"images; set num_images={len(captions)}, or repeat captions in their file"
        )
    encoder = captions.config["encoder"]
    if config.release is not None and "flan-t5-xl" not in encoder:
        logger.warning("%s was encoded by %s; LlamaGen's text models know flan-t5-xl", config.captions, encoder)


def _check_decoder(model: ARModel, tokenizer: Tokenizer) -> None:
    """Raise InputError unless the tokenizer decodes the model's code grids."""
    if tokenizer.num_tokens != model.head.num_tokens:
        raise InputError(
            f"the tokenizer has {tokenizer.num_tokens} tokens, the model {model.head.num_tokens}; choose the tokenizer "
            "that the model was trained on"
        )
    positions = model.backbone.num_positions
    try:
        with torch.inference_mode():
            tokenizer.decode(torch.zeros(1, positions, dtype=torch.long))
    except RuntimeError as error:
        raise InputError(
            f"the tokenizer cannot decode the model's grids of {positions} tokens ({error}); choose the tokenizer that "
            "the model was trained on"
        ) from error


def plan_labels(kind: str, source: Source, num_images: int, seed: int) -> np.ndarray:
    """The label of each image by index: (M,) int64. Image i has the same label whatever M is.

    Raises InputError for the kind `training` of a release."""
    num_classes = source.num_classes
    if kind == "balanced":
        return np.arange(num_images) % num_classes
    population = np.arange(num_classes) if kind == "uniform" else source.label_population()
    return draw_labels(population, num_images, seed)


def sampling_precision(precision: str) -> str:
    """`auto` is bf16 on a GPU, as released, and fp32 on any CPU."""
    return "fp32" if precision == "auto" and not torch.cuda.is_available() else resolve_precision(precision)
