"""Figures of the reports as text for one HTML file: SVG for lines, PNG for images."""

import base64
import io
import re
import textwrap

import matplotlib as mpl
import numpy as np
from PIL import Image

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from masc.runtime.errors import printable
from reports.curves import METRIC_WORDS, colours, metric_words
from reports.runs import NATS, Curve, RunRecord

DIAGNOSTICS = ("val/entropy", "val/accuracy", "val/gradient_variance")  # of `diagnostics`
INK, GRID = "#1c2430", "#e3e6ea"
STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.hashsalt": "masc",  # the same figure gives the same bytes
}


def convergence(runs: list[RunRecord], target: float | None) -> str:
    """Held-out nats per token over images seen and over training seconds, one line for each run."""
    palette = colours([run.label for run in runs])
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.0), sharey=True)
        for axis, unit, name in zip(axes, ("images", "seconds"), ("images seen", "training seconds"), strict=True):
            _curves(axis, runs, unit, palette, target)
            axis.set_xlabel(name)
        axes[0].set_ylabel(METRIC_WORDS[NATS])
        axes[1].legend(frameon=False)
        return svg(figure)


def diagnostics(runs: list[RunRecord]) -> str | None:
    """The metrics DIAGNOSTICS over images seen, one line for each run that has them; None if no run has any."""
    lines = {
        metric: [(run.label, run.series(metric)) for run in runs if metric in run.metrics] for metric in DIAGNOSTICS
    }
    if not any(lines.values()):
        return None
    palette = colours([run.label for run in runs])
    with mpl.rc_context({**STYLE, "svg.hashsalt": "masc diagnostics"}):
        figure, axes = plt.subplots(1, len(lines), figsize=(10.5, 3.2))
        for axis, (metric, curves) in zip(axes, lines.items(), strict=True):
            _lines(axis, curves, metric, "images", palette, None)
            axis.set_xlabel("images seen")
            axis.set_title(metric_words(metric), fontsize=9, loc="left")
        axes[0].legend(frameon=False, fontsize=8)
        return svg(figure)


def histograms(runs: list[RunRecord]) -> str | None:
    """How often the choices of the first decision are the most probable ones, most frequent first, and how often they
    are right (dashed), for the first run of each label that has a histogram; None if no run has one."""
    found: dict[str, np.ndarray] = {}
    for run in runs:
        if run.label not in found and (counts := run.histogram) is not None:
            found[run.label] = counts.astype(np.float64)
    if not found:
        return None
    palette = colours([run.label for run in runs])
    with mpl.rc_context({**STYLE, "svg.hashsalt": "masc histograms"}):
        figure, axis = plt.subplots(figsize=(10.5, 3.2))
        for label, pair in found.items():
            for counts, line in zip(pair, ("-", "--"), strict=True):
                shares = np.sort(counts[counts > 0])[::-1] / counts.sum()
                shown = plain_text(label) if line == "-" else None
                axis.loglog(1 + np.arange(len(shares)), shares, line, color=palette[label], label=shown, linewidth=1.4)
        axis.set_xlabel("rank of the choice")
        axis.set_ylabel("share of positions")
        axis.legend(frameon=False, fontsize=8)
        return svg(figure)


def _curves(axis: Axes, runs: list[RunRecord], unit: str, palette: dict[str, str], target: float | None) -> None:
    _lines(axis, [(run.label, run.curve) for run in runs], NATS, unit, palette, target)


