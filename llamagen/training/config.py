"""Config of a run: everything that decides its result, and how a stored config is read."""

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamagen.backbones.config import BackboneConfig, ModelConfig, OwnModelConfig
from llamagen.training.checkpoint import last_checkpoint, load_progress
from llamagen.training.compute import ComputeConfig
from llamagen.training.optim import OptimConfig, may_lengthen
from llamagen.training.tracking import TrackingConfig
from llamagen.training.watching import WatchConfig
from masc.build import TreeConfig
from masc.heads.config import CONFIGS, HeadConfig
from masc.layout import Layout
from masc.losses.config import CONFIGS as LOSS_CONFIGS
from masc.losses.config import LossConfig
from masc.runtime.device import check_precision
from masc.runtime.errors import InputError
from masc.runtime.files import check_name
from masc.runtime.reading import advising, read_yaml, reason
from masc.runtime.run import LLAMAGEN, begin_run, check_run, is_begun, plain, record_steps, run_label, upgrade_config
from masc.runtime.targets import check_same_target, config_named
from vq.data import DataConfig

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class TrainConfig:
    """One run. Everything but its `volatile` keys decides its result."""

    model: BackboneConfig
    head: HeadConfig
    loss: LossConfig
    tree: TreeConfig
    data: DataConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    tokenizer_name: str  # not `tokenizer`, which Hydra takes for the group of that name
    steps: int
    batch_size: int  # images a step, over all processes and micro-batches
    train_share: float = 1.0  # of the groups of training images that the run sees; smaller shares lie in larger ones
    tuning_share: float = (
        0.0  # of those groups that are held out for validation in the place of `val`, which is not read
    )
    captions: str | None = None  # of a text model: the folder of text features, with `train` and `val` in it
    micro_batches: int = 1  # gradient accumulation: parts of a process's share of the batch
    ema_decay: float = 0.0  # of the averaged weights; 0: no average, as released
    init: str | None = None  # first weights: a release of configs/release, or the directory of a run
    frozen: list[str] = field(default_factory=list)  # names below which parameters are not trained
    seed: int = 0
    precision: str = "auto"
    evaluate_every: int = 1000  # steps
    log_every: int = 100
    checkpoint_every: int = 5000
    keep_last: int = 2  # checkpoints; the newest ones
    keep_every: int = 0  # steps; the checkpoints of its multiples stay for ever, 0: none
    from_checkpoint: str | None = None  # where a new run begins: a checkpoint of another run, or the run
    diagnostics: bool = True  # entropy, accuracy and spread of gradients at every validation; they decide nothing
    artifacts: str = "artifacts"
    run_dir: str | None = None  # None: runs/<model>/<head>[-on-<tree>][-with-<loss>]/seed<seed>

    @property
    def volatile(self) -> tuple[str, ...]:
        """Prefixes of config keys that may change when a run is resumed, because they do not affect the result.
        `micro_batches` is checked separately."""
        keys = (
            "tracking.",
            "compute.",
            "watch.",
            "optim.skip_bad_steps",
            "log_every",
            "checkpoint_every",
            "keep_",
            "from_checkpoint",
            "diagnostics",
            "artifacts",
            "run_dir",
            "captions",
            "init",
            "data.path",
            "micro_batches",
            "tree.engine",
            "tree.coarsest",
        )
        return keys if self.uses_tree else (*keys, "tree.")

    def __post_init__(self) -> None:
        check_name(self.tokenizer_name, "tokenizer_name")
        check_precision(self.precision)
        if not 0 < self.train_share <= 1 or not 0 <= self.tuning_share < 1:
            raise ValueError(
                "train_share must lie in (0, 1] and tuning_share in [0, 1), found "
                f"{self.train_share} and {self.tuning_share}"
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), found {self.ema_decay}")
        counts = "steps", "batch_size", "micro_batches", "evaluate_every", "log_every", "checkpoint_every"
        for name in (*counts, "keep_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, found {getattr(self, name)}")
        if self.watch.sample_every % self.log_every:  # else samples would divide the steps of a row of losses
            raise ValueError(
                f"watch.sample_every {self.watch.sample_every} must be a multiple of log_every {self.log_every}"
            )
        if self.keep_every < 0:
            raise ValueError(f"keep_every must be 0 or a number of steps, found {self.keep_every}")

    @property
    def label(self) -> str:
        """Name of the run in tables: its head, its tree unless that is MASC's own, its loss unless that is
        cross-entropy."""
        return run_label(self.head.name, self.tree.name if self.uses_tree else None, self.loss.name)

    @property
    def uses_tree(self) -> bool:
        """Whether the head or the loss reads a tree."""
        return self.head.uses_tree or self.loss.uses_tree

    def cuts(self, num_tokens: int) -> list[int]:
        """The numbers of clusters at which head and loss cut the tree of N tokens, coarsest first."""
        return sorted({*self.head.cuts(num_tokens), *self.loss.cuts(num_tokens)})

    @property
    def depends_on_shares(self) -> bool:
        """Whether dropout masks are drawn for a share of the batch at a time, not for each image: in heads with layers
        of torch's own, and perhaps in a backbone of your own."""
        return getattr(self.head, "dropout", 0) > 0 or self.model.target != LLAMAGEN

    @property
    def directory(self) -> Path:
        return Path(self.run_dir or f"runs/{self.model.name}/{self.label}/seed{self.seed}")

    def check_directory(self, parents: dict[str, str]) -> int | None:
        """The number of steps of the run in the directory, which this config can resume; None if there is no run.

        A start that trained nothing is no run. Raises InputError if another config or other parents made the run (see
        `check_run`), for fewer steps than it has, for more steps unless its learning rates so far do not depend on
        their number, and for another precision than the run's; `auto` is the run's own."""
        directory, progress = self.directory, load_progress(last_checkpoint(self.directory))
        if not is_begun(directory) and (directory / "provenance.json").exists():  # else config.yaml is not a run's
            return None
        stored = check_run(directory, plain(self), parents, (*self.volatile, "steps", "precision"))
        if stored is None:
            return None
        there = stored.get("steps")
        if progress.step and self.precision not in ("auto", progress.precision):
            raise InputError(
                f"{directory} was started in {progress.precision}, now precision={self.precision}; leave precision "
                f"out or set precision={progress.precision}, or choose another directory with RUN_DIR=..."
            )
        if there == self.steps:
            return there
        if type(there) is not int or there > self.steps:
            raise InputError(
                f"{directory} holds a run of {there} steps, now {self.steps}; a run cannot be shortened: set "
                f"steps={there}, or choose another directory with RUN_DIR=..."
            )
        if not may_lengthen(self.optim, progress.step) or self.loss.depends_on_length:
            raise InputError(
                f"{directory} holds a run of {there} steps, now {self.steps}; its learning rate or its loss changes "
                f"towards the last step, so a run of {self.steps} steps differs from the first such step on. Set "
                f"steps={there}, or train the longer run with RUN_DIR=...; only at a constant rate "
                "(optim.final_share=1) and with a constant loss can a run be lengthened"
            )
        return there

    def open_directory(self, parents: dict[str, str], began_at: dict[str, Any] | None = None) -> None:
        """Create the run's directory, or lengthen its run to the steps of this config; see `check_directory`."""
        there = self.check_directory(parents)
        if there is None:
            begin_run(self.directory, plain(self), parents, self.volatile, self.label, began_at)
        elif there != self.steps:
            logger.info("lengthening %s from %d to %d steps", self.directory, there, self.steps)
            record_steps(self.directory, self.steps)

    @property
    def layout(self) -> Layout:
        return Layout(Path(self.artifacts), self.tokenizer_name)


