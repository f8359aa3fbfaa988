"""A row of a paper's table as a config, its stages' configs, its smoke version, and what this machine lacks for it."""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from stage import CONFIGS, load_config, named_config
from words import override

from llamagen.evaluation.images import EvalFidConfig
from llamagen.evaluation.lite import EvalLiteConfig
from llamagen.sampling.plan import SampleConfig
from llamagen.training.config import TrainConfig
from llamagen.training.plan import Plan, PlanConfig, make_plan
from masc.runtime.errors import InputError
from metrics.evaluators import NAME as INCEPTION
from reports.published import PublishedRow, published
from vq.hub.fetch import weights_path
from vq.readers import load_images

SMOKE = "-smoke"  # ends the names of smoke tests
# What a smoke test changes: embedded data, toy size, few samples, nothing to download.
SMOKE_VALUES: dict[str, Any] = {
    "recipe": "smoke",
    "data": "twemoji",
    "tokenizer": "emoji32",
    "weights": [],
    "guidance": [1.0, 2.0],
    "num_images": 32,
    "resolution": None,
    "steps": None,
}


@dataclass(kw_only=True)
class ExperimentConfig:
    """An experiment (configs/experiment), and how it is run here."""

    name: str
    about: str  # model and method in a line
    published: dict[str, Any]  # values that the published rows of its number have
    ours: bool = False  # this project's own: the published rows are those to compare with
    needs: list[str] = field(default_factory=list)  # what this project does not have yet
    run: str | None = None  # the experiment whose training this is; None: its own

    # The training: names in the groups of configs/, and values.
    model: str
    head: str
    loss: str = "ce"
    tree: str = "masc"
    recipe: str
    data: str
    tokenizer: str
    num_clusters: int | None = None  # K, of the loss if it has clusters, else of the head
    steps: int | None = None  # None: the recipe's
    settings: list[str] = field(default_factory=list)  # further KEY=VALUE of the training
    seed: int = 0

    # The measurement.
    weights: list[str]  # names of `make weights`
    protocols: list[str]  # of configs/protocol; the published rows are of the first
    reference: str | None = None  # in the place of the protocols' own
    labels: str
    num_images: int  # samples at each guidance
    guidance: list[float]  # a sample set each
    resolution: int | None = None  # pixels a side of samples; None: as decoded

    # This machine.
    smoke: bool = False
    data_path: str | None = None  # the folder of the images
    gpus: int = 1
    launch_device: str = "--multi_gpu"  # --cpu: processes on the CPU
    main_port: str = ""
    artifacts: str = "artifacts"
    runs: str = "runs"
    folder: str = "weights"  # of `make weights`

    def __post_init__(self) -> None:
        if 1.0 not in self.guidance or len(set(self.guidance)) < len(self.guidance):
            raise ValueError(f"guidance must be different values with 1.0 among them, found {self.guidance}")
        if not self.protocols or self.num_images < 2:
            raise ValueError("an experiment needs a protocol and at least 2 images")
        if not self.rows:
            raise ValueError(f"no row of eval/reports/published.yaml has the values {self.published}")

    @property
    def directory(self) -> Path:
        """The directory of the run."""
        smoke = SMOKE if self.smoke else ""
        return Path(self.runs) / "experiments" / f"{self.run or self.name}{smoke}" / f"s{self.seed}"

    @property
    def rows(self) -> list[PublishedRow]:
        """The published rows."""
        wanted = self.published.items()
        found = [row for row in published() if row.kind == "result"]
        return [row for row in found if all((vars(row) | row.values).get(key) == value for key, value in wanted)]

    @property
    def is_lite(self) -> bool:
        """Whether samples are measured in the embedded feature space: smoke tests without the Inception network."""
        return self.smoke and self.reference is None

    @property
    def sets(self) -> dict[str, float]:
        """Guidance by the name of its sample set; the name holds what else decides the samples."""
        words = f"{self.labels}-{self.num_images}"
        return {f"guidance-{guidance:g}-{words}": guidance for guidance in self.guidance}

    @property
    def train_overrides(self) -> list[str]:
        """The overrides of the training."""
        chosen = {key: getattr(self, key) for key in ("model", "head", "loss", "tree", "recipe", "data", "seed")}
        chosen |= {"tokenizer_name": self.tokenizer, "artifacts": self.artifacts, "run_dir": str(self.directory)}
        owner = "loss" if self.loss == "cluster" else "head"
        given = {f"{owner}.num_clusters": self.num_clusters, "steps": self.steps}
        chosen |= {key: value for key, value in given.items() if value is not None}
        return [*(override(key, value) for key, value in chosen.items()), *self.settings]

    def sample_overrides(self, name: str) -> list[str]:
        """The overrides of the drawing of a sample set. It is kept as tokens, which measuring decodes."""
        chosen = {"run": str(self.directory), "name": name, "labels": self.labels, "num_images": self.num_images}
        chosen |= {"form": "tokens", "resolution": self.resolution, "seed": self.seed}
        return [*(override(key, value) for key, value in chosen.items()), self._guided(name)]

    def fid_overrides(self, name: str) -> list[str]:
        """The overrides of the measuring of a sample set under the protocols."""
        chosen = {"run": str(self.directory), "samples": name, "labels": self.labels, "num_images": self.num_images}
        chosen |= {"seed": self.seed, "extractor.folder": self.folder, "extractor.artifacts": self.artifacts}
        added = [override(f"+protocol@protocols.{each}", each) for each in self.protocols]
        if self.reference is not None:
            added += [override(f"protocols.{each}.reference", self.reference) for each in self.protocols]
        return [*(override(key, value) for key, value in chosen.items()), self._guided(name), *added]

    def _guided(self, name: str) -> str:
        return override("sampling.guidance", self.sets[name])

    def train_config(self) -> TrainConfig:
        """The config of the training; InputError if there is none."""
        return load_config("train", TrainConfig, self.train_overrides)

    def sample_config(self, name: str) -> SampleConfig:
        """The config of the drawing of a sample set."""
        return load_config("sample", SampleConfig, self.sample_overrides(name))

    def fid_config(self, name: str) -> EvalFidConfig:
        """The config of the measuring of a sample set under the protocols."""
        return load_config("eval_fid", EvalFidConfig, self.fid_overrides(name))

    def lite_config(self) -> EvalLiteConfig:
        """The config of the measuring of all sample sets in the embedded feature space."""
        return load_config("eval_lite", EvalLiteConfig, self.lite_overrides)

    @property
    def lite_overrides(self) -> list[str]:
        """The overrides of that measuring."""
        return [override("run", str(self.directory)), override("samples", list(self.sets))]

    def plan(self) -> Plan:
        """What the training takes on one GPU, memory and a loss beside the head apart."""
        clusters = None if self.loss == "cluster" else self.num_clusters
        plain = dataclasses.replace(self, loss="ce", num_clusters=clusters)
        config = load_config("train", PlanConfig, plain.train_overrides)
        found = _plan(self.model, self.head, clusters, self.data, self.tokenizer)
        return dataclasses.replace(found, config=config)


