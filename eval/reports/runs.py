"""Runs read from their directories: curves, results, and times to a target."""

import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from masc.runtime.errors import InputError, MissingArtifact
from masc.runtime.reading import Damaged, advising, check_json, open_array, read_yaml
from masc.runtime.run import HISTOGRAM, Provenance, read_metrics, read_provenance, run_facts, upgrade_config
from metrics.results import Results
from metrics.stored import LARGEST
from reports.published import label_of

NATS = "val/nats_per_token"
LEVEL_NATS = re.compile(r"val/level_(\d+)_nats")
OF_A_DECISION = re.compile(r"val/(level_(\d+)_(nats|accuracy|entropy)|accuracy)")
BASELINE = "flat"  # label of the runs that others are compared with
AXES = ("images", "step", "seconds")
FILES = ("config.yaml", "provenance.json", "metrics.jsonl")
# Parts of metric names; these are tried first.
LOWER_IS_BETTER = ("nats", "loss", "FID", "FD-", "val/fd_", "val/fid_", "LPIPS")
HIGHER_IS_BETTER = ("IS", "precision", "recall", "CLIP score", "accuracy", "PSNR", "SSIM")
# Volatile keys of runs that were made before provenance.json listed them.
VOLATILE = (
    *("tracking.", "log_every", "checkpoint_every", "artifacts", "run_dir", "captions", "data.path", "micro_batches"),
    *("tree.engine", "tree.coarsest"),
)
Curve = dict[str, np.ndarray]  # `images`, `step`, `seconds` (NaN if unknown) and the metric, all (P,)


