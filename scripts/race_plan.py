"""What a race consists of: its config, its contenders, and the run of each at a seed."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from pipeline import PlannedRun
from stage import load_config
from tuning import Grid
from words import override

from llamagen.model import build_model, count_parameters
from llamagen.training.config import TrainConfig
from llamagen.training.footprint import without_numbers
from llamagen.training.inputs import load_inputs
from masc.runtime.errors import InputError
from masc.runtime.files import check_name
from masc.runtime.run import flatten, plain
from reports.race.rows import Cell
from reports.runs import BASELINE

EQUAL = ("steps", "seconds", "parameters")
PARAMETERS_WITHIN = 0.02  # of flat's number, at equal parameters
# Prefixes of keys that all contenders share: what is read, where the run starts, how much it sees, when it is measured.
SHARED = (
    *("data", "tokenizer_name", "captions", "batch_size", "micro_batches", "steps", "evaluate_every", "train_share"),
    *("tuning_share", "init", "from_checkpoint", "frozen", "ema_decay", "precision"),
)
PLACE = ("seed", "run_dir", "artifacts")
# What a contender or a race chooses by keys of its own, or not at all.
CHOSEN = ("model", "head", "loss", "tree")
SET_BY_RACE = {"steps", "train_share", "tuning_share", "data", "tokenizer_name", *PLACE, *CHOSEN}


@dataclass(kw_only=True)
class ContenderConfig:
    """One contender: choices of configs/head, loss and tree, further overrides, and keys to tune of its own."""

    head: str = "flat"
    loss: str = "ce"
    tree: str = "masc"
    overrides: list[str] = field(default_factory=list)  # KEY=VALUE
    tuning: dict[str, list[Any]] = field(default_factory=dict)  # beside those of the race, within the same budget


@dataclass(kw_only=True)
class RaceConfig:
    """The config of `make race`."""

    name: str
    model_name: str = "llamagen-micro"
    data_name: str = "twemoji"
    tokenizer_name: str = "emoji32"
    contenders: dict[str, ContenderConfig] = field(default_factory=dict)  # by name; flat is the baseline
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    shares: list[float] = field(default_factory=lambda: [1.0])  # of the training data
    lengths: list[int] = field(default_factory=lambda: [600])  # steps of flat's runs
    equal: str = "steps"  # one of EQUAL: what contenders have in common with flat
    # The grid of every contender (tuning.py): a key, or several with commas between that take the same value.
    tuning: dict[str, list[Any]] = field(default_factory=dict)
    tuning_budget: int = 1  # runs of each contender in each cell
    tuning_seed: int = 1000
    tuning_share: float = 0.1  # of the training groups, held out for tuning in the place of the reported images
    num_samples: int = 0  # of each run, for FD-lite0; 0: none
    guidance: float = 2.0  # of the samples
    replacement: bool = False  # measure the semantic replacement of every contender's tree
    overrides: list[str] = field(default_factory=list)  # KEY=VALUE for every run
    num_workers: int | None = None  # runs at the same time; None: one for each GPU, without one for each core
    artifacts: str = "artifacts"
    runs: str = "runs/race"
    records: str = "records"

    def __post_init__(self) -> None:
        for name in (self.name, *self.contenders):
            check_name(name, "the name of a race or a contender")
        baseline = self.contenders.get(BASELINE)
        if baseline is None or (baseline.head, baseline.loss) != ("flat", "ce"):
            raise ValueError(f"a race needs the contender {BASELINE} with head flat and loss ce; it is the baseline")
        _check_numbers(self)
        if len(set(self.seeds)) < 2 or len(set(self.seeds)) < len(self.seeds) or self.tuning_seed in self.seeds:
            raise ValueError(
                "a race needs two seeds or more (five to decide much), each once, and none that is tuning_seed "
                f"{self.tuning_seed}; found SEEDS={','.join(map(str, self.seeds))}"
            )
        if self.equal not in EQUAL:
            raise ValueError(f"equal must be one of {', '.join(EQUAL)}, not {self.equal!r}")
        if self.tuning_budget < 1 or not 0 < self.tuning_share < 1 or self.num_samples < 0:
            raise ValueError(
                "a race needs tuning_budget >= 1, 0 < tuning_share < 1 and num_samples >= 0, found "
                f"{self.tuning_budget}, {self.tuning_share} and {self.num_samples}"
            )
        if own := [key for key in map(_key, self.overrides) if key in SET_BY_RACE]:
            raise ValueError(f"the overrides of a race cannot set {own[0]}: the race's own keys or its contenders do")
        for name, contender in self.contenders.items():
            grids = *contender.tuning, *self.tuning
            tuned = [key.strip() for keys in grids for key in keys.split(",")]
            twice = sorted({key for key in tuned if tuned.count(key) > 1})
            empty = [key for key, values in self.grid(name).items() if not values]
            if twice or empty:
                raise ValueError(f"{name} must tune each key once and with a value at least, found {twice or empty}")
            for key in map(_key, [*contender.overrides, *tuned]):
                if key.startswith((*SHARED, *PLACE)) or key in (*CHOSEN, "recipe", "optim", "tuned"):
                    raise ValueError(
                        f"{name} cannot be compared with {BASELINE} if it sets {key}; take {key} out of its overrides "
                        "and tuning. Head, loss and tree are chosen by the contender's keys of these names"
                    )

    @property
    def directory(self) -> Path:
        return Path(self.runs) / self.name

    @property
    def cells(self) -> list[Cell]:
        return [Cell(share, length) for share in self.shares for length in self.lengths]

    @property
    def entries(self) -> Iterator[tuple[Cell, str]]:
        """Every contender in every cell; each is tuned on its own."""
        return ((cell, name) for cell in self.cells for name in self.contenders)

    def grid(self, name: str) -> Grid:
        """The keys that a contender tunes: its own first, because a small budget reaches the first keys only."""
        return {**self.contenders[name].tuning, **self.tuning}


def _key(override: str) -> str:
    """The key of KEY=VALUE, +KEY=VALUE or GROUP@PACKAGE=NAME."""
    return re.match(r"[+~\s]*([^=@/]*)", override)[1].strip()


def _check_numbers(config: RaceConfig) -> None:
    """Raise ValueError for an empty or wrong list of seeds, shares or lengths, and for a wrong number of workers."""
    for name, values, fits, words in (
        ("seeds", config.seeds, lambda seed: seed >= 0, "of 0 or more"),
        ("shares", config.shares, lambda share: 0 < share <= 1, "in (0, 1]"),
        ("lengths", config.lengths, lambda length: length >= 1, "of 1 step or more"),
    ):
        if not values or not all(map(fits, values)) or len(set(values)) < len(values):
            raise ValueError(f"{name} must be numbers {words}, one at least and each once, found {list(values)}")
    if config.num_workers is not None and config.num_workers < 1:
        raise ValueError(f"num_workers must be 1 or more, or null for one each GPU or core, found {config.num_workers}")


def plan_tuning(config: RaceConfig, cell: Cell, name: str, values: dict[str, Any]) -> PlannedRun:
    """A run that tries values; its validation is on training groups that are held out from it."""
    point = ",".join(f"{key.partition(',')[0]}-{value}" for key, value in values.items()) or "start"
    place = f"tuning/{point}/seed{config.tuning_seed}"
    return _plan(config, cell, name, values, config.tuning_seed, cell.length, place, config.tuning_share)


def plan_run(config: RaceConfig, cell: Cell, name: str, values: dict[str, Any], seed: int, steps: int) -> PlannedRun:
    """A run of the race itself, with the values that tuning chose."""
    return _plan(config, cell, name, values, seed, steps, f"seed{seed}", 0.0)


def _plan(
    config: RaceConfig,
    cell: Cell,
    name: str,
    values: dict[str, Any],
    seed: int,
    steps: int,
    place: str,
    tuning_share: float,
) -> PlannedRun:
    contender = config.contenders[name]
    overrides = [
        override("model", config.model_name),
        override("data", config.data_name),
        override("tokenizer_name", config.tokenizer_name),
        override("head", contender.head),
        override("loss", contender.loss),
        override("tree", contender.tree),
        *("tracking.mode=disabled", "diagnostics=false", "keep_last=1"),
        *config.overrides,
        *contender.overrides,
        *(override(key, value) for keys, value in values.items() for key in keys.split(",")),
        override("artifacts", config.artifacts),
        override("steps", steps),
        override("train_share", cell.share),
        override("tuning_share", tuning_share),
    ]
    directory = str(config.directory / f"share-{cell.share:g}-steps-{cell.length}" / name / place)
    run = replace(_compose(*overrides), seed=seed, run_dir=directory)
    return PlannedRun(run, [*overrides, override("seed", seed), override("run_dir", directory)])


@cache
def _compose(*overrides: str) -> TrainConfig:
    """The config of overrides; seeds share it, because Hydra takes a quarter of a second."""
    return load_config("train", TrainConfig, list(overrides))


def check_contenders(runs: dict[str, TrainConfig]) -> None:
    """Raise InputError for a contender that reads or measures something else than the baseline does."""
    theirs = flatten(plain(runs[BASELINE]))
    for name, config in runs.items():
        mine = flatten(plain(config))
        for key in sorted(theirs | mine):
            if key.startswith(SHARED) and mine.get(key) != theirs.get(key):
                raise InputError(
                    f"{name} cannot be compared with {BASELINE}: its {key} is {mine.get(key)!r}, {BASELINE}'s is "
                    f"{theirs.get(key)!r}; a config that its head, loss or tree chooses sets it"
                )


def parameters_of(config: TrainConfig) -> int:
    """Number of parameters of a run's model. Raises InputError if an input of the run is missing."""
    inputs = load_inputs(config)
    with without_numbers():
        return count_parameters(
            build_model(config.model, config.head, inputs.shape, inputs.tree, config.seed, inputs.counts)
        )


def check_parameters(counts: dict[str, int]) -> None:
    """Raise InputError unless all contenders have about as many parameters as the baseline.

    A width that gives the same number is the user's choice: it changes heads, rates and speed as well."""
    far = {name: count for name, count in counts.items() if abs(count / counts[BASELINE] - 1) > PARAMETERS_WITHIN}
    if far:
        listed = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        raise InputError(
            f"equal=parameters needs numbers within {PARAMETERS_WITHIN:.0%} of {BASELINE}'s, found {listed}; set "
            f"model.dim in the overrides of {', '.join(far)}"
        )


def equal_seconds(length: int, seconds: dict[str, float]) -> dict[str, int]:
    """Steps of each contender that take as long as `length` steps of the baseline; `seconds` are those of a step."""
    return {name: max(1, math.floor(length * seconds[BASELINE] / own + 0.5)) for name, own in seconds.items()}
