"""Runs read from their directories: curves, results, and times to a target."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from masc.runtime.errors import InputError, MissingArtifact
from masc.runtime.run import read_metrics, run_facts, upgrade_config
from metrics.results import Results
from reports.published import label_of

NATS = "val/nats_per_token"
LEVEL_NATS = re.compile(r"val/level_(\d+)_nats")
BASELINE = "flat"  # label of the runs that others are compared with
AXES = ("images", "step", "seconds")
FILES = ("config.yaml", "provenance.json", "metrics.jsonl")
LOWER_IS_BETTER = ("nats", "loss", "FID", "FD-", "LPIPS")  # parts of metric names; these are tried first
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
    provenance: dict[str, Any]
    rows: list[dict[str, float]]

    @staticmethod
    def load(directory: Path) -> "RunRecord":
        """The run in a directory. Raises InputError if it holds no run with validation results."""
        directory = Path(directory)
        for name in FILES:
            if not (directory / name).exists():
                raise MissingArtifact("run", directory, f"no {name} in {directory}", **run_facts(directory))
        try:
            config = yaml.safe_load((directory / "config.yaml").read_text())
            config = upgrade_config(config) if isinstance(config, dict) else config
            provenance = json.loads((directory / "provenance.json").read_text())
            rows = read_metrics(directory / "metrics.jsonl")
        except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError) as error:
            words = " ".join(str(error).split())
            raise InputError(
                f"a file of {directory} is truncated or not of a run ({words}); restore it, or train again"
            ) from error
        _check_config(config, provenance, directory)
        run = RunRecord(directory, config, provenance, _check_rows(rows, directory))
        if not run.curve["step"].size:
            problem = f"{directory} has no validation results yet; resume its training"
            raise MissingArtifact("run", directory, problem, **run_facts(directory))
        return run

    @property
    def label(self) -> str:
        """The label in provenance.json; of an older run without one, from its config or else its directory's name."""
        if "label" in self.provenance:
            return self.provenance["label"]
        head, tree = ((self.config.get(part) or {}).get("name") for part in ("head", "tree"))
        return label_of({"head": head, "tree": tree}) or self.directory.parent.name

    @property
    def volatile(self) -> tuple[str, ...]:
        """Prefixes of the config keys that change no result."""
        if "volatile" in self.provenance:
            return tuple(self.provenance["volatile"])
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
        return float(self.curve[NATS][-1])

    @property
    def final_level_nats(self) -> list[float]:
        """The share of each decision in `final_nats`, in order; empty for a head with one decision."""
        last = next(row for row in reversed(self.rows) if NATS in row)
        levels = {int(found[1]): last[name] for name in last if (found := LEVEL_NATS.fullmatch(name))}
        return [levels[level] for level in sorted(levels)]

    @property
    def train_nats(self) -> float:
        """Mean training loss of the last 5 rows, with dropout."""
        values = [row["train/nats_per_token"] for row in self.rows if "train/nats_per_token" in row]
        return float(np.mean(values[-5:]))

    def results(self, name: str) -> dict[str, dict[str, Any]]:
        """Rows of eval/<name>.json by metric; empty if it was not measured."""
        file = self.directory / "eval" / f"{name}.json"
        return Results.load(file).by_metric if file.exists() else {}


def _check_config(config: Any, provenance: Any, where: Path) -> None:
    """Raise InputError if config or provenance lacks what the reports need."""
    found = config if isinstance(config, dict) else {}
    parts = [part for part in ("model", "data", "head", "tree") if part in found or part in ("model", "data")]
    named = [isinstance(found.get(part), dict) and "name" in found[part] for part in parts]
    if not all(named) or not isinstance(found.get("seed"), int):
        raise InputError(
            f"expected the config of a run (model.name, data.name, seed) in {where / 'config.yaml'}; restore the file, "
            "or train again"
        )
    found = provenance if isinstance(provenance, dict) else {"label": None}
    label, volatile = found.get("label", ""), found.get("volatile", [])
    is_named = isinstance(label, str) and isinstance(volatile, list)
    if not is_named or not all(isinstance(key, str) for key in volatile):
        raise InputError(f"expected names and values in {where / 'provenance.json'}; restore the file, or train again")


def _check_rows(rows: list[Any], where: Path) -> list[dict[str, float]]:
    """The rows unchanged. Raises InputError if one lacks an axis or holds another value than a number."""
    for number, row in enumerate(rows, start=1):
        if not (
            isinstance(row, dict) and set(AXES) <= set(row) and all(isinstance(v, int | float) for v in row.values())
        ):
            raise InputError(
                f"expected {', '.join(AXES)} and numbers in every row, found {str(row)[:60]!r} as number {number} in "
                f"{where / 'metrics.jsonl'}; correct or remove the line"
            )
    return rows


def is_better_high(metric: str) -> bool | None:
    """Whether higher values of a metric are better; None if neither is (speed, learning rate) or it is unknown."""
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
    baseline's final value."""
    time = time_between(run.curve, baseline.curve, NATS, axis, baseline.final_nats)
    assert time.baseline is not None, "a curve reaches its own last value"
    return time