@dataclass(frozen=True)
class RunRecord:
    """The files of a trained run: config, provenance and metrics. `llamagen.runs.Run` opens the run itself."""

    directory: Path
    config: dict[str, Any]
    provenance: Provenance
    rows: list[dict[str, float]]

    @staticmethod
    def load(directory: Path) -> "RunRecord":
        """The run in a directory. Raises InputError if it holds no run with validation results."""
        directory = Path(directory)
        for name in FILES:
            if not (directory / name).exists():
                raise MissingArtifact("run", directory, f"no {name} in {directory}", **run_facts(directory))
        with advising("restore it, or train again"):
            config = upgrade_config(read_yaml(directory / "config.yaml"))
            provenance = read_provenance(directory)
            check_json(config, _Config, directory / "config.yaml")
            rows = _check_rows(read_metrics(directory / "metrics.jsonl"), directory)
        run = RunRecord(directory, config, provenance, rows)
        if not run.curve["step"].size:
            problem = f"{directory} has no validation results yet; resume its training"
            raise MissingArtifact("run", directory, problem, **run_facts(directory))
        return run

    @property
    def label(self) -> str:
        """The label in provenance.json; of an older run without one, from its config or else its directory's name."""
        if self.provenance.label is not None:
            return self.provenance.label
        head, tree = ((self.config.get(part) or {}).get("name") for part in ("head", "tree"))
        return label_of({"head": head, "tree": tree}) or self.directory.parent.name

    @property
    def volatile(self) -> tuple[str, ...]:
        """Prefixes of the config keys that change no result."""
        if self.provenance.volatile:
            return tuple(self.provenance.volatile)
        return VOLATILE if self.label != "flat" else (*VOLATILE, "tree.")

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @cached_property
    def curve(self) -> dict[str, np.ndarray]:
        """Validation curve: arrays `step`, `images`, `seconds` and NATS."""
        return self.series(NATS)

    def series(self, metric: str) -> Curve:
        """The curve of any metric of metrics.jsonl."""
        rows = [row for row in self.rows if metric in row]
        return {key: np.array([row[key] for row in rows], np.float64) for key in (*AXES, metric)}

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics in metrics.jsonl, in order of first appearance."""
        return [name for name in dict.fromkeys(key for row in self.rows for key in row) if name not in AXES]

    @property
    def final_nats(self) -> float:
        """The last held-out nats per token. Raises InputError if they are not finite."""
        nats = float(self.curve[NATS][-1])
        if not math.isfinite(nats):
            raise InputError(
                f"expected finite held-out nats per token at the end of {self.directory / 'metrics.jsonl'}, found "
                f"{nats}; train the run again, at a lower learning rate if it diverged, or leave it out"
            )
        return nats

    @property
    def final_level_nats(self) -> list[float]:
        """The share of each decision in `final_nats`, in order; empty for a head with one decision."""
        last = next(row for row in reversed(self.rows) if NATS in row)
        levels = {int(found[1]): last[name] for name in last if (found := LEVEL_NATS.fullmatch(name))}
        return [levels[level] for level in sorted(levels)]

    @property
    def train_nats(self) -> float:
        """Mean training loss of the last 5 rows, with dropout; NaN if there is none."""
        values = [row["train/nats_per_token"] for row in self.rows if "train/nats_per_token" in row]
        return float(np.mean(values[-5:])) if values else math.nan

    @property
    def histogram(self) -> np.ndarray | None:
        """How often each choice of the first decision is the most probable one, and is right, on held-out images:
        (2, V); None if the run was trained without diagnostics."""
        file = self.directory / HISTOGRAM
        if not file.exists():
            return None
        with advising("remove it: pages then leave it out"):
            return open_array(file, "u", (2, None))

    def results(self, name: str) -> dict[str, dict[str, Any]]:
        """Rows of eval/<name>.json by metric; empty if it was not measured."""
        file = self.directory / "eval" / f"{name}.json"
        return Results.load(file).by_metric if file.exists() else {}


@dataclass(frozen=True)
class _Section:
    name: str


@dataclass(frozen=True)
class _HeadSection:
    name: str
    num_clusters: int | None = None


@dataclass(frozen=True)
class _OptimSection:
    learning_rate: float
    table_scale: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.learning_rate) and math.isfinite(self.table_scale)):
            raise ValueError(f"expected finite rates, found {self.learning_rate} and {self.table_scale}")


@dataclass(frozen=True, kw_only=True)
class _Config:
    """The keys of config.yaml that the reports need."""

    seed: int
    model: _Section
    data: _Section
    head: _HeadSection | None = None
    tree: _Section | None = None
    tokenizer_name: str | None = None
    steps: int
    batch_size: int
    optim: _OptimSection


def _check_rows(rows: list[dict[str, float]], where: Path) -> list[dict[str, float]]:
    """The rows unchanged. Raises `Damaged` if one lacks an axis, or has a name or number that cannot be shown."""
    for number, row in enumerate(rows, start=1):
        too_large = any(isinstance(value, int) and abs(value) > LARGEST for value in row.values())
        if too_large or not set(AXES) <= set(row) or not all(map(str.isprintable, row)):
            raise Damaged(
                f"expected {', '.join(AXES)} in every row, printable names and no number over {LARGEST}, found "
                f"{str(row)[:60]!r} as number {number} in {where / 'metrics.jsonl'}"
            )
    return rows


def is_better_high(metric: str) -> bool | None:
    """Whether higher values of a metric are better; None if neither is (speed, learning rate) or it is unknown.

    Metrics of one decision have no better direction: heads decide about different things, clusters or tokens."""
    if OF_A_DECISION.fullmatch(metric):
        return None
    if any(word in metric for word in LOWER_IS_BETTER):
        return False
    return True if any(word in metric for word in HIGHER_IS_BETTER) else None


def reached_at(x: np.ndarray, y: np.ndarray, target: float, better_high: bool = False) -> float | None:
    """The first x at which the curve reaches `target`, linear between points; None if it never does.

    The curve reaches the target from above, or from below if `better_high`. Points that are not finite are skipped."""
    known = np.isfinite(x) & np.isfinite(y)
    sign = -1.0 if better_high else 1.0
    x, y, target = x[known], sign * y[known], sign * target
    below = np.flatnonzero(y <= target)
    if not below.size:
        return None
    first = int(below[0])
    if first == 0:
        return float(x[0])
    share = (y[first - 1] - target) / (y[first - 1] - y[first])
    return float(x[first - 1] + share * (x[first] - x[first - 1]))


@dataclass(frozen=True)
class TimeToTarget:
    """The times at which a baseline and a run reach a target, and their ratio in two forms."""

    baseline: float | None
    reached: float | None

    @property
    def saved(self) -> float | None:
        """1 - t / t0: the saved share of the baseline's time."""
        return None if self.reached is None or not self.baseline else 1 - self.reached / self.baseline

    @property
    def speedup(self) -> float | None:
        """t0 / t: how many times faster the run is."""
        return None if not self.reached or self.baseline is None else self.baseline / self.reached


def time_between(
    curve: Curve, baseline: Curve, metric: str, axis: str, target: float, better_high: bool = False
) -> TimeToTarget:
    """Times on `axis` at which a curve and its baseline first reach `target`."""
    t0, t = (reached_at(each[axis], each[metric], target, better_high) for each in (baseline, curve))
    return TimeToTarget(t0, t)


def time_to_target(run: RunRecord, baseline: RunRecord, axis: str) -> TimeToTarget:
    """Times on `axis` (`images` or `seconds`) at which the held-out nats of a run and of its baseline first reach the
    baseline's final value. The baseline's time is None if its last time on the axis is not known."""
    return time_between(run.curve, baseline.curve, NATS, axis, baseline.final_nats)
