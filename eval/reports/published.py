"""The published grid: numbers of papers, repositories and users, each with its protocol and source.

The numbers are in published.yaml in this folder, which explains the marks of confidence."""

from dataclasses import dataclass, field, fields
from functools import cache
from importlib import resources
from typing import Any

import yaml

from masc.runtime.run import run_label
from metrics.evaluators import RESIZE, SHA256_PREFIX
from metrics.results import Protocol

METRICS = ("FID", "IS", "sFID", "precision", "recall", "rFID", "PSNR", "SSIM")
KINDS = ("result", "real", "reconstruction", "report")
CONFIDENCE = ("code", "paper", "repo", "2nd", "thread", "infer")
IMAGENET = 1_281_167  # training images: an epoch
# ADM's file holds the statistics of the whole training set, so a reference made from that set is equal to it.
TRAINING_STATISTICS = ("adm-imagenet256", "imagenet256-train")
SAME_TREE = {"kmeans-sklearn": "kmeans"}  # our names of clusterings that papers call by one name


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One or several published numbers of one evaluation; a field is None if the source does not state it."""

    source: str  # table of a paper, or repository#thread
    confidence: str  # one of CONFIDENCE
    values: dict[str, float]  # by metric, keys of METRICS
    kind: str = "result"  # one of KINDS
    model: str | None = None
    head: str | None = None
    tree: str | None = None  # None: MASC's own, or the head has none
    K: int | None = None
    epochs: int | None = None
    drawn_at: int | None = None  # pixels a side as decoded
    guidance: float | None = None  # 1.0: none
    sampling: dict[str, Any] = field(default_factory=dict)  # further keys of SamplingConfig
    evaluator: str | None = None
    reference: str | None = None
    num_images: int | None = None
    release: str | None = None  # the checkpoint that was measured, if it was released
    preset: bool = False  # whether these are the usual settings of the release
    hours: float | None = None  # of training
    acceleration_percent: float | None = None  # as printed
    cause: str | None = None  # of a report: what was wrong
    note: str | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.values) - set(METRICS))
        if self.kind not in KINDS or self.confidence not in CONFIDENCE or not self.values or unknown:
            raise ValueError(
                f"a published row needs a kind of {KINDS}, a confidence of {CONFIDENCE} and values of {METRICS}; "
                f"found {self.kind}, {self.confidence}, {sorted(self.values)} ({self.source})"
            )
        if (self.kind == "report") != (self.cause is not None):
            raise ValueError(f"a row states a cause exactly if its kind is report ({self.source})")
        Protocol.check(self.sampling, f"published.yaml, {self.source},")

    @property
    def label(self) -> str | None:
        """The label of the row, as for a run: its head and, unless it is MASC's own, its tree."""
        return label_of(vars(self))

    @property
    def protocol(self) -> str:
        """The protocol in words; rows share a table only if it is equal."""
        return ", ".join(
            (
                f"{self.evaluator or 'unknown'} evaluator",
                f"reference {self.reference or 'unknown'}",
                f"{self.num_images or 'unknown number of'} images",
                f"drawn at {self.drawn_at or 'unknown'} px",
                "guidance not stated" if self.guidance is None else f"guidance {self.guidance:g}",
            )
        )

    def describe(self) -> str:
        """The row in a few words: `LlamaGen paper, Table 8: llamagen-b flat, 300 epochs, guidance 2`."""
        what = [" ".join(word for word in (self.model, self.label) if word)]
        what += [f"K = {self.K}"] * bool(self.K) + [f"{self.epochs} epochs"] * bool(self.epochs)
        what += [f"{self.drawn_at} px"] * bool(self.drawn_at)
        what += ["guidance not stated" if self.guidance is None else f"guidance {self.guidance:g}"]
        return f"{self.source}: {', '.join(what)}"


def label_of(protocol: dict[str, Any]) -> str | None:
    """The label of a protocol: its head, its tree unless that is MASC's own, its loss unless that is cross-entropy.

    A release is flat. None if the protocol has neither head nor release."""
    head, tree = protocol.get("head"), protocol.get("tree")
    if head is None:
        return "flat" if protocol.get("release") else None
    loss = protocol.get("loss")
    return run_label(head, None if head == "flat" and loss is None else tree, loss)


