"""Training curves of any metric, from metrics.jsonl and from sample sets of several steps, and times to a target.

Lines share a chart only if they were measured alike: on the same held-out codes, or by the same protocol."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from masc.runtime.errors import InputError
from metrics.results import Protocol
from reports.comparison import Entry, captions_text, group_by, heading, settings_text
from reports.runs import AXES, BASELINE, NATS, OF_A_DECISION, Curve, is_better_high, time_between
from reports.subjects import Subject

IN_RESULTS = {"images": "images_seen", "step": "step", "seconds": "seconds"}  # axis: key of a protocol
OVER_TIME = tuple(IN_RESULTS.values())
COLOURS = ("#4a5568", "#d1495b", "#2e7fb8", "#e0982f", "#6a994e", "#8e6bbf", "#20a39e", "#a0785a")
OF_DRAWN = re.compile(r"val/(fd_lite0|fid)_(\w+)")
DISTANCES = {"fd_lite0": "FD-lite0", "fid": "FID"}
# Metrics that a training logs under a second name -> that name, which charts show.
REPEATED = {f"val/level_0_{name}": f"val/{name}" for name in ("accuracy", "entropy")}
METRIC_WORDS = {
    NATS: "held-out nats per token",
    "train/nats_per_token": "training nats per token",
    "train/gradient_norm": "norm of the gradient before clipping",
    "train/learning_rate": "learning rate",
    "train/skipped_steps": "bad steps left out",
    "speed/images_per_second": "images per second",
    "speed/tokens_per_second": "tokens per second",
    "speed/mfu": "model FLOPs utilisation",
    "speed/data_wait": "share of time waiting for data",
    "speed/save_seconds": "seconds waiting for a checkpoint",
    "val/entropy": "normalised entropy of the first decision",
    "val/accuracy": "accuracy of the first decision",
    "val/used_choices": "used share of the first decision's choices",
    "val/gradient_variance": "variance of gradients",
    "val/gradient_noise": "variance of gradients / squared mean",
}


def metric_words(metric: str) -> str:
    """A metric in words; its name if it has none."""
    level = OF_A_DECISION.fullmatch(metric)
    if level is not None and level[2]:
        return f"held-out {level[3]} of decision {level[2]}"
    drawn = OF_DRAWN.fullmatch(metric)
    if drawn is not None:
        return f"{DISTANCES[drawn[1]]} of {drawn[2]} samples"
    return METRIC_WORDS.get(metric, metric)


def colours(labels: list[str]) -> dict[str, str]:
    """A fixed colour for each run label, in order of first appearance."""
    return {label: COLOURS[index % len(COLOURS)] for index, label in enumerate(dict.fromkeys(labels))}


@dataclass(kw_only=True)
class CurvesConfig:
    """Runs, and the choice of their curves, of a page."""

    runs: str = "runs"  # folder of runs and sample sets
    metrics: list[str] = field(default_factory=list)  # metrics with curves; empty: all
    targets: dict[str, float] = field(default_factory=dict)  # by metric; default: the baseline's final value
    baseline: str = BASELINE  # label of the runs that times are compared with
    output: str = "report"

    def __post_init__(self) -> None:
        bad = [name for name, value in self.targets.items() if not math.isfinite(value)]
        if bad:
            raise ValueError(f"targets must be finite numbers, found {self.targets[bad[0]]} for {bad[0]}")


@dataclass(frozen=True)
class Line:
    """One metric of one run over training."""

    subject: Subject
    metric: str
    alike: Any  # lines with equal values share a chart
    title: str  # of the chart, in words
    words: str  # label of the vertical axis
    settings: dict[str, Any]  # of the samples; empty for a metric of metrics.jsonl
    curve: Curve

    @property
    def final(self) -> float:
        return float(self.curve[self.metric][np.isfinite(self.curve[self.metric])][-1])


def all_lines(subjects: list[Subject], found: list[Entry], wanted: list[str]) -> list[Line]:
    """Lines of at least two points, for the metrics `wanted` or for all if it is empty.

    All leaves out second names of a metric (REPEATED). Held-out nats come first, then metrics with a better direction.
    Raises InputError for a metric without a line."""
    lines = [line for subject in subjects for line in _from_log(subject)]
    lines += _from_results(found)
    there = dict.fromkeys(line.metric for line in lines)
    missing = [metric for metric in wanted if metric not in there]
    if missing:
        raise InputError(
            f"no run has {', '.join(missing)} at two points or more; metrics can be: {', '.join(there) or 'none'}"
        )
    shown = (metric for metric in there if REPEATED.get(metric) not in there)
    order = wanted or sorted(shown, key=lambda metric: (metric != NATS, is_better_high(metric) is None))
    return [line for metric in order for line in lines if line.metric == metric]


def _from_log(subject: Subject) -> Iterator[Line]:
    if subject.run is None:
        return
    config, parents = subject.run.config, subject.run.provenance.parents
    tokenizer = config.get("tokenizer_name")
    title = ", ".join(word for word in (config["data"]["name"], tokenizer and f"tokenizer {tokenizer}") if word)
    for metric in subject.run.metrics:
        curve = subject.run.series(metric)
        if np.isfinite(curve[metric]).sum() > 1:
            words = metric_words(metric)
            judged_by = parents.get("val codes"), config.get("tuning_share", 0)
            yield Line(subject, metric, (title, *judged_by), title, words, {}, curve)


def _from_results(found: list[Entry]) -> Iterator[Line]:
    """Lines from sample sets of one run that differ only in the training step."""
    timed = [e for e in found if e.subject.run is not None and isinstance(e.row["protocol"].get("step"), int)]

    def settings(entry: Entry) -> dict[str, Any]:
        return {k: v for k, v in entry.settings.items() if k not in OVER_TIME} | {"seed": entry.protocol.get("seed")}

    for group in group_by(timed, lambda e: (str(e.subject.place), e.metric, e.key, e.column, settings(e))):
        points = {entry.row["protocol"]["step"]: entry.row for entry in group}  # equal steps are one point
        if len(points) < 2:
            continue
        first, rows = group[0], [points[step] for step in sorted(points)]
        curve = {
            axis: np.array([row["protocol"].get(key, np.nan) for row in rows], np.float64)
            for axis, key in IN_RESULTS.items()
        }
        curve[first.metric] = np.array([row["value"] for row in rows], np.float64)
        about = first.row["protocol"] | first.key
        words = [about.get("protocol"), f"{about['num_images']:,} images" if "num_images" in about else None]
        words += [f"against {about['reference']}"] if "reference" in about else []
        title = ", ".join(str(word) for word in (*words, captions_text(about)) if word)
        alike = first.key, first.column
        yield Line(first.subject, first.metric, alike, title, heading(first), settings(first), curve)


def draw(lines: list[Line], targets: dict[str, float], baseline: str) -> list[dict[str, Any]]:
    """A chart for each metric and protocol: its lines and their times to target."""
    followed = {line.metric for line in lines if is_better_high(line.metric) is not None}
    if set(targets) - followed:
        raise InputError(
            f"targets names {', '.join(sorted(set(targets) - followed))}, which has no curve here or no better "
            f"direction; it can name: {', '.join(sorted(followed)) or 'nothing'}"
        )
    groups = group_by(lines, lambda line: (line.metric, line.alike))
    return [_chart(group, targets, baseline) for group in groups]


def _labels(group: list[Line]) -> list[str]:
    """Label of each line: its subject, and its sampling settings if they differ within the chart."""
    settings = [settings_text(line.settings) for line in group]
    differ = len(set(settings)) > 1
    return [
        f"{line.subject.name}, {text}" if differ else line.subject.name
        for line, text in zip(group, settings, strict=True)
    ]


def _chart(group: list[Line], targets: dict[str, float], baseline: str) -> dict[str, Any]:
    first, shared, labels = group[0], {settings_text(line.settings) for line in group}, _labels(group)
    return {
        "metric": first.metric,
        "words": first.words,
        "title": ", ".join(words for words in (first.title, *(shared if len(shared) == 1 else ())) if words),
        "times": times_to_target(group, labels, targets.get(first.metric), baseline),
        "points": [
            {"name": label, "subject": line.subject.name, "place": str(line.subject.place), "seed": line.subject.seed}
            | {key: values.tolist() for key, values in line.curve.items()}
            for label, line in zip(labels, group, strict=True)
        ],
    }


def times_to_target(group: list[Line], labels: list[str], stated: float | None, baseline: str) -> list[dict[str, Any]]:
    """Times to target of the lines of one chart, compared with their baselines; lines without a baseline are left out.

    The baseline of a line has the same model, seed and sampling. The target is `stated`, or else the final value of the
    baseline."""
    better_high = is_better_high(group[0].metric)
    if better_high is None:
        return []
    rows = []
    for line, label in zip(group, labels, strict=True):
        reference = _baseline_of(line, group, baseline)
        if reference is None:
            continue
        target = reference.final if stated is None else stated
        row = {"name": label, "place": str(line.subject.place), "seed": line.subject.seed, "target": target}
        row |= {"baseline": str(reference.subject.place), "is_baseline": line is reference, "axes": {}}
        for axis in AXES:
            time = time_between(line.curve, reference.curve, line.metric, axis, target, better_high)
            row["axes"][axis] = {"t0": time.baseline, "t": time.reached, "saved": time.saved, "speedup": time.speedup}
        rows.append(row)
    return rows


def _baseline_of(line: Line, group: list[Line], label: str) -> Line | None:
    def model_and_seed(other: Line) -> tuple[Any, Any, dict[str, Any]]:
        own = {key: value for key, value in other.settings.items() if key not in Protocol.flagged("method")}
        return other.subject.run.config["model"]["name"], other.subject.seed, own

    found = [other for other in group if other.subject.run.label == label]
    found = [other for other in found if model_and_seed(other) == model_and_seed(line)]
    nearest = [other for other in found if other.subject.place.parent.parent == line.subject.place.parent.parent]
    return line if line in found else next(iter(nearest + found), None)