@cache
def _plan(model: str, head: str, num_clusters: int | None, data: str, tokenizer: str) -> Plan:
    """A plan whose shapes and counts are those of every training of these; its config is of one of them."""
    words = [f"model={model}", f"head={head}", f"data={data}", f"tokenizer_name={tokenizer}"]
    words += [] if num_clusters is None else [f"head.num_clusters={num_clusters}"]
    config = load_config("train", PlanConfig, words)
    return make_plan(config, named_config("tokenizer", tokenizer), with_memory=False)


def smoke_version(config: ExperimentConfig) -> ExperimentConfig:
    """The same stages at toy size on the embedded data, with K at the same share of the tokens.

    With the Inception network in the weights' folder it is measured by FID, against the embedded images."""
    values = dict(SMOKE_VALUES, smoke=True, settings=[*config.settings, "tracking.mode=disabled"])
    if config.num_clusters is not None:
        whole, toy = (named_config("tokenizer", name).build().num_tokens for name in (config.tokenizer, "emoji32"))
        values["num_clusters"] = config.num_clusters * toy // whole
    try:
        weights_path(INCEPTION, Path(config.folder))
        values["reference"] = "twemoji-train"
    except InputError:
        pass
    return dataclasses.replace(config, **values)


def experiment_names() -> list[str]:
    """The names of all experiments, Table 2 before Table 10."""
    names = [file.stem for file in (CONFIGS / "experiment").glob("*.yaml")]
    return sorted(names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def load_experiment(name: str, *overrides: str) -> ExperimentConfig:
    """An experiment by its name. Raises InputError if there is none of the name, with those of a similar name."""
    return load_config("experiment", ExperimentConfig, [override("experiment", name), *overrides])


def missing_weights(config: ExperimentConfig) -> list[str]:
    """Those of the experiment's weights that are not there."""

    def is_there(name: str) -> bool:
        try:
            return weights_path(name, Path(config.folder)).exists()
        except InputError:
            return False

    return [name for name in config.weights if not is_there(name)]


def has_codes(config: TrainConfig) -> bool:
    """Whether both splits of the data are encoded."""
    folders = [config.layout.codes(config.data.name, split) for split in ("train", "val")]
    return all((folder / "meta.json").exists() for folder in folders)


def obstacles(config: ExperimentConfig, is_thorough: bool = True) -> Iterator[tuple[str, str]]:
    """What is missing and no stage makes: a name and the whole error, for images and GPUs.

    Images that are there are listed if `is_thorough`, which takes minutes for ImageNet."""
    import torch

    train = config.train_config()
    has_folder = config.data_path is not None and Path(config.data_path).is_dir()
    if not has_codes(train) and (is_thorough or not has_folder):
        try:
            for split in ("train", "val"):
                load_images(train.data.source, split, train.data.resolution, config.data_path)
        except InputError as error:
            yield f"images of {train.data.source}", str(error)
    found, wanted = torch.cuda.device_count(), config.gpus
    if found < wanted and config.launch_device != "--cpu" and not (config.smoke and wanted == 1):
        yield "a GPU", f"GPUS={wanted}, and this machine has {found} GPU(s); LAUNCH_DEVICE=--cpu trains on the CPU"


def check_known(config: ExperimentConfig) -> None:
    """Raise InputError for an experiment that needs what this project does not have."""
    if config.needs:
        raise InputError(
            f"{config.name} needs what this project does not have yet: {', '.join(config.needs)}; choose another NAME"
        )


def check_possible(config: ExperimentConfig) -> None:
    """Raise one InputError for everything that is missing and no stage makes, before any is started."""
    if found := [error for _, error in obstacles(config)]:
        raise InputError(f"{config.name} cannot be run here: {'; '.join(found)}")


def missing_here(config: ExperimentConfig) -> list[str]:
    """What this machine lacks, in a few words each: images, weights, GPUs, or what this project does not have."""
    if config.needs:
        return [f"needs {each}" for each in config.needs]
    return [*(name for name, _ in obstacles(config, False)), *(f"weights {name}" for name in missing_weights(config))]
