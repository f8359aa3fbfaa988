"""The page of all runs (`make report`): tables by protocol, tokenizers, curves, times to target, samples.

It is one self-contained HTML file; the numbers are also written as Markdown and JSON."""

import logging
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from masc.runtime.files import write_json, write_text
from reports.charts import AXIS_WORDS, chart_data, plotly_script
from reports.comparison import compare, entries
from reports.curves import CurvesConfig, all_lines, draw
from reports.doctor.doctor import VERDICTS, diagnose
from reports.doctor.rules import Finding
from reports.page import GRID_PIXELS, embed, markdown_text, render_page
from reports.runs import AXES
from reports.subjects import Subject, find_subjects
from reports.tokenizer_tables import find_tokenizers, tokenizer_tables

logger = logging.getLogger(__name__)
SHEET_PIXELS = 2 * GRID_PIXELS  # of a replacement grid, so that its labels stay readable
MILLION = 1e6  # larger counts are written in millions


@dataclass(kw_only=True)
class OverviewConfig(CurvesConfig):
    """Inputs and choices of the report."""

    results: list[str] = field(default_factory=list)  # further files of results
    artifacts: str = "artifacts"  # folder of measured tokenizers


def write_overview(config: OverviewConfig) -> Path:
    """Write index.html, all.md and all.json to the output folder; return the page's path.

    Raises InputError if there are neither runs nor results nor tokenizers."""
    tokenizers, broken = find_tokenizers(Path(config.artifacts))
    _warn(broken)
    files = [Path(path) for path in config.results]
    subjects, skipped = find_subjects(Path(config.runs), files, is_required=not tokenizers)
    _warn(skipped)
    found = entries(subjects)
    tables, others = compare(found)
    of_tokenizers, other_tokenizers = tokenizer_tables(tokenizers)
    curves = draw(all_lines(subjects, found, config.metrics), config.targets, config.baseline)
    runs = [subject for subject in subjects if subject.run is not None]
    content = {
        "places": [config.runs, *config.results, *[config.artifacts] * bool(tokenizers)],
        "num_runs": len(runs),
        "num_others": len(subjects) - len(runs),
        "num_tokenizers": len(tokenizers),
        "baseline": config.baseline,
        "skipped": [*skipped, *broken],
        "findings": find_problems(subjects),
        "tables": tables,
        "tokenizers": of_tokenizers,
        "others": [*others, *other_tokenizers],
        "protocols": [
            {"place": str(e.subject.place), "file": e.file, "metric": e.metric, **e.row["protocol"]} for e in found
        ]
        + [
            {"place": str(tokenizer.place), "file": file, "metric": row["metric"], **row["protocol"]}
            for tokenizer in tokenizers
            for file, row in tokenizer.rows
        ],
        "provenance": {str(subject.place): asdict(subject.run.provenance) for subject in runs},
    }
    directory = Path(config.output)
    page = render_page(
        "overview.html.j2",
        **content,
        curves=curves,
        data=chart_data(curves),
        plotly=plotly_script(),
        times=False,
        grids=sample_grids(subjects),
        sheets={str(each.image): embed(each.image, SHEET_PIXELS) for each in tokenizers if each.image},
        axes=AXIS_WORDS,
        cell_text=cell_text,
        spread_text=spread_text,
        number=number,
        amount=amount,
        time_text=time_text,
    )
    write_json(directory / "all.json", finite({**content, "curves": curves}))
    write_text(directory / "all.md", markdown(content, curves))
    write_text(directory / "index.html", page)
    return directory / "index.html"


def _warn(skipped: list[dict[str, str]]) -> None:
    for each in skipped:
        logger.warning("skipped %s: %s", each["place"], each["reason"])


def find_problems(subjects: list[Subject]) -> list[dict[str, Any]]:
    """Problems and then warnings of `make doctor`, each finding once with all its files."""
    files: dict[Finding, list[str]] = {}
    for subject in subjects:
        judged = {file: results for file, results in subject.results.items() if file != "likelihood"}
        for file, results in judged.items():
            for finding in diagnose(results, [other for name, other in judged.items() if name != file]):
                files.setdefault(finding, []).append(f"{subject.place}, {file}")
    wrong = [finding for finding in files if finding.verdict in ("problem", "warning")]
    wrong.sort(key=lambda finding: VERDICTS.index(finding.verdict))
    return [{**vars(finding), "files": files[finding]} for finding in wrong]


def sample_grids(subjects: list[Subject]) -> list[dict[str, str]]:
    """The grid of each sample set, scaled down to the size on the page."""
    return [
        {"name": subject.name, "place": str(subject.place), "set": name, "image": embed(path)}
        for subject in subjects
        for name, path in subject.grids.items()
    ]


def number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def amount(value: float | None) -> str:
    """A count in a few digits: 960, 384.4M."""
    if value is None:
        return ""
    return f"{value / 1e6:,.1f}M" if value >= MILLION else f"{value:,.0f}"


