"""The pages of a race: its judgement as Markdown and JSON, a figure, and one HTML page."""

import json
from collections.abc import Iterable
from dataclasses import asdict

from reports.page import markdown_text
from reports.paired import Estimate
from reports.race.judgement import RULES, VALUES, Prediction, Times, Verdict
from reports.race.records import Record, Tuned

DIGITS = {"last": 3, "best": 3, "fd_lite0": 1}


def record_pages(record: Record) -> dict[str, str | bytes]:
    """What follows from a record's data, by file name."""
    return {
        "judgement.md": judgement_text(record),
        "judgement.json": json.dumps(asdict(record.judgement), indent=1) + "\n",
    }


def judgement_text(record: Record) -> str:
    """The judgement as Markdown: a table for each value and cell, times to flat's value, trees, and chosen values."""
    judgement = record.judgement
    lines = [f"# {_title(record)}", "", *map(markdown_text, [about_race(record)]), "", markdown_text(RULES), ""]
    for table in judgement.tables:
        digits = DIGITS[table.value]
        heading, rows = verdict_rows(table.verdicts, digits)
        lines += [
            f"## {VALUES[table.value]}: {table.cell.words}",
            "",
            f"flat: {spread_text(table.baseline, digits)} over {table.baseline.count} seeds.",
            "",
            *_table(heading, rows),
        ]
    for cell in dict.fromkeys(time.cell for time in judgement.times):
        heading, rows = time_rows([time for time in judgement.times if time.cell == cell])
        lines += [f"## time to flat's final value: {cell.words}", "", *_table(heading, rows)]
    for prediction in judgement.predictions:
        lines += [f"## trees: {prediction.cell.words}", "", prediction_text(prediction), ""]
        lines += _table(
            ["contender", "replacement PSNR (dB)"], [[n, f"{v:.2f}"] for n, v in record.replacement.items()]
        )
    lines += ["## tuning", "", *tuning_lines(record.tuning), ""]
    return "\n".join(lines)


def _title(record: Record) -> str:
    return markdown_text(f"Race {record.about.name}, {record.about.written[:10]}")


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


def verdict_rows(verdicts: Iterable[Verdict], digits: int) -> tuple[list[str], list[list[str]]]:
    """Heading and rows of the contenders by one value."""
    heading = ["contender", "mean ± sd", "difference to flat (95% interval)", "seeds", "d", "p (Holm)"]
    rows = []
    for each in verdicts:
        difference = each.difference
        effect = None if difference is None else difference.effect
        rows.append(
            [
                each.contender,
                spread_text(each.own, digits),
                "no pair" if difference is None else interval_text(difference, f"+.{digits}f"),
                "0" if difference is None else str(difference.count),
                "" if effect is None else f"{effect:+.2f}",
                "" if each.p is None else f"{each.p:.2g}",
                "" if effect is None else "over 1,000" if each.needed is None else str(each.needed),
                each.word + (each.reason and f": {each.reason}"),
            ]
        )
    return [*heading, "seeds for 80% power", "verdict"], rows


def time_rows(times: list[Times]) -> tuple[list[str], list[list[str]]]:
    """Heading and rows of the times of one cell: a row for each contender, two columns for each axis."""
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
    return heading, rows


def prediction_text(prediction: Prediction) -> str:
    """Whether replacement predicts the likelihood, in a sentence."""
    return (
        f"Spearman's rank correlation of replacement PSNR and last held-out nats over n = {prediction.trees} trees: "
        f"{prediction.spearman:+.2f} (p {prediction.p:.2g}). It is negative if trees with better replacement have "
        "better likelihood."
    )


def tuning_lines(tuned: Iterable[Tuned]) -> list[str]:
    """A line of Markdown for each contender and cell: its chosen values, and how many points it tried."""
    lines = []
    for each in tuned:
        values = ", ".join(f"{key} {value}" for key, value in each.values.items()) or "nothing to tune"
        place = f"{each.share:.0%} of the data, {each.length:,} steps"
        text = f"{each.contender} ({place}): {values}; {each.nats[each.chosen]:.3f} nats, best of {len(each.points)}"
        lines.append(f"- {markdown_text(text)}")
    return lines


def _table(heading: list[str], rows: list[list[str]]) -> list[str]:
    lines = [heading, ["---"] * len(heading), *([markdown_text(cell) for cell in row] for row in rows)]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]
