"""The report of `make reproduce`: runs, curves, samples and metrics as one HTML page, Markdown and JSON."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from masc.runtime.codes import Codes
from masc.runtime.errors import InputError
from masc.runtime.files import recover, replacing, write_json, write_text
from masc.runtime.reading import advising, check_array, read_npz
from masc.runtime.run import split_label
from masc.tree import Partition, Tree
from metrics.results import TOKENIZER_FILES, Protocol, Role
from metrics.streams import open_samples
from reports import figures
from reports.claims import on_other_trees, state_claims
from reports.curves import colours
from reports.page import markdown_text, render_page
from reports.race.page import newest_section
from reports.runs import BASELINE, RunRecord, TimeToTarget, time_to_target
from reports.tokenizer_tables import read_tokenizer_results
from reports.tree import figures as tree_figures
from reports.tree.patches import cluster_sheet, token_patches
from vq.interface import Tokenizer
from vq.pixels import decode_pixels, image_grid

NUM_SAMPLES_SHOWN = 40
SAMPLE_METRICS = ("FD-lite0", "IS-lite0", "precision-lite0", "recall-lite0")


@dataclass
class ReportInputs:
    """Inputs of a report. Tokenizer, codes and trees may be missing; the report then shows the runs only."""

    runs: list[RunRecord]
    sample_sets: list[str]  # the first one is shown in the summary
    attribution: str = ""
    tokenizer: Tokenizer | None = None
    tokenizer_results: Path | None = None  # directory of tokenizer.json, replacement.json and pictures.npz
    codes: Codes | None = None
    tree: Tree | None = None
    partitions: dict[str, Partition] = field(default_factory=dict)  # by tree name, at the default K
    records: Path | None = None  # folder of records of races; the newest one is shown


def group_by_label(runs: list[RunRecord]) -> dict[str, list[RunRecord]]:
    """Runs by label (head and tree), in order of first appearance."""
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(run.label, []).append(run)
    return groups


def mean(values: list[float | None]) -> float | None:
    """The mean over seeds; None if a seed lacks the value (None or NaN): a mean over the others would mislead."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def mean_and_spread(values: list[float | None]) -> dict[str, float | None]:
    """Mean and standard deviation over seeds. The deviation is None for one seed, both if a seed lacks the value."""
    centre = mean(values)
    return {"mean": centre, "sd": float(np.std(values, ddof=1)) if centre is not None and len(values) > 1 else None}


def summarise(runs: list[RunRecord], sample_sets: list[str]) -> list[dict[str, Any]]:
    """One row for each label: likelihood, time to the baseline's final value, sample metrics; means over seeds.

    What was not measured for every seed of a label is None."""
    groups = group_by_label(runs)
    baselines = {run.seed: run for run in groups.get(BASELINE, [])}
    rows = []
    for label, members in groups.items():
        nats = [run.final_nats for run in members]
        row: dict[str, Any] = {
            "label": label,
            "seeds": [run.seed for run in members],
            "learning_rate": members[0].config["optim"]["learning_rate"],
            "table_scale": members[0].config["optim"]["table_scale"],
            "nats": {**mean_and_spread(nats), "by_seed": nats},
            "train_nats": mean([run.train_nats for run in members]),
            "level_nats": _mean_levels([run.final_level_nats for run in members]),
            "seconds": mean([float(run.curve["seconds"][-1]) for run in members]),
            "samples": {},
            "time_to_flat": {},
        }
        likelihoods = [run.results("likelihood").get("held-out nats per token", {}) for run in members]
        row["nats"]["se_over_images"] = mean(
            [found.get("protocol", {}).get("standard_error_over_images") for found in likelihoods]
        )
        for name in sample_sets:
            results = [run.results(name) for run in members]
            row["samples"][name] = {
                metric: mean_and_spread([result.get(metric, {}).get("value") for result in results])
                for metric in SAMPLE_METRICS
            }
        paired = [(run, baselines[run.seed]) for run in members if run.seed in baselines]
        for axis in ("images", "seconds"):
            row["time_to_flat"][axis] = _mean_time([time_to_target(*pair, axis) for pair in paired])
        rows.append(row)
    return rows


def _mean_levels(levels: list[list[float]]) -> list[float]:
    """Means over seeds of the share of each decision; empty if one is missing, or if the seeds have other decisions."""
    same = len({len(shares) for shares in levels}) == 1
    means = [mean(list(shares)) for shares in zip(*levels, strict=True)] if same else []
    return [] if None in means else means