def parse_published(groups: list[dict[str, Any]]) -> tuple[PublishedRow, ...]:
    """Rows of all groups; the keys of a row override those of its group. Raises ValueError for an unknown key."""
    known, rows = {f.name for f in fields(PublishedRow)} - {"values"}, []
    for group in groups:
        shared = {key: value for key, value in group.items() if key != "rows"}
        for row in group["rows"]:
            given = shared | row
            unknown = sorted(set(given) - known - set(METRICS))
            if unknown:
                raise ValueError(f"published.yaml: unknown key {', '.join(unknown)} ({given.get('source')})")
            values = {key: float(given.pop(key)) for key in METRICS if key in given}
            rows.append(PublishedRow(values=values, **given))
    return tuple(rows)


@cache
def published() -> tuple[PublishedRow, ...]:
    """Every published row, in the order of the file."""
    return parse_published(yaml.safe_load((resources.files("reports") / "published.yaml").read_text(encoding="utf-8")))


def rows_for(model: str, head: str) -> list[PublishedRow]:
    """Results of a model and a label (`flat`, `masc`, `masc-on-kmeans`) under any protocol."""
    return [row for row in published() if row.kind == "result" and (row.model, row.label) == (model, head)]


def matching(protocol: dict[str, Any], ignoring: tuple[str, ...] = ()) -> list[PublishedRow]:
    """Published results that are comparable with a number of this protocol.

    Both sides state model, label, drawn_at, evaluator and number of images, and these are equal. Reference, K,
    guidance, epochs and further sampling keys are equal if both sides state them. Resize and extractor weights, if
    stated, are those of the evaluator. A release is compared only with rows of the same release. `ignoring` lists keys
    that may differ."""
    ours = _comparable(protocol)
    return [row for row in published() if row.kind == "result" and not _differing(row, ours) - set(ignoring)]


def _comparable(protocol: dict[str, Any]) -> dict[str, Any]:
    seen, guidance = protocol.get("images_seen"), protocol.get("guidance")
    return {
        **protocol,
        "label": label_of(protocol | {"tree": SAME_TREE.get(protocol.get("tree"), protocol.get("tree"))}),
        "guidance": None if guidance is None else max(float(guidance), 1.0),  # values up to 1 mean no guidance
        "epochs": None if seen is None else seen / IMAGENET,
    }


def _differing(row: PublishedRow, ours: dict[str, Any]) -> set[str]:
    """Keys that make a row and a protocol incomparable."""
    keys = {
        key
        for key in ("model", "label", "drawn_at", "evaluator", "num_images")
        if ours.get(key) is None or ours[key] != getattr(row, key)
    }
    theirs = {"K": row.K, "guidance": row.guidance, **row.sampling}
    keys |= {k for k, value in theirs.items() if None not in (value, ours.get(k)) and ours[k] != value}
    if None not in (row.epochs, ours["epochs"]) and abs(ours["epochs"] / row.epochs - 1) > 0.02:
        keys.add("epochs")
    if None not in (row.reference, ours.get("reference")) and not _same_reference(row.reference, ours["reference"]):
        keys.add("reference")
    if ours.get("release") is not None and ours["release"] != row.release:
        keys.add("release")
    if not str(ours.get("extractor_sha256", SHA256_PREFIX)).startswith(SHA256_PREFIX):
        keys.add("extractor_sha256")
    if row.evaluator in RESIZE and ours.get("resize", RESIZE[row.evaluator]) != RESIZE[row.evaluator]:
        keys.add("resize")
    if not is_imagenet(ours):  # all published models were trained on ImageNet
        keys.add("data")
    return keys


def is_imagenet(protocol: dict[str, Any]) -> bool:
    """Whether a model was trained on ImageNet; true if the protocol does not state the data."""
    return str(protocol.get("data", "imagenet")).startswith("imagenet")


def _same_reference(one: str, other: str) -> bool:
    return one == other or {one, other} <= set(TRAINING_STATISTICS)