def cell_text(cell: dict[str, Any] | None) -> dict[str, str]:
    """Text of a number and its uncertainty: the spread over seeds, or the interval of a single seed."""
    if cell is None:
        return {"value": "", "spread": "", "by_seed": ""}
    each = [
        number(value) + _uncertainty(interval, error)
        for value, interval, error in zip(cell["values"], cell["intervals"], cell["errors"], strict=True)
    ]
    if cell["sd"] is None:
        spread = _uncertainty(cell["intervals"][0], cell["errors"][0])
        return {"value": number(cell["mean"]), "spread": spread.strip(), "by_seed": ""}
    partial = "" if cell["is_complete"] else f" ({cell['of']} of the seeds)"
    return {
        "value": number(cell["mean"]),
        "spread": f"± {number(cell['sd'])} sd{partial}",
        "by_seed": "; ".join(each),
    }


def spread_text(cell: dict[str, Any] | None) -> dict[str, str]:
    """Text of a tokenizer's number and its spread over the seeds of the replacement test."""
    if cell is None:
        return {"value": "", "spread": ""}
    return {"value": number(cell["mean"]), "spread": "" if cell["sd"] is None else f"± {number(cell['sd'])} sd"}


def _uncertainty(interval: dict[str, Any] | None, error: float | None) -> str:
    if interval:
        return f" [{number(interval['low'])}, {number(interval['high'])}]"
    return "" if error is None else f" ± {number(error)} se"


def time_text(time: dict[str, float | None], axis: str) -> dict[str, str]:
    """Text of the time to a target, and of its ratio to the baseline's time in both forms."""
    if time["t"] is None:
        return {"t": "not reached", "speedup": "", "saved": ""}
    scaled = _hours(time["t"]) if axis == "seconds" else amount(time["t"])
    if time["t0"] is None:
        return {"t": scaled, "speedup": "baseline: not reached", "saved": ""}
    return {
        "t": scaled,
        "speedup": "" if time["speedup"] is None else f"{time['speedup']:.2f}",
        "saved": "" if time["saved"] is None else f"{time['saved']:.0%}",
    }


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:.3g}" if hours < 1000 else f"{hours:,.0f}"


def finite(content: Any) -> Any:
    """A copy of the content with None for NaN and infinity, which JSON does not have."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def markdown(content: dict[str, Any], curves: list[dict[str, Any]]) -> str:
    """The page's numbers as Markdown."""
    lines = [f"# Runs: {content['num_runs']}, tokenizers: {content['num_tokenizers']}", ""]
    said = [f"skipped {each['place']}: {each['reason']}" for each in content["skipped"]]
    said += [
        f"{each['verdict']} in {'; '.join(each['files'])}: {each['text']} {each['advice']}"
        for each in content["findings"]
    ]
    lines += [f"- {markdown_text(each)}" for each in said]
    for table in content["tables"]:
        rows = []
        for row in table["rows"]:
            seeds = ", ".join(map(str, row["seeds"]))
            about = [row["name"], row["file"], seeds, amount(row["images_seen"]), row["settings"]]
            rows.append([*about, *[_joined(cell_text(cell)) for cell in row["cells"]]])
        for row in table["published"]:
            about = [f"{row['name']} (published)", row["source"], "", epochs_text(row), row["settings"]]
            rows.append([*about, *_published(row)])
        lines += _table(table["title"], ["subject", "results", "seeds", "trained on", "drawn", *table["columns"]], rows)
    for table in content["tokenizers"]:
        heads = [*table["rows"][0]["about"], "source"]
        rows = [
            [*row["about"].values(), row["place"], *[_joined(spread_text(cell)) for cell in row["cells"]]]
            for row in table["rows"]
        ]
        rows += [[f"{row['name']} (published)", row["source"], *_published(row)] for row in table["published"]]
        lines += _table(f"{TOKENIZER_TITLES[table['kind']]}: {table['title']}", [*heads, *table["columns"]], rows)
    if content["others"]:
        rows = [
            [row["text"], row["protocol"], ", ".join(f"{metric} {value:g}" for metric, value in row["values"].items())]
            for row in content["others"]
        ]
        lines += _table("Published by another protocol, not to be compared", ["row", "protocol", "values"], rows)
    for curve in (curve for curve in curves if curve["times"]):
        rows = []
        for row in curve["times"]:
            texts = [time_text(row["axes"][axis], axis) for axis in AXES]
            words = [text[key] for text in texts for key in ("t", "speedup", "saved")]
            rows.append([row["name"], row["seed"], number(row["target"]), *words])
        heads = ["subject", "seed", "target", *[f"{AXIS_WORDS[axis]}: {w}" for axis in AXES for w in TIME_HEADS]]
        lines += _table(f"Time to target: {curve['words']}, {curve['title']}", heads, rows)
    return "\n".join([*lines, ""])


TIME_HEADS = ("t", "t0/t", "1 - t/t0")
TOKENIZER_TITLES = {"reconstruction": "Reconstruction", "replacement": "Semantic replacement"}


def epochs_text(row: dict[str, Any]) -> str:
    return f"{row['epochs']} epochs" if row["epochs"] else ""


def _joined(text: dict[str, str]) -> str:
    return f"{text['value']} {text['spread']}".strip()


def _published(row: dict[str, Any]) -> list[str]:
    return ["" if value is None else f"{value:g}" for value in row["cells"]]


def _table(title: str, heads: list[str], rows: list[list[Any]]) -> list[str]:
    return ["", f"## {markdown_text(title)}", "", *map(_line, [heads, ["---"] * len(heads), *rows])]


def _line(cells: list[Any]) -> str:
    return "| " + " | ".join(map(markdown_text, cells)) + " |"
