"""Reading runs from their directories: curves, results, and the time each took to a target."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from masc.artifacts import InputError
from masc.run import read_metrics
from metrics.results import Results

NATS = "val/nats_per_token"


@dataclass(frozen=True)
class Run:
    """One trained run on disk."""

    directory: Path
    config: dict[str, Any]
    provenance: dict[str, Any]
    rows: list[dict[str, float]]

    @staticmethod
    def load(directory: Path) -> "Run":
        """Raises InputError if the directory holds no run with validation results."""
        directory = Path(directory)
        for name in ("config.yaml", "provenance.json", "metrics.jsonl"):
            if not (directory / name).exists():
                raise InputError(f"no {name} in {directory}; train the run with `make train`")
        run = Run(
            directory,
            yaml.safe_load((directory / "config.yaml").read_text()),
            json.loads((directory / "provenance.json").read_text()),
            read_metrics(directory / "metrics.jsonl"),
        )
        if not run.curve["step"].size:
            raise InputError(f"{directory} has no validation results yet; go on training it with `make train`")
        return run

    @property
    def label(self) -> str:
        """Head, and tree where it is not MASC's own: the name of the run's directory."""
        return self.directory.parent.name

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @cached_property
    def curve(self) -> dict[str, np.ndarray]:
        """Validation curve: arrays `step`, `images`, `seconds` and NATS."""
        rows = [row for row in self.rows if NATS in row]
        return {key: np.array([row[key] for row in rows]) for key in ("step", "images", "seconds", NATS)}

    @property
    def final_nats(self) -> float:
        return float(self.curve[NATS][-1])

    @property
    def final_level_nats(self) -> list[float]:
        """The share of each decision in `final_nats`; empty for a head with one."""
        last = next(row for row in reversed(self.rows) if NATS in row)
        return [last[key] for key in sorted(last) if key.startswith("val/level_")]

    @property
    def train_nats(self) -> float:
        """Training loss of the last rows logged, dropout on."""
        values = [row["train/nats_per_token"] for row in self.rows if "train/nats_per_token" in row]
        return float(np.mean(values[-5:]))

    def results(self, name: str) -> dict[str, dict[str, Any]]:
        """Rows of eval/<name>.json by metric; empty if it was not measured."""
        file = self.directory / "eval" / f"{name}.json"
        return Results.load(file).by_metric if file.exists() else {}


def reached_at(x: np.ndarray, y: np.ndarray, target: float) -> float | None:
    """Where the curve first comes down to `target`, linear between points; None if it never does."""
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
    """How soon a run reaches a value that its baseline reaches at `baseline`; both ways to say it."""

    baseline: float
    reached: float | None

    @property
    def saved(self) -> float | None:
        """1 - t / t0: the share of the baseline's time that is saved."""
        return None if self.reached is None else 1 - self.reached / self.baseline

    @property
    def speedup(self) -> float | None:
        """t0 / t: how many times as fast."""
        return None if not self.reached else self.baseline / self.reached


def time_to_target(run: Run, baseline: Run, axis: str) -> TimeToTarget:
    """Time on `axis` (`images` or `seconds`) at which a run reaches the baseline's final value, against the
    time at which the baseline itself first does."""
    target = baseline.final_nats
    at = reached_at(baseline.curve[axis], baseline.curve[NATS], target)
    assert at is not None, "a curve reaches its own last value"
    return TimeToTarget(at, reached_at(run.curve[axis], run.curve[NATS], target))
