"""Finds mistakes in results from their numbers, protocol and images (`make doctor`).

Most "cannot reproduce FID" threads are mistakes of evaluation, and most of these leave a trace in the numbers, the
protocol or the images. Each rule looks for one mistake; a rule is a function from a case to findings."""

from collections.abc import Sequence
from pathlib import Path

from masc.runtime.errors import InputError, MissingArtifact
from metrics.results import Results
from reports.doctor import evidence, rules
from reports.doctor.rules import TOLERANCE, Case, Finding, agrees, beside, deviations, of_same_is
from reports.published import matching

VERDICTS = ("problem", "warning", "note", "fine")
RULES = (  # the strongest evidence first
    evidence.tree_of_another_tokenizer,
    rules.wrong_reference,
    rules.reconstruction,
    rules.resolution,
    evidence.extractor,
    evidence.resize,
    rules.few_images,
    evidence.classes,
    evidence.sorted_samples,
    evidence.jpeg,
    rules.another_row,
    rules.sampling,
    rules.small_reference,
    evidence.weights,
    evidence.label_map,
    rules.across_evaluators,
    evidence.mixed_protocols,
)


def diagnose(results: Results, others: Sequence[Results] = ()) -> list[Finding]:
    """Findings about a file of results: problems, warnings, notes, each by strength of evidence.

    `others` are results that a reader may compare with these. Without problems and warnings, the last finding names the
    published row that the numbers agree with and the tolerance, or says that they agree with none."""
    case = Case(results, tuple(others))
    found = [finding for rule in RULES for finding in rule(case)]
    found.sort(key=lambda finding: VERDICTS.index(finding.verdict))
    if not any(finding.verdict in ("problem", "warning") for finding in found):
        found.append(_nothing_wrong(case))
    return found


def _nothing_wrong(case: Case) -> Finding:
    candidates = matching(case.protocol) if case.protocol.get("model") else of_same_is(case)
    rows = [row for row in candidates if case.is_fid and "FID" in row.values]
    if not case.protocol.get("model"):  # of any model: only a row that agrees in everything is named
        rows = [row for row in rows if agrees(case, row)]
    if not rows:
        why = "no published row has this model and protocol" if case.is_fid else "nothing is published in this space"
        return Finding("no-comparison", "fine", f"No mistake found; {why}.")
    row = min(rows, key=lambda row: abs(deviations(case, row).get("FID", 0.0)))
    if agrees(case, row):
        limits = ", ".join(f"{metric} {TOLERANCE[metric]:g}" for metric in deviations(case, row))
        text = f"No mistake found. Agrees with {row.describe()}: {beside(case, row)}; allowed: {limits} "
        return Finding("agrees", "fine", text + "(FID, IS and sFID relative).")
    return Finding(
        "unexplained",
        "note" if row.guidance is None else "warning",
        f"No mistake found, but the numbers differ from {row.describe()}: {beside(case, row)}."
        + (" Its guidance is not stated, so a sweep may find it." if row.guidance is None else ""),
        "check what this file does not state: whether rounding to bytes was by truncation, which weights file was read "
        "(compare its SHA-256), what the model was trained on",
    )


def read_results(run: str | None, results: str | None) -> dict[Path, Results]:
    """The results of a run (all but its likelihood) or of one file, by path.

    Raises InputError if there are none or they cannot be read."""
    if (run is None) == (results is None):
        raise InputError("name a run or a file: RUN=runs/..., or RESULTS=runs/.../eval/default-adm.json")
    paths = [Path(results)] if results else sorted(Path(run, "eval").glob("*.json"))
    paths = [path for path in paths if results or path.stem != "likelihood"]
    if not paths:
        raise MissingArtifact("results", Path(run, "eval"), f"no results in {Path(run, 'eval')}", run=run)
    return {path: Results.load(path) for path in paths}


def render_findings(found: dict[Path, list[Finding]]) -> str:
    """Findings as text, a section for each file."""
    sections = []
    for path, findings in found.items():
        lines = [str(path)]
        for finding in findings:
            lines.append(f"  {finding.verdict}: {finding.text} [{finding.code}]")
            lines += [f"    do: {finding.advice}"] * bool(finding.advice)
        sections.append("\n".join(lines))
    return "\n\n".join(sections)