def _lines(
    axis: Axes,
    lines: list[tuple[str, Curve]],
    metric: str,
    unit: str,
    palette: dict[str, str],
    target: float | None,
) -> None:
    """Draw labelled curves. Further curves of one label (other seeds) are paler.

    The untrained model at step 0 is left out, because it would compress the rest of the axis."""
    labels = [label for label, _ in lines]
    for index, (label, curve) in enumerate(lines):
        shown = curve["step"] > 0
        is_first = labels.index(label) == index
        axis.plot(
            curve[unit][shown],
            curve[metric][shown],
            color=palette[label],
            label=plain_text(label) if is_first else None,
            linewidth=1.8,
            alpha=1.0 if is_first else 0.45,
            marker="o" if shown.sum() < 12 else None,
            markersize=3.5,
        )
    if target is not None:
        axis.axhline(target, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axis.xaxis.set_major_locator(MaxNLocator(5))


def overview(
    runs: list[RunRecord], target: float | None, grids: dict[str, np.ndarray], sheets: dict[str, np.ndarray]
) -> bytes:
    """The overview image of a report as PNG bytes: convergence, samples of some heads, clusters of some trees."""
    palette = colours([run.label for run in runs])
    with mpl.rc_context(STYLE):
        figure = plt.figure(figsize=(12, 6.3), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=(1.15, 1))
        widths = (1.7, *[1] * len(sheets))
        axis, *images = top.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
        _curves(axis, runs, "images", palette, target)
        axis.set_xlabel("images seen")
        axis.set_ylabel(METRIC_WORDS[NATS])
        axis.legend(frameon=False, fontsize=9)
        for panel, (name, pixels) in zip(images, sheets.items(), strict=True):
            _show(panel, pixels, f"clusters: {name}")
        panels = bottom.subplots(1, len(grids), squeeze=False)[0]
        for panel, (label, pixels) in zip(panels, grids.items(), strict=True):
            _show(panel, pixels, f"samples: {label}")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        plt.close(figure)
        return buffer.getvalue()


def captioned(
    captions: list[str], originals: list[np.ndarray], samples: dict[str, np.ndarray], width: int = 10
) -> bytes:
    """Captions over their images as PNG bytes, `width` captions in a band: the original where there is one, then the
    sample (M, H, W, 3) of each label."""
    count = len(captions)
    rows = [("original", originals), *((label, list(images)) for label, images in samples.items())]
    bands = [range(start, min(start + width, count)) for start in range(0, count, width)]
    lines = [(band, name, images) for band in bands for name, images in rows if band[0] < len(images)]
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(lines), width, figsize=(width, 1.25 * len(lines)), squeeze=False, layout="constrained"
        )
        for line, (band, name, images) in zip(axes, lines, strict=True):
            is_first = name == next(other for at, other, _ in lines if at == band)
            for axis in line:
                axis.set_axis_off()
            for axis, index in zip(line, band, strict=False):
                if index < len(images):
                    axis.imshow(images[index], interpolation="nearest")
                title = textwrap.fill(captions[index], 14) if is_first else ""
                axis.set_title(plain_text(title), fontsize=7)
            line[0].text(
                -0.12,
                0.5,
                plain_text(name),
                rotation=90,
                va="center",
                ha="right",
                fontsize=7,
                transform=line[0].transAxes,
            )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100)
        plt.close(figure)
        return buffer.getvalue()


def plain_text(words: str) -> str:
    """The words for matplotlib, which reads $ as the start of mathematics and draws printable characters only."""
    return printable(words).replace("$", r"\$")


def _show(axis: Axes, pixels: np.ndarray, title: str) -> None:
    axis.imshow(pixels, interpolation="nearest")
    axis.set_title(plain_text(title), fontsize=10, loc="left")
    axis.set_axis_off()


def svg(figure: Figure) -> str:
    """A finished figure as an SVG element without dates, so that equal figures have equal bytes."""
    buffer = io.StringIO()
    figure.tight_layout()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return text[text.index("<svg") :]


def png(figure: Figure, dpi: int = 130) -> str:
    """A finished figure as a data URI."""
    buffer = io.BytesIO()
    figure.tight_layout()
    figure.savefig(buffer, format="png", dpi=dpi)
    plt.close(figure)
    return _data_uri(buffer.getvalue())


def image(pixels: np.ndarray) -> str:
    """A uint8 image (H, W, 3) as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png", optimize=True)
    return _data_uri(buffer.getvalue())


def _data_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()
