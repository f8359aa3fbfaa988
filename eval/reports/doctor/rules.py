"""Rules of `make doctor` that judge numbers and settings by the published grid; see doctor.py."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from metrics.results import Protocol, Results
from reports.published import TRAINING_STATISTICS, PublishedRow, is_imagenet, label_of, matching, published, rows_for

FEATURES = 2048  # of the pooled Inception layer
# How far a fresh draw of 50,000 images may lie from a published number: our allowance, wider than the spread that
# users of the same weights report. Relative for the first three, absolute for the others.
TOLERANCE = {"FID": 0.02, "IS": 0.015, "sFID": 0.03, "precision": 0.01, "recall": 0.015}
SAME_IS = 5e-4  # relative: the same images drawn again (LlamaGen#48: 193.6122 for 193.613)
WRONG_FID, WRONG_PRECISION = 0.05, 0.03  # LlamaGen#48 and #53: 12% to 41% of FID, 0.09 of precision
# configs/sampling: for looking, not for measuring.
GALLERIES = {"gallery": {"guidance": 4.0, "top_k": 2000}, "gallery-masc": {"guidance": 2.5, "top_k": 0}}
VALIDATION_FID = 1.684  # real validation images under ADM's protocol (LlamaGen paper)
RECONSTRUCTION_FID = 4.28  # VQ-16's reconstructions under the same (LlamaGen#34); their rFID is 2.19


@dataclass(frozen=True)
class Finding:
    """What is seen, and what to do about it."""

    code: str
    verdict: str  # problem, warning, note or fine
    text: str
    advice: str = ""


@dataclass(frozen=True)
class Case:
    """One file of results, and the other files that a reader would lay beside it."""

    results: Results
    others: tuple[Results, ...] = ()

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """That of the FID where there is one."""
        rows = self.results.by_metric
        return rows["FID"]["protocol"] if "FID" in rows else self.results.rows[0]["protocol"]

    @property
    def evidence(self) -> dict[str, Any]:
        return self.results.evidence

    @cached_property
    def values(self) -> dict[str, float]:
        return {row["metric"]: row["value"] for row in self.results.rows}

    @property
    def is_fid(self) -> bool:
        """Whether this is about generated images in the space of FID."""
        return "FID" in self.values

    @property
    def is_coco(self) -> bool:
        return str(self.protocol.get("protocol", "")).startswith("coco")

    def draw(self, setting: str = "") -> str:
        """What draws such images anew, with another setting; a sample set is never replaced."""
        release = self.protocol.get("release")
        if not release and not self.protocol.get("model"):  # drawn by others
            return f"make the images anew{f' ({setting})' if setting else ''}"
        subject = f"RELEASE={release}" if release else "RUN=..."
        stage = "eval-coco" if self.is_coco else "sample"  # which shows captions
        return f"`make {stage} {subject} SAMPLES=NEW_NAME{f' ARGS={setting}' if setting else ''}`"


def deviations(case: Case, row: PublishedRow) -> dict[str, float]:
    """By metric that both have: ours against theirs in units of TOLERANCE, with sign."""
    found = {}
    for metric, tolerance in TOLERANCE.items():
        if metric in case.values and metric in row.values:
            scale = 1.0 if metric in ("precision", "recall") else row.values[metric]
            found[metric] = (case.values[metric] - row.values[metric]) / (scale * tolerance)
    return found


def agrees(case: Case, row: PublishedRow) -> bool:
    """Whether FID and all else that both state agree within TOLERANCE."""
    found = deviations(case, row)
    return "FID" in found and all(abs(value) <= 1 for value in found.values())


def beside(case: Case, row: PublishedRow) -> str:
    """Our numbers and theirs: `FID 6.130 (published 5.464), IS 193.6 (193.6)`."""
    return ", ".join(
        f"{metric} {case.values[metric]:.4g} (published {row.values[metric]:.4g})" for metric in deviations(case, row)
    )


def of_same_is(case: Case) -> list[PublishedRow]:
    """Published rows of any model with the IS of the very same images, evaluator and number of images."""
    score, wanted = case.values.get("IS", math.nan), [case.protocol.get(key) for key in ("evaluator", "num_images")]
    if None in wanted:
        return []
    rows = [row for row in published() if row.kind == "result" and [row.evaluator, row.num_images] == wanted]
    return [row for row in rows if abs(score / row.values.get("IS", math.nan) - 1) <= SAME_IS]


def wrong_reference(case: Case) -> Iterator[Finding]:
    """IS needs no reference, so that IS as published with FID and precision off means another reference; so does
    one said to be of validation images, except for COCO, where that is the custom."""
    if not case.is_fid or case.is_coco:
        return
    name = case.protocol.get("reference", "not named")
    validation = case.protocol.get("reference_split") in ("val", "validation")
    row = _same_pictures(case)
    if not validation and row is None:
        return
    seen = [f"The reference ({name}) is of validation images; published FIDs are against training images"] * validation
    if row is not None:
        seen.append(
            f"IS is that of {row.describe()}, the rest is not: {beside(case, row)}. FID and precision depend on the "
            f"reference ({name}), IS does not, so it is another than the published one (as in LlamaGen#48 and #53, "
            "where it was of validation images)"
        )
    certain = validation or ("precision" in deviations(case, row) and row.guidance is not None)
    yield Finding(
        "wrong-reference",
        "problem" if certain else "warning",
        f"{'. '.join(seen)}.",
        "measure again against training images; of ImageNet: adm-imagenet256 (VIRTUAL_imagenet256_labeled.npz)",
    )


def _same_pictures(case: Case) -> PublishedRow | None:
    """A published row with our IS and neither our FID nor our precision. Where nobody says which model drew the
    images, only an IS that is equal to SAME_IS counts, and only with a precision that is off."""
    if "IS" not in case.values:
        return None
    known = case.protocol.get("model") is not None
    rows = matching(case.protocol, ignoring=("reference",)) if known else of_same_is(case)
    for row in rows:
        if "IS" not in row.values or not abs(case.values["IS"] / row.values["IS"] - 1) <= TOLERANCE["IS"]:
            continue
        fid_off = abs(case.values["FID"] / row.values["FID"] - 1) > WRONG_FID
        both = "precision" in case.values and "precision" in row.values
        precise = both and abs(case.values["precision"] - row.values["precision"]) <= WRONG_PRECISION
        if fid_off and not precise and (known or both):
            return row
    return None


def reconstruction(case: Case) -> Iterator[Finding]:
    """Reconstructions against the reference for generated images: the FID that VQ-16's have there."""
    protocol = case.protocol
    if protocol.get("model") or protocol.get("reference") not in TRAINING_STATISTICS or not case.is_fid:
        return
    if abs(case.values["FID"] / RECONSTRUCTION_FID - 1) <= TOLERANCE["FID"]:
        yield Finding(
            "reconstruction-reference",
            "note",
            f"FID {case.values['FID']:.4g} against {protocol['reference']}, training images, is what VQ-16's "
            "reconstructions have there (LlamaGen#34). If these are such, it is not their rFID, 2.19, which is against "
            "the images that were reconstructed.",
            "measure reconstructions against their originals: `make eval-tokenizer`",
        )


