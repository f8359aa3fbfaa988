"""Charts of a page that one can hover over, zoom and choose from: their data, and the code that draws them (plotly.js).

A page holds the data once. The browser chooses the horizontal axis, the runs, the smoothing and the zoom."""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from markupsafe import Markup

from reports.curves import colours
from reports.runs import AXES

POINTS = 400  # maximum of the points of a line on a page
AXIS_WORDS = {"images": "images seen", "step": "steps", "seconds": "hours"}
# Heading on a page and on wandb -> the metrics below it; the first that fits counts.
SECTIONS = {
    "Likelihood": re.compile(r"(val|train)/nats_per_token"),
    "Quality of samples": re.compile(r"s?FID|FD-|rFD-|IS\b|precision|recall|CLIP|val/fi?d_"),
    "Decisions of the head": re.compile(r"val/(level_|accuracy|entropy|used_choices)"),
    "Training": re.compile(r"train/|val/gradient_"),
    "Speed": re.compile(r"speed/"),
    "Other metrics": re.compile(""),
}
LOGARITHMIC = re.compile(r"val/gradient_")  # metrics that span decades


def section_of(metric: str) -> str:
    """The heading under which a metric is shown."""
    return next(name for name, pattern in SECTIONS.items() if pattern.match(metric))


def by_section(metrics: list[str]) -> dict[str, list[str]]:
    """The metrics under their headings, in the order of SECTIONS; headings without metrics are left out."""
    found = {name: [metric for metric in metrics if section_of(metric) == name] for name in SECTIONS}
    return {name: those for name, those in found.items() if those}


def chart_data(charts: list[dict[str, Any]], points: int = POINTS) -> dict[str, Any]:
    """The charts of `curves.draw` as compact JSON values: lines thinned to `points`, six digits, each axis once.

    `axes` holds the horizontal axes as {"images", "step", "seconds" (in hours)}, and a line names one of them by its
    place. Numbers that are not finite are None."""
    labels = [line[key] for key in ("subject", "name") for chart in charts for line in chart["points"]]
    axes: dict[str, int] = {}
    stored, drawn = [], []
    for chart in charts:
        lines = []
        for line in chart["points"]:
            values = np.array(line[chart["metric"]], np.float64)
            kept = thin(values, points)
            axis = {name: _axis(name, np.array(line[name], np.float64)[kept]) for name in AXES}
            place = axes.setdefault(repr(axis), len(axes))
            stored += [axis] * (place == len(stored))
            about = {key: line[key] for key in ("name", "subject", "place", "seed")}
            lines.append({**about, "axis": place, "y": _short(values[kept]), "of": len(values)})
        times = [{key: time[key] for key in ("name", "seed", "place", "target", "axes")} for time in chart["times"]]
        about = {key: chart[key] for key in ("metric", "words", "title")}
        about |= {"section": section_of(chart["metric"]), "log": bool(LOGARITHMIC.match(chart["metric"]))}
        drawn.append({**about, "lines": lines, "times": times})
    order = list(SECTIONS)
    drawn.sort(key=lambda chart: order.index(chart["section"]))
    return {"axes": stored, "charts": drawn, "words": AXIS_WORDS, "colours": colours(labels), "points": points}


def thin(values: np.ndarray, most: int) -> np.ndarray:
    """Places of at most `most` of the values (M,), in order: the first, the last, and of each of `most` / 2 - 1 equal
    stretches between them the lowest and the highest, so that peaks stay."""
    if len(values) <= most:
        return np.arange(len(values))
    edges = np.linspace(1, len(values) - 1, most // 2).round().astype(int)
    kept = {0, len(values) - 1}
    for start, end in pairwise(edges):
        known = start + np.flatnonzero(np.isfinite(values[start:end]))
        if known.size:
            kept |= {known[values[known].argmin()], known[values[known].argmax()]}
    return np.array(sorted(kept))


def _axis(name: str, values: np.ndarray) -> list[float | None]:
    return _short(values / 3600) if name == "seconds" else _short(values, digits=15)


def _short(values: np.ndarray, digits: int = 6) -> list[float | None]:
    """The numbers in `digits` digits, whole ones as integers, and None for one that is not finite."""
    return list(_shortened(values.tolist(), digits))


def _shortened(values: list[float], digits: int) -> Iterator[float | None]:
    for value in values:
        short = float(f"{value:.{digits}g}")
        yield None if not np.isfinite(short) else int(short) if short.is_integer() else short


def plotly_script() -> Markup:
    """The code of plotly.js for a script element, from the package plotly, which is loaded only here."""
    from plotly.offline import get_plotlyjs

    return Markup(get_plotlyjs())