def load_config(file: Path) -> TrainConfig:
    """The config in a run's config.yaml, of this version or an earlier one.

    Its values are data: `${...}` is text, and the class of a backbone of one's own must be that of the config of the
    same name on this machine. Raises InputError for a file that is missing or damaged, a class that no config names, a
    head that is not known here, or a key or value that does not fit."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    with advising("copy it back from where the run was trained"):
        stored = upgrade_config(read_yaml(file))
    sections = {part: stored.get(part) for part in ("model", "head", "tree", "data", "optim", "tracking")}
    for part, section in sections.items():
        if not isinstance(section, dict):
            raise InputError(f"expected the section {part} in {file}, found {section!r:.60}; copy the file back")
    model, head = sections["model"], sections["head"]
    loss = stored.get("loss")
    kind = loss.get("kind") if isinstance(loss, dict) else loss
    if not isinstance(loss, dict) or not isinstance(kind, str) or kind not in LOSS_CONFIGS:
        raise InputError(f"{file} names the loss {kind!r:.60}; this version has {', '.join(LOSS_CONFIGS)}")
    if not isinstance(head.get("kind"), str) or head["kind"] not in CONFIGS:
        raise InputError(f"{file} names the head {head.get('kind')!r:.60}; this version has {', '.join(CONFIGS)}")
    if model.get("target", LLAMAGEN) != LLAMAGEN:
        check_same_target(model["target"], config_named("model", model.get("name"), file), file)
    schema = OmegaConf.structured(TrainConfig)
    schema.model = OmegaConf.structured(OwnModelConfig if "options" in model else ModelConfig)
    schema.head = OmegaConf.structured(CONFIGS[head["kind"]])
    schema.loss = OmegaConf.structured(LOSS_CONFIGS[kind])
    try:
        return OmegaConf.to_object(OmegaConf.merge(schema, _as_text(stored)))
    except (OmegaConfBaseException, ValueError, OverflowError) as error:
        raise InputError(f"{file} holds a config of another version: {reason(error)}") from error


def _as_text(content: Any) -> Any:
    """Plain values with every `${` escaped, so that OmegaConf reads it as text and resolves nothing."""
    if isinstance(content, dict):
        return {key: _as_text(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_as_text(value) for value in content]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", content) if isinstance(content, str) else content
