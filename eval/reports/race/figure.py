"""The figure of a race: for each cell the validation curves, and the differences to flat with their intervals."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from reports.curves import COLOURS, METRIC_WORDS
from reports.figures import INK, STYLE, plain_text
from reports.race.judgement import Table
from reports.race.records import Record
from reports.race.rows import RaceCurve
from reports.runs import BASELINE, NATS

VERDICT_COLOURS = {"better": "#4f7f36", "worse": "#d1495b", "undecided": "#8a94a3"}
DASHES = ("-", "--", ":")


def race_figure(record: Record) -> bytes:
    """The figure as PNG: a row for each cell, with the means over seeds on the left and the verdicts on the right."""
    tables = {(table.cell, table.value): table for table in record.judgement.tables}
    cells = list(dict.fromkeys(row.cell for row in record.rows))
    height = 1.4 + 0.3 * len({row.contender for row in record.rows})
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(cells), 2, figsize=(11, height * len(cells)), squeeze=False, layout="constrained"
        )
        for (left, right), cell in zip(axes, cells, strict=True):
            _curves(left, [curve for curve in record.curves if curve.cell == cell])
            _verdicts(right, [tables[key] for value in ("last", "best") if (key := (cell, value)) in tables])
            left.set_title(plain_text(cell.words), fontsize=10, loc="left")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        plt.close(figure)
    return buffer.getvalue()


def _curves(axis: Axes, curves: Sequence[RaceCurve]) -> None:
    """The mean over the seeds that were validated at the same steps; the highest quarter of the values is cut off."""
    for number, name in enumerate(dict.fromkeys(curve.contender for curve in curves)):
        mine = [curve for curve in curves if curve.contender == name]
        alike = [curve.nats for curve in mine if curve.step == mine[0].step]
        style = {"color": INK, "linewidth": 2.2} if name == BASELINE else {"color": COLOURS[number % len(COLOURS)]}
        axis.plot(
            mine[0].step,
            np.mean(alike, axis=0),
            DASHES[number // len(COLOURS) % len(DASHES)],
            label=plain_text(name),
            marker="o" if len(mine[0].step) < 3 else None,
            **style,
        )
    if curves:
        axis.set_ylim(top=float(np.quantile([value for curve in curves for value in curve.nats], 0.75)))
        axis.legend(frameon=False, fontsize=7, ncols=2)
    axis.set_xlabel("step")
    axis.set_ylabel(METRIC_WORDS[NATS])


def _verdicts(axis: Axes, tables: Sequence[Table]) -> None:
    """Differences to flat: filled by the last values, hollow by the best; grey the spread of retraining."""
    for table, offset in zip(tables, (-0.12, 0.12), strict=False):
        shown = [each for each in table.verdicts if each.difference is not None]
        for place, each in enumerate(shown):
            colour, found = VERDICT_COLOURS[each.word], each.difference
            low, high = (found.mean, found.mean) if found.low is None else (found.low, found.high)
            axis.plot([low, high], [place + offset] * 2, color=colour, linewidth=1.6)
            filled = colour if table.value == "last" else "white"
            axis.plot([found.mean], [place + offset], "o", color=colour, markerfacecolor=filled, markersize=5)
        if table.value == "last":
            axis.set_yticks(range(len(shown)), [plain_text(each.contender) for each in shown])
            if table.baseline.sd is not None:
                axis.axvspan(-table.baseline.sd, table.baseline.sd, color="#e3e6ea", zorder=0)
    axis.axvline(0, color=INK, linewidth=0.8)
    axis.invert_yaxis()
    axis.set_xlabel("nats minus flat's, 95% interval; filled last, hollow best")
    axis.set_title("green better, red worse, grey undecided", fontsize=10, loc="left")