def _mean_time(times: list[TimeToTarget]) -> dict[str, float | int | None]:
    """Means over seeds if all seeds reached the target; a mean over some of them would be too good.

    Seeds whose baseline has no time are left out; both means are None if a time is 0."""
    known = [time for time in times if time.baseline is not None]
    saved, speedup = mean([time.saved for time in known]), mean([time.speedup for time in known])
    complete = saved is not None and speedup is not None
    return {
        "reached": sum(time.reached is not None for time in known),
        "of": len(known),
        "saved": saved if complete else None,
        "speedup": speedup if complete else None,
    }


def sample_grids(runs: list[RunRecord], name: str) -> dict[str, np.ndarray]:
    """The first samples of each label's first seed; all grids use the same classes and random numbers."""
    grids = {}
    for label, members in group_by_label(runs).items():
        file = recover(members[0].directory / "samples" / name) / "images.npz"
        if file.exists():
            images = open_samples(file)
            grids[label] = image_grid(images.read(0, min(len(images), NUM_SAMPLES_SHOWN)), 8)
    return grids


def overview_labels(labels: list[str]) -> list[str]:
    """The labels whose samples the overview shows: the baseline, the first other head, and that head on another tree.

    All labels if none of these is there."""
    heads = [label for label in labels if label != BASELINE and split_label(label)[1] == "masc"][:1]
    controls = [label for head in heads for label in on_other_trees(head, labels)][:1]
    return [label for label in (BASELINE, *heads, *controls) if label in labels] or labels


def cluster_sheets(inputs: ReportInputs) -> dict[str, np.ndarray]:
    """Clusters of each tree as decoded patches: one cluster in a row, largest first."""
    if inputs.codes is None or inputs.tokenizer is None:
        return {}
    tokens = inputs.codes.read(np.arange(min(1500, inputs.codes.num_images)), 0)
    images = decode_pixels(inputs.tokenizer, tokens)
    patches = token_patches(tokens, images, inputs.codes.num_tokens, margin=4)
    return {name: cluster_sheet(patches, cut, 10, 12) for name, cut in inputs.partitions.items()}


def tree_section(inputs: ReportInputs, sheets: dict[str, np.ndarray]) -> dict[str, Any]:
    """Dendrogram, cluster sizes and the sheets of decoded clusters."""
    if inputs.tree is None or "masc" not in inputs.partitions:
        return {}
    num_clusters = inputs.partitions["masc"].num_clusters
    return {
        "num_clusters": num_clusters,
        "dendrogram": tree_figures.dendrogram(inputs.tree, num_clusters),
        "sizes": tree_figures.cluster_sizes(inputs.partitions),
        "sheets": {name: figures.image(sheet) for name, sheet in sheets.items()},
    }


def tokenizer_figures(directory: Path | None) -> dict[str, Any]:
    """Results of the tokenizer and of the replacement test, as far as they exist, with rows of images."""
    results: dict[str, Any] = {}
    files = {part: directory / name for part, name in TOKENIZER_FILES.items()} if directory else {}
    for part, file in files.items():
        if file.exists():
            results |= read_tokenizer_results(file, part)
    if not results:
        return {}
    if "replacement" not in results:
        return {"results": results}
    file = directory / "pictures.npz"
    with advising(f"remove {TOKENIZER_FILES['replacement']} beside it, and the same command makes both again"):
        strips = {name: check_array(file, strip, "u", (None,) * 3 + (3,)) for name, strip in read_npz(file).items()}
    images = [{"name": name, "image": figures.image(image_grid(strip, len(strip)))} for name, strip in strips.items()]
    return {"results": results, "images": images}


def write_report(inputs: ReportInputs, directory: Path) -> Path:
    """Write report.html, report.md, report.json and overview.png to `directory`; return the page's path.

    Raises InputError if there are no runs."""
    if not inputs.runs:
        raise InputError("no trained runs to report on; name at least one head and one seed")
    table = summarise(inputs.runs, inputs.sample_sets)
    tokenizer = tokenizer_figures(inputs.tokenizer_results)
    claims = state_claims(table, tokenizer.get("results"), inputs.sample_sets)
    flat = next((row for row in table if row["label"] == BASELINE), None)
    first = inputs.runs[0]
    content = {
        "claims": claims,
        "table": table,
        "sample_sets": inputs.sample_sets,
        "tokenizer": tokenizer.get("results"),
        "experiment": {
            "data": first.config["data"]["name"],
            "model": first.config["model"]["name"],
            "tokenizer": first.config.get("tokenizer_name"),
            "steps": first.config["steps"],
            "batch_size": first.config["batch_size"],
            "attribution": inputs.attribution,
        },
        "provenance": asdict(first.provenance),
        "protocols": protocols(inputs, tokenizer.get("results")),
    }
    target = flat["nats"]["mean"] if flat else None
    grids = sample_grids(inputs.runs, inputs.sample_sets[0]) if inputs.sample_sets else {}
    sheets = cluster_sheets(inputs)
    page = render_page(
        "reproduction.html.j2",
        **content,
        convergence=figures.convergence(inputs.runs, target),
        diagnostics=figures.diagnostics(inputs.runs),
        histograms=figures.histograms(inputs.runs),
        colours=colours([run.label for run in inputs.runs]),
        grids={label: figures.image(grid) for label, grid in grids.items()},
        tokenizer_images=tokenizer.get("images", []),
        tree=tree_section(inputs, sheets),
        race=newest_section(inputs.records),
        sample_metrics=SAMPLE_METRICS,
        number_text=number_text,
        protocol_text=json.dumps(content["protocols"], indent=1),
    )
    write_json(directory / "report.json", content)
    write_text(directory / "report.md", markdown(content))
    if grids:
        with replacing(directory / "overview.png") as temporary:
            shown = {label: grids[label] for label in overview_labels(list(grids))}
            temporary.write_bytes(figures.overview(inputs.runs, target, shown, sheets))
    write_text(directory / "report.html", page)
    return directory / "report.html"


