"""The pages of a race: its judgement as Markdown and JSON, a figure, and one HTML page."""

import base64
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reports.page import markdown_text, render_page
from reports.paired import Estimate
from reports.race.figure import race_figure
from reports.race.judgement import RULES, VALUES, Prediction, Table, Times
from reports.race.records import Record, Tuned, newest_record, read_record

DIGITS = {"last": 3, "best": 3, "fitted": 3, "fd_lite0": 1}


@dataclass(frozen=True)
class Section:
    """A part of the page: a sentence, and a table of texts."""

    title: str
    note: str
    heading: list[str]
    rows: list[list[str]]


def record_pages(record: Record) -> dict[str, str | bytes]:
    """What follows from a record's data, by file name."""
    figure = race_figure(record)
    content = {"title": _title(record), "about": about_race(record), "rules": RULES, "sections": sections(record)}
    return {
        "judgement.md": judgement_text(record),
        "judgement.json": json.dumps(asdict(record.judgement), indent=1) + "\n",
        "race.png": figure,
        "race.html": render_page("race/page.html.j2", **content, figure=base64.b64encode(figure).decode()),
    }


def judgement_text(record: Record) -> str:
    """The judgement as Markdown."""
    lines = [f"# {markdown_text(_title(record))}", "", markdown_text(about_race(record)), "", markdown_text(RULES), ""]
    return "\n".join([*lines, *(line for each in sections(record) for line in _markdown(each))])


def tuning_text(tuned: Iterable[Tuned]) -> str:
    """The chosen values as Markdown."""
    return "\n".join(_markdown(_tuning_section(tuned)))


def newest_section(folder: Path | None) -> dict[str, Any]:
    """The newest record of a folder on the page of another report: what it is, and the tables of the last values;
    empty if there is none."""
    newest = None if folder is None else newest_record(folder)
    if newest is None:
        return {}
    record = read_record(newest)
    tables = [_verdict_section(table) for table in record.judgement.tables if table.value == "last"]
    return {"title": _title(record), "place": str(newest), "about": about_race(record), "sections": tables}


def sections(record: Record) -> list[Section]:
    """A table for each value and cell, times to flat's value, trees, and chosen values."""
    judgement = record.judgement
    found = [_verdict_section(table) for table in judgement.tables]
    for cell in dict.fromkeys(time.cell for time in judgement.times):
        found.append(_time_section([time for time in judgement.times if time.cell == cell]))
    replaced = [[name, f"{psnr:.2f}"] for name, psnr in record.replacement.items()]
    for each in judgement.predictions:
        heading = ["contender", "replacement PSNR (dB)"]
        found.append(Section(f"trees: {each.cell.words}", prediction_text(each), heading, replaced))
    return [*found, _tuning_section(record.tuning)]


def _title(record: Record) -> str:
    return f"Race {record.about.name}, {record.about.written[:10]}"


def about_race(record: Record) -> str:
    """What the contenders share, in a sentence or two."""
    race = record.about.race
    names = list(dict.fromkeys(row.contender for row in record.rows))
    return (
        f"{race['model_name']} on {race['data_name']} with {race['tokenizer_name']}; {len(names)} contenders, seeds "
        f"{', '.join(map(str, race['seeds']))}; equal {race['equal']}. Tuning budget, in runs of a contender in a "
        f"cell: {race['tuning_budget']}, judged on {race['tuning_share']:.0%} of the training groups, which were held "
        "out for it. Lower is better."
    )


def spread_text(found: Estimate, digits: int) -> str:
    """Mean ± standard deviation over seeds."""
    spread = "" if found.sd is None else f" ± {found.sd:.{digits}f}"
    return f"{found.mean:.{digits}f}{spread}"


def interval_text(found: Estimate, form: str) -> str:
    """Mean and 95% interval."""
    return (
        f"{found.mean:{form}}"
        if found.low is None
        else f"{found.mean:{form}} ({found.low:{form}} to {found.high:{form}})"
    )


def _verdict_section(table: Table) -> Section:
    """The contenders by one value in one cell."""
    digits = DIGITS[table.value]
    heading = ["contender", "mean ± sd", "difference to flat (95% interval)", "seeds", "d", "p (Holm)"]
    rows = []
    for each in table.verdicts:
        difference = each.difference
        effect = None if difference is None else difference.effect
        rows.append(
            [
                each.contender,
                spread_text(each.own, digits),
                "no pair" if difference is None else interval_text(difference, f"+.{digits}f"),
                "0" if difference is None else str(difference.count),
                "" if effect is None else f"{effect:+.3g}",
                "" if each.p is None else f"{each.p:.2g}",
                "" if effect is None else "over 1,000" if each.needed is None else str(each.needed),
                each.word + (each.reason and f": {each.reason}"),
            ]
        )
    note = f"flat: {spread_text(table.baseline, digits)} over {table.baseline.count} seeds."
    title = f"{VALUES[table.value]}: {table.cell.words}"
    return Section(title, note, [*heading, "seeds for 80% power", "verdict"], rows)


def _time_section(times: list[Times]) -> Section:
    """The times of one cell: a row for each contender, two columns for each axis."""
    axes = list(dict.fromkeys(time.axis for time in times))
    heading = ["contender", *(f"{axis}: {form}" for axis in axes for form in ("1 - t/t0", "t0/t"))]
    rows = []
    for name in dict.fromkeys(time.contender for time in times):
        cells = [name]
        for time in (time for time in times if time.contender == name):
            if time.saved is None or time.speedup is None:
                never = "never reached" if not time.reached else f"reached by {time.reached} of {time.of} seeds"
                cells += [never, never]
            else:
                cells += [interval_text(time.saved, ".0%"), interval_text(time.speedup, ".2f")]
        rows.append(cells)
    note = (
        "t0 is the time at which flat first reaches its own final value, t that of the contender on the same seed; "
        "intervals over seeds. Seconds depend on what else the machine did."
    )
    return Section(f"time to flat's final value: {times[0].cell.words}", note, heading, rows)


def prediction_text(prediction: Prediction) -> str:
    """Whether replacement predicts the likelihood, in a sentence."""
    return (
        f"Spearman's rank correlation of replacement PSNR and last held-out nats over n = {prediction.trees} trees: "
        f"{prediction.spearman:+.2f} (p {prediction.p:.2g}). It is negative if trees with better replacement have "
        "better likelihood."
    )


def _tuning_section(tuned: Iterable[Tuned]) -> Section:
    """The chosen values of each contender and cell, and how many points it tried."""
    rows = []
    for each in tuned:
        values = ", ".join(f"{key} = {value}" for key, value in each.values.items()) or "nothing to tune"
        cell = f"{each.share:.0%}, {each.length:,} steps"
        rows.append([each.contender, cell, str(len(each.points)), f"{each.nats[each.chosen]:.3f}", values])
    note = "Nats on the held-out part of the training groups, at the last step; the lowest decides."
    return Section("tuning", note, ["contender", "cell", "points tried", "nats", "chosen values"], rows)


def _markdown(section: Section) -> list[str]:
    cells = ([markdown_text(cell) for cell in row] for row in section.rows)
    lines = [section.heading, ["---"] * len(section.heading), *cells]
    table = ["| " + " | ".join(line) + " |" for line in lines]
    return [f"## {section.title}", "", section.note, "", *table, ""]
