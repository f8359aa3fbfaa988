"""A run: its config, what it reads, and how it is loaded again."""

from dataclasses import dataclass, field
from pathlib import Path

from llamagen.backbones.config import ModelConfig
from llamagen.conditions.images import Conditions, Labels, check_features, check_text_model, open_captions
from llamagen.model import ARModel, DataShape, build_model
from llamagen.training.checkpoint import last_checkpoint, load_progress, load_weights
from llamagen.training.optim import OptimConfig
from llamagen.training.tracking import TrackingConfig
from masc.build import TreeConfig
from masc.heads import HeadConfig
from masc.layout import Layout
from masc.runtime.artifacts import InputError
from masc.runtime.codes import Codes, load_codes
from masc.runtime.device import check_precision
from masc.runtime.run import open_run, plain
from masc.tree import Partition
from vq.data import DataConfig


@dataclass(kw_only=True)
class TrainConfig:
    """One run. Everything but its `volatile` keys decides its result."""

    model: ModelConfig
    head: HeadConfig
    tree: TreeConfig
    data: DataConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    tokenizer_name: str  # not `tokenizer`, which Hydra takes for the group of that name
    steps: int
    batch_size: int  # images a step, over all processes and micro-batches
    captions: str | None = None  # a text model's: the folder of text features, one of `train` and one of `val`
    micro_batches: int = 1  # gradient accumulation: parts of a process's share of the batch
    ema_decay: float = 0.0  # of the averaged weights; 0: none are kept, as released
    seed: int = 0
    precision: str = "auto"
    evaluate_every: int = 1000  # steps
    log_every: int = 100
    checkpoint_every: int = 5000
    artifacts: str = "artifacts"
    run_dir: str | None = None  # None: runs/<model>/<head>[-on-<tree>]/seed<seed>

    @property
    def volatile(self) -> tuple[str, ...]:
        """Keys, by how they begin, that may differ when a run is gone on with: they change no result, or
        (`micro_batches`) are checked apart."""
        keys = (
            "tracking.",
            "log_every",
            "checkpoint_every",
            "artifacts",
            "run_dir",
            "captions",
            "data.path",
            "micro_batches",
            "tree.engine",
            "tree.coarsest",
        )
        return keys if self.head.uses_tree else (*keys, "tree.")

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), found {self.ema_decay}")
        for name in ("steps", "batch_size", "micro_batches", "evaluate_every", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, found {getattr(self, name)}")
        if self.checkpoint_every % self.log_every:  # else a resumed run would average over another window
            raise ValueError(
                f"checkpoint_every {self.checkpoint_every} must be a multiple of log_every {self.log_every}"
            )

    @property
    def label(self) -> str:
        """The run's head and, unless it is MASC's own, its tree."""
        on_tree = f"-on-{self.tree.name}" if self.head.uses_tree and self.tree.name != "masc" else ""
        return self.head.name + on_tree

    @property
    def directory(self) -> Path:
        return Path(self.run_dir or f"runs/{self.model.name}/{self.label}/seed{self.seed}")

    @property
    def layout(self) -> Layout:
        return Layout(Path(self.artifacts), self.tokenizer_name)


@dataclass(frozen=True)
class RunInputs:
    """What a run reads, checked to belong together."""

    train: Codes
    held_out: Codes
    conditions: dict[str, Conditions]  # by split: train, val
    partition: Partition | None
    parents: dict[str, str]  # kind -> SHA-256

    @property
    def shape(self) -> DataShape:
        return DataShape(self.train.num_tokens, len(self.train.class_names), self.train.grid)


def load_inputs(config: TrainConfig) -> RunInputs:
    """Codes, tree and their hashes. Raises InputError naming what is missing, in the order to make it."""
    check_text_model(config.model, config.captions)
    layout, missing = config.layout, []
    make_codes = f"make codes DATA={config.data.name} TOKENIZER={config.tokenizer_name}"
    codebook = layout.load_codebook() if layout.codebook.exists() else None
    if codebook is None:
        missing.append((layout.codebook, f"make codebook TOKENIZER={config.tokenizer_name}"))
    for split in ("train", "val"):
        if not (layout.codes(config.data.name, split) / "meta.json").exists():
            missing.append((layout.codes(config.data.name, split), make_codes))
    if config.head.uses_tree and codebook is not None:
        num_clusters = config.head.clusters(codebook.num_tokens)
        tree = layout.tree(config.tree, num_clusters)
        if not tree.exists():
            missing.append((tree, layout.how_to_make(config.tree, num_clusters)))
    elif config.head.uses_tree:
        make_tree = f"make tree TREE={config.tree.name} TOKENIZER={config.tokenizer_name}"
        missing.append((layout.codebook.parent / "trees", make_tree))
    if codebook is None or missing:
        files = ", ".join(str(path) for path, _ in missing)
        commands = dict.fromkeys(command for _, command in missing)
        raise InputError(f"training needs {files}, which are missing; make them with " + " && ".join(commands))
    train, held_out = (
        load_codes(layout.codes(config.data.name, split), codebook.meta.sha256, make_codes)
        for split in ("train", "val")
    )
    for codes, split in ((train, "train"), (held_out, "val")):
        views = config.data.views(split).names
        if codes.tokens.shape[1] != len(views):
            raise InputError(
                f"data.crops is {config.data.crops}, {len(views)} view(s) of an image, but "
                f"{layout.codes(config.data.name, split)} holds {codes.tokens.shape[1]}; remake it with `{make_codes}`"
            )
    parents = {"codebook": codebook.meta.sha256, "train codes": train.sha256, "val codes": held_out.sha256}
    conditions: dict[str, Conditions] = {"train": Labels(train.labels), "val": Labels(held_out.labels)}
    if config.captions is not None:
        for split, codes in (("train", train), ("val", held_out)):
            path = layout.codes(config.data.name, split)
            conditions[split] = open_captions(path, codes, Path(config.captions) / split)
            check_features(config.model, conditions[split].features, Path(config.captions) / split)
            parents[f"{split} captions"] = conditions[split].features.sha256
    partition = None
    if config.head.uses_tree:
        partition, parents["tree"] = layout.load_partition(config.tree, num_clusters, codebook)
    return RunInputs(train, held_out, conditions, partition, parents)


def is_trained(config: TrainConfig) -> bool:
    """Whether the run is at its last step. Raises InputError if another config trained in its directory."""
    directory = config.directory
    if load_progress(last_checkpoint(directory)).step < config.steps:
        return False
    open_run(directory, plain(config), load_inputs(config).parents, config.volatile)
    return True


def load_config_of(run_dir: Path) -> TrainConfig:
    """The config that a run was trained with; InputError if there is none."""
    from omegaconf import OmegaConf

    file = Path(run_dir) / "config.yaml"
    if not file.exists():
        raise InputError(f"no run at {run_dir} (no config.yaml); train it with `make train`")
    schema = OmegaConf.structured(TrainConfig)
    config = OmegaConf.to_object(OmegaConf.merge(schema, OmegaConf.load(file)))
    config.run_dir = str(run_dir)
    return config


def load_run(run_dir: Path) -> tuple[TrainConfig, RunInputs, ARModel]:
    """A trained run: its config, inputs and model with the last checkpoint's weights, on the CPU.

    Raises InputError if there is no run, it has no checkpoint, or an artefact it was made from changed."""
    config = load_config_of(run_dir)
    inputs = load_inputs(config)
    open_run(config.directory, plain(config), inputs.parents, config.volatile)
    model = build_model(config.model, config.head, inputs.shape, inputs.partition, config.seed)
    load_weights(last_checkpoint(config.directory), model)
    return config, inputs, model.eval()
