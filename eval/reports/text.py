"""The page of `make reproduce-text`: captions under samples, and what they do to the likelihood, as HTML, Markdown and
one picture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from masc.runtime.errors import InputError
from masc.runtime.files import recover, replacing, write_text
from metrics.streams import open_samples
from reports import figures
from reports.page import markdown_text, render_page
from reports.runs import RunRecord

SHOWN = ("own caption", "another's caption", "a caption of its class", "null caption")
LIKELIHOODS = tuple(f"held-out nats per token, {name}" for name in SHOWN)
GAINS = tuple(f"gain over {name}" for name in SHOWN[1:])
SEARCHES = ("captions by image", "images by caption", "images by caption, over the null caption")
RECALLS = tuple(f"recall@{k} of {search}" for search in SEARCHES for k in (1, 5))


@dataclass(frozen=True)
class Shown:
    """What the samples of every run show."""

    captions: list[str]  # of held-out images first
    originals: list[np.ndarray]  # (H, W, 3) uint8: the images of the first captions
    attribution: str


def read_values(run: RunRecord) -> dict[str, dict[str, Any]]:
    """The rows of a run's eval/text.json by metric; InputError if one of the page's is missing."""
    found, wanted = run.results("text"), (*LIKELIHOODS, *GAINS, *RECALLS)
    missing = [name for name in wanted if name not in found]
    if missing:
        file = run.directory / "eval" / "text.json"
        raise InputError(
            f"expected the row {missing[0]!r} in {file}, found {len(found)} others; remove the file and measure again"
        )
    return found


def state(run: RunRecord, values: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
    """What the numbers of one run support: text in the likelihood, and both directions of the retrieval."""
    subject, claims = f"{run.label}, seed {run.seed}", []
    for name, what in ((GAINS[0], "another image's"), (GAINS[1], "that of another image of its class")):
        gain = values[name]
        text = (
            f"{subject}: a held-out image has more probability under its own caption than under {what}; gain "
            f"{gain['value']:+.4f} nats per token, 95% interval {gain['interval']['low']:+.4f} to "
            f"{gain['interval']['high']:+.4f}, {gain['protocol']['num_images']} images."
        )
        claims.append({"verdict": _verdict(gain, 0), "text": text})
    for search, what in (
        ("captions by image", "an image finds its caption"),
        (SEARCHES[2], "a caption finds its image"),
    ):
        found = values[f"recall@1 of {search}"]
        candidates = found["protocol"]["candidates"]
        text = (
            f"{subject}: {what} among {candidates} more often than chance; {_percent(found)} against "
            f"{100 / candidates:.1f}%, {found['protocol']['num_images']} queries."
        )
        claims.append({"verdict": _verdict(found, 1 / candidates), "text": text})
    return claims


def _verdict(found: dict[str, Any], nothing: float) -> str:
    """Whether an interval lies above a value that means no effect."""
    if found["interval"]["low"] > nothing:
        return "supported"
    return "not supported" if found["interval"]["high"] < nothing else "undecided"


def _percent(found: dict[str, Any]) -> str:
    low, high = found["interval"]["low"], found["interval"]["high"]
    return f"{100 * found['value']:.1f}% ({100 * low:.1f} to {100 * high:.1f})"


def table(runs: list[RunRecord]) -> list[list[str]]:
    """The table as text: a heading, and a row for each run."""
    heading = ["run", *("nats per token, " + name.split(", ")[1] for name in LIKELIHOODS), *GAINS, *RECALLS]
    rows = [heading]
    for run in runs:
        values = read_values(run)
        gains = [
            f"{each['value']:+.4f} ({each['interval']['low']:+.4f} to {each['interval']['high']:+.4f})"
            for each in (values[name] for name in GAINS)
        ]
        nats = [f"{values[name]['value']:.4f}" for name in LIKELIHOODS]
        rows.append([f"{run.label}, seed {run.seed}", *nats, *gains, *(_percent(values[name]) for name in RECALLS)])
    return rows


def first_samples(runs: list[RunRecord], sample_set: str, count: int) -> dict[str, np.ndarray]:
    """The samples (M, R, R, 3) of the first seed of each label."""
    found: dict[str, np.ndarray] = {}
    for run in runs:
        if run.label not in found:
            images = open_samples(recover(run.directory / "samples" / sample_set) / "images.npz")
            found[run.label] = images.read(0, count)
    return found


def write_text_page(runs: list[RunRecord], sample_set: str, shown: Shown, directory: Path) -> Path:
    """Write text.html, text.md and text.png to `directory`; return the page's path."""
    samples = first_samples(runs, sample_set, len(shown.captions))
    claims = [claim for run in runs for claim in state(run, read_values(run))]
    rows, first = table(runs), runs[0]
    cards = []
    for index, caption in enumerate(shown.captions):
        own = {"original": shown.originals[index]} if index < len(shown.originals) else {}
        own |= {label: images[index] for label, images in samples.items()}
        pictures = {name: figures.image(pixels) for name, pixels in own.items()}
        cards.append({"caption": caption, "pictures": pictures, "is_held_out": "original" in own})
    page = render_page(
        "text.html.j2",
        model=first.config["model"]["name"],
        data=first.config["data"]["name"],
        steps=first.config["steps"],
        batch_size=first.config["batch_size"],
        claims=claims,
        table=rows,
        cards=cards,
        attribution=shown.attribution,
        commit=first.provenance.commit,
    )
    lines = [f"- *{claim['verdict']}*: {markdown_text(claim['text'])}" for claim in claims]
    # A row of the page is a column here: the names of the numbers are long.
    for number, row in enumerate(zip(*rows, strict=True)):
        lines += [""] * (number == 0) + ["| " + " | ".join(map(markdown_text, row)) + " |"]
        lines += ["|" + "---|" * len(row)] * (number == 0)
    write_text(directory / "text.md", "\n".join(lines) + "\n")
    with replacing(directory / "text.png") as temporary:
        temporary.write_bytes(figures.captioned(shown.captions, shown.originals, samples))
    write_text(directory / "text.html", page)
    return directory / "text.html"