def protocols(inputs: ReportInputs, tokenizer: dict[str, Any] | None) -> dict[str, Any]:
    """The protocol of each number on the page. Runs share one protocol, without the keys that differ between runs."""
    run, found = inputs.runs[0], {}
    for name in ["likelihood", *inputs.sample_sets]:
        for metric, row in run.results(name).items():
            own = {*Protocol.keys(Role.PER_RUN), *Protocol.flagged("method")} - {"seed"}
            found[f"{name}: {metric}"] = {key: value for key, value in row["protocol"].items() if key not in own}
    for name in ("reconstruction", "training images", "reconstructions"):
        for row in (tokenizer or {}).get(name, []):
            found[f"{name}: {row['metric']}"] = row["protocol"]
    for case in (tokenizer or {}).get("replacement", []):
        for row in case["metrics"]:
            found[f"replacement, {case['tree']}, K = {case['K']}: {row['metric']}"] = row["protocol"]
    return found


def number_text(value: float | None, form: str) -> str:
    """A number as text; None was not measured."""
    return "not measured" if value is None else format(value, form)


def markdown(content: dict[str, Any]) -> str:
    """The page's numbers as Markdown."""
    experiment = {key: markdown_text(value) for key, value in content["experiment"].items()}
    name = content["sample_sets"][0] if content["sample_sets"] else None
    lines = [
        f"# {experiment['model']} on {experiment['data']}",
        "",
        f"{experiment['steps']} steps of {experiment['batch_size']} images, tokenizer {experiment['tokenizer']}.",
        "",
        *[f"- *{claim['verdict']}*: {markdown_text(claim['text'])}" for claim in content["claims"]],
        "",
        f"| head | seeds | lr x table | held-out nats/token | train | t0/t to flat (images) | 1 - t/t0 | "
        f"FD-lite0 ({name}) | IS-lite0 | precision | recall |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in content["table"]:
        time = row["time_to_flat"]["images"]
        samples = row["samples"].get(name, {})
        numbers = [number_text(samples[metric]["mean"], ".3f") if samples else "" for metric in SAMPLE_METRICS]
        reached = time["saved"] is not None
        count = f"reached by {time['reached']} of {time['of']}" if time["of"] else "not measured"
        speedup = format(time["speedup"], ".2f") if reached else count
        lines.append(
            f"| {markdown_text(row['label'])} | {len(row['seeds'])} "
            f"| {row['learning_rate']:g} x {row['table_scale']:g} "
            f"| {row['nats']['mean']:.3f} | {number_text(row['train_nats'], '.3f')} "
            f"| {speedup} "
            f"| {format(time['saved'], '.0%') if reached else ''} | {' | '.join(numbers)} |"
        )
    lines += _tokenizer_lines(content["tokenizer"] or {})
    lines += ["", experiment["attribution"], ""]
    return "\n".join(lines)


def _tokenizer_lines(results: dict[str, Any]) -> list[str]:
    """Reconstruction as one table, the replacement test (means over seeds) as another."""
    lines = []
    if "reconstruction" in results:
        count = results["reconstruction"][0]["protocol"]["num_images"]
        lines += ["", f"| reconstruction of {count} held-out images | |", "|---|---|"]
        lines += [f"| {markdown_text(row['metric'])} | {row['value']:.4g} |" for row in results["reconstruction"]]
    if "replacement" in results:
        metrics = [row["metric"] for row in results["replacement"][0]["metrics"]]
        count = results["replacement"][0]["metrics"][0]["protocol"]["num_images"]
        heads = [f"replacement in {count} images, within", "K", *map(markdown_text, metrics)]
        lines += ["", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for case in results["replacement"]:
            values = " | ".join(f"{row['value']:.4g}" for row in case["metrics"])
            lines.append(f"| {markdown_text(case['tree'])} | {case['K']} | {values} |")
    return lines