def few_images(case: Case) -> Iterator[Finding]:
    """FID is biased upwards by about c / N (Chong and Forsyth 2020)."""
    count, needed = case.protocol.get("num_images"), 30_000 if case.is_coco else 50_000
    if not case.is_fid or count is None or count == needed:
        return
    advice = f"{case.draw(f'num_images={needed}')}, then measure these"
    if count > needed:
        text = f"FID is over {count:,} images where the protocol has {needed:,}: more images give a lower FID."
        yield Finding("many-images", "note", text, advice)
        return
    text = (
        f"FID is over {count:,} images where the protocol has {needed:,}. Its bias goes as 1 / N: here it is "
        f"{needed / count:.3g} times that of {needed:,}."
    )
    if count <= FEATURES:
        text += (
            f" {count:,} images cannot fill the covariance of {FEATURES:,} features (its rank is at most "
            f"{count - 1:,}): the value is mostly bias."
        )
    elif not case.is_coco:
        most = VALIDATION_FID * (needed / count - 1)
        text += f" For images no more varied than real ones that adds at most about {most:.2g}."
    yield Finding("few-images", "problem", text, advice)


def small_reference(case: Case) -> Iterator[Finding]:
    size, name = case.protocol.get("reference_size"), case.protocol.get("reference")
    needed = 30_000 if case.is_coco else 50_000
    # ADM's file counts the 10,000 images that it keeps for precision and recall; its statistics are of all.
    if not case.is_fid or size is None or size >= needed or name == "adm-imagenet256":
        return
    if size > FEATURES and not is_imagenet(case.protocol):
        return  # there may be no more images, and nothing published to compare with
    yield Finding(
        "small-reference",
        "warning",
        f"The reference {name} is of {size:,} images, published ones are of at least {needed:,}. Few images raise "
        "FID" + (f", and {size:,} cannot fill the covariance of {FEATURES:,} features." if size <= FEATURES else "."),
        "make the reference of the whole training set: `make reference DATA=...`",
    )


