"""What is sampled: from which model, with which labels, how."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from llamagen.build import ARModel
from llamagen.checkpoint import last_checkpoint, use_average
from llamagen.codes import LABELS, group_labels
from llamagen.filters import SamplingConfig
from llamagen.release import ReleaseConfig, load_release
from llamagen.run import load_run
from masc.artifacts import InputError
from masc.device import resolve_precision
from vq.interface import Tokenizer
from vq.pretrained import load_decoder, load_tokenizer, tokenizer_path

LABEL_PLANS = ("training", "balanced", "uniform")
FORMS = ("npz", "png")


@dataclass(kw_only=True)
class SampleConfig:
    """Which samples to draw, from a run or from a released model."""

    run: str | None = None  # its directory
    release: ReleaseConfig | None = None
    num_images: int = 1000
    batch_size: int = 100
    # `training`: drawn as often as in training; `balanced`: each class in turn, 50 a class of 50,000; `uniform`:
    # drawn with equal chances, LlamaGen's protocol. None: `training` for a run, `uniform` for a release.
    labels: str | None = None
    captions: str | None = None  # text features (`make text-features`): image i shows caption i
    resolution: int | None = None  # pixels a side; None: the release's, or what the tokenizer gives
    form: str = "npz"  # `npz`: one file in ADM's layout; `png`: a folder of pictures
    seed: int = 0
    precision: str = "auto"  # of the transformer; auto: bf16 on a GPU, as released, fp32 on a CPU
    compile: bool = False  # the decoding step by torch.compile, with caches of fixed length
    use_ema: bool = False  # a run's averaged weights
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    name: str = "default"  # of the sample set: runs/.../samples/<name>

    def __post_init__(self) -> None:
        if (self.run is None) == (self.release is None):
            raise ValueError("name a run (RUN=runs/...) or a released model (RELEASE=c2i_B_256), one of the two")
        if self.use_ema and self.release is not None:
            raise ValueError("use_ema is for runs; the averaged weights of a released file are release.use_ema=true")
        if self.labels not in (None, *LABEL_PLANS):
            raise ValueError(f"labels must be one of {', '.join(LABEL_PLANS)}, not {self.labels!r}")
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, not {self.form!r}")
        if self.num_images < 1 or self.batch_size < 1:
            raise ValueError("num_images and batch_size must be positive")

    @property
    def label_plan(self) -> str:
        return self.labels or ("training" if self.run is not None else "uniform")

    @property
    def directory(self) -> Path:
        return Path(self.run or f"runs/{self.release.name}") / "samples" / self.name


@dataclass(frozen=True)
class Subject:
    """What samples are drawn from."""

    model: ARModel
    num_classes: int
    population: np.ndarray | None  # labels as often as in training; None where that is unknown
    load_tokenizer: Callable[[], Tokenizer]


def load_subject(config: SampleConfig) -> Subject:
    """The run or release of a config, on the CPU. Raises InputError for what is missing or does not fit."""
    if config.release is not None:
        release = config.release
        tokenizer = release.tokenizer
        load = partial(load_tokenizer, tokenizer_path(tokenizer, Path()), tokenizer)
        return Subject(load_release(release), release.num_classes, None, load)
    train_config, inputs, model = load_run(Path(config.run))
    if config.use_ema:
        use_average(last_checkpoint(Path(config.run)), model)
    layout = train_config.layout
    load = partial(load_decoder, layout.load_codebook(), layout.root)
    return Subject(model, len(inputs.train.class_names), group_labels(inputs.train), load)


def plan_labels(kind: str, num_classes: int, population: np.ndarray | None, num_images: int, seed: int) -> np.ndarray:
    """The label of each image by index: (M,) int64. Image i has the same label whatever M is."""
    if kind == "balanced":
        return np.arange(num_images) % num_classes
    if kind == "uniform":
        population = np.arange(num_classes)
    if population is None:
        raise InputError("how often a released model saw each class is not known; choose labels=uniform or balanced")
    draws = [np.random.default_rng([seed, LABELS, index]).random() for index in range(num_images)]
    return population[(np.array(draws) * len(population)).astype(np.int64)]


def sampling_precision(precision: str) -> str:
    """`auto` is bf16 on a GPU, as released, and fp32 on any CPU."""
    return "fp32" if precision == "auto" and not torch.cuda.is_available() else resolve_precision(precision)
