"""What an experiment prints at its end, and the table of all experiments."""

from collections.abc import Sequence

from experiment_plan import ExperimentConfig

from metrics.results import Results
from reports.published import PublishedRow

SMOKE_WORDS = "SMOKE TEST: the stages at toy size on the embedded data. The numbers mean nothing."


def curve_text(config: ExperimentConfig, protocol: str, curve: dict[float, Results], rows: list[PublishedRow]) -> str:
    """The results of a protocol by guidance, the lowest FID marked, and the published rows."""
    metrics = list(next(iter(curve.values())).by_metric)
    distance = metrics[0]
    best = min(curve, key=lambda guidance: curve[guidance][distance]["value"])
    lines = [["guidance", *metrics, ""]]
    for guidance, results in sorted(curve.items()):
        values = [f"{results[metric]['value']:.3f}" for metric in metrics]
        lines.append([f"{guidance:g}", *values, f"<- lowest {distance}" if guidance == best else ""])
    comparable = [row for row in rows if distance in row.values]
    for row in comparable:
        values = [f"{row.values[metric]:g}" if metric in row.values else "" for metric in metrics]
        lines.append([_guidance(row), *values, f"published: {row.describe()}"])
    others = [f"published, in another space: {row.describe()}: {_values(row)}" for row in rows if row not in comparable]
    return "\n".join([f"{protocol}, {config.num_images:,} images", *columns(lines), *others])


def _guidance(row: PublishedRow) -> str:
    return "not stated" if row.guidance is None else f"{row.guidance:g}"


def _values(row: PublishedRow) -> str:
    return ", ".join(f"{metric} {value:g}" for metric, value in row.values.items())


def result_text(config: ExperimentConfig, curves: dict[str, dict[float, Results]]) -> str:
    """All curves; the published rows stand in the first."""
    lines = [f"{config.name}: {config.about}"]
    for index, (protocol, curve) in enumerate(curves.items()):
        lines += ["", curve_text(config, protocol, curve, config.rows if index == 0 else [])]
    lines += ["", "The lowest value is chosen on these samples; other samples of that guidance give a little more."]
    if config.ours:
        lines.append("This method is this project's own; the published row is the one to compare with.")
    return "\n".join([*lines, *([SMOKE_WORDS] if config.smoke else [])])


def columns(lines: Sequence[Sequence[str]]) -> list[str]:
    """Rows of words as lines with columns; the first and the last are flush left."""
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    last = len(widths) - 1
    aligned = []
    for line in lines:
        cells = [word.rjust(width) for word, width in zip(line, widths, strict=True)]
        cells[0], cells[last] = line[0].ljust(widths[0]), line[last]
        aligned.append("  ".join(cells).rstrip())
    return aligned


def markdown(lines: Sequence[Sequence[str]]) -> list[str]:
    """Rows of words as a table of Markdown; the first row holds the headings."""
    head, *rest = [f"| {' | '.join(line)} |" for line in lines]
    return [head, "|" + "---|" * len(lines[0]), *rest]


def published_text(config: ExperimentConfig) -> str:
    """The published FID; of a curve the lowest, with its guidance."""
    best = min((row for row in config.rows if "FID" in row.values), key=lambda row: row.values["FID"], default=None)
    if best is None:
        return ""
    at = "" if best.guidance is None else f" at {best.guidance:g}"
    return f"{best.values['FID']:g}{at}{' (flat)' if config.ours else ''}"
