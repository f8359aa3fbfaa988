"""Config of a run: everything that decides its result."""

from dataclasses import dataclass, field
from pathlib import Path

from llamagen.backbones.config import ModelConfig
from llamagen.training.optim import OptimConfig
from llamagen.training.tracking import TrackingConfig
from masc.build import TreeConfig
from masc.heads.config import HeadConfig
from masc.layout import Layout
from masc.runtime.device import check_precision
from masc.runtime.run import run_label
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
        return run_label(self.head.name, self.tree.name if self.head.uses_tree else None)

    @property
    def directory(self) -> Path:
        return Path(self.run_dir or f"runs/{self.model.name}/{self.label}/seed{self.seed}")

    @property
    def layout(self) -> Layout:
        return Layout(Path(self.artifacts), self.tokenizer_name)