def resolution(case: Case) -> Iterator[Finding]:
    """A release drawn at the other of 256 and 384."""
    release, drawn_at = case.protocol.get("release"), case.protocol.get("drawn_at")
    sizes = {row.drawn_at for row in published() if row.release == release and row.kind == "result"}
    if None in (release, drawn_at) or not sizes or drawn_at in sizes:
        return
    right = sizes.pop()
    yield Finding(
        "resolution",
        "problem",
        f"{release} draws {right} x {right} pixels ({right // 16} tokens a side), but these images are said to be "
        f"drawn at {drawn_at}: the positions are not those it was trained with.",
        f"`make sample RELEASE={release}`: the config of the release has its grid",
    )


def another_row(case: Case) -> Iterator[Finding]:
    """FID and IS of the same model at another resolution or guidance than is said."""
    own = matching(case.protocol)
    if not case.is_fid or "IS" not in case.values or not own or any(agrees(case, row) for row in own):
        return
    for row in matching(case.protocol, ignoring=("drawn_at", "guidance", "release", "epochs")):
        if row.release is None or "IS" not in row.values or not agrees(case, row):
            continue
        what = "resolution" if row.drawn_at != case.protocol["drawn_at"] else "guidance"
        if what == "guidance" and case.protocol.get("guidance") == row.guidance:
            continue
        said = f"{case.protocol['drawn_at']} px, guidance {case.protocol.get('guidance')}"
        yield Finding(
            f"other-{what}",
            "warning",
            f"The file says {said}, but the numbers are those of {row.describe()}: {beside(case, row)}.",
            f"check which checkpoint and which {what} drew these images; {case.draw()} records both",
        )
        return


def sampling(case: Case) -> Iterator[Finding]:
    """Guidance, temperature, top-k and top-p off the release's preset, or those of a gallery."""
    protocol = case.protocol
    if not case.is_fid or case.is_coco:
        return
    preset = next((row for row in published() if row.preset and row.release == protocol.get("release")), None)
    wanted = {**preset.sampling, "guidance": preset.guidance} if preset else Protocol.neutral()
    off = {k: protocol[k] for k, value in wanted.items() if protocol.get(k) is not None and protocol[k] != value}
    gallery = _gallery(protocol, off)
    if gallery:
        # The guidance of MASC's own rows is not stated: a sweep passes through its gallery's too.
        yield Finding(
            "gallery",
            "note" if gallery == "gallery-masc" else "warning",
            f"{_settings(GALLERIES[gallery])} are settings of {gallery}, for looking and not for measuring: strong "
            "guidance raises IS and precision, and FID with them.",
            f"draw with the settings that are measured: {case.draw()}",
        )
    elif off:
        kept = ", ".join(f"{key} {wanted[key]}" for key in off)
        whose = f"the preset of {preset.release}" if preset else "published protocols"
        expected, verdict = _expected(case, preset, set(off))
        text = f"{_settings(off)} where {whose} has {kept}.{expected}"
        yield Finding("off-preset", verdict, text, f"to compare with published numbers: {case.draw()}")


def _gallery(protocol: dict[str, Any], off: dict[str, Any]) -> str | None:
    """Which gallery's settings these are; MASC's guidance counts for its own heads only, LlamaGen has a row there."""
    for name, settings in GALLERIES.items():
        is_own = name == "gallery" or str(protocol.get("head")).startswith("masc")
        if is_own and all(protocol.get(key) == value for key, value in settings.items()) and set(off) <= set(settings):
            return name
    return None


def _expected(case: Case, preset: PublishedRow | None, off: set[str]) -> tuple[str, str]:
    """What the published grid would give at this guidance, and how much the finding weighs."""
    if preset is None or off != {"guidance"}:
        return " No published number is of these settings.", "warning"
    grid = [row for row in published() if row.release == preset.release and row.kind == "result"]
    ours = max(float(case.protocol["guidance"]), 1.0)
    near = min(grid, key=lambda row: abs(row.guidance - ours))
    text = f" The nearest published guidance is {near.guidance:g}: FID {near.values['FID']:.4g} expected there."
    return text, "note" if near.guidance == ours and agrees(case, near) else "warning"


def _settings(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def across_evaluators(case: Case) -> Iterator[Finding]:
    """Published rows of the model that another evaluator measured."""
    protocol = case.protocol
    rows = rows_for(protocol.get("model"), label_of(protocol)) if case.is_fid and protocol.get("model") else []
    theirs, ours = sorted({row.evaluator for row in rows if row.evaluator}), protocol.get("evaluator")
    if not theirs or ours is None or ours in theirs:
        return
    yield Finding(
        "across-evaluators",
        "note",
        f"The published rows of {rows[0].model} {rows[0].label} were measured by {', '.join(theirs)}, these by {ours}. "
        "ADM's and torch-fidelity's FID agree to nine digits on the same features and reference, precision and recall "
        "to 0.001, IS up to its grouping; clean-fid and pytorch-fid resize differently and compare with neither.",
        f"measure under the protocol of {theirs[0]} too before laying numbers side by side",
    )
