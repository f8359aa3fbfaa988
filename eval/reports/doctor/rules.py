"""Rules of `make doctor` that compare numbers and settings with the published grid; see doctor.py."""

import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from metrics.results import Protocol, Results
from reports.published import TRAINING_STATISTICS, PublishedRow, is_imagenet, label_of, matching, published, rows_for

FEATURES = 2048  # of the pooled Inception layer
# Allowed difference of another draw of 50,000 images from a published number. Our choice, wider than the spread that
# users of the same weights report. Relative for the first three metrics, absolute for the others.
TOLERANCE = {"FID": 0.02, "IS": 0.015, "sFID": 0.03, "precision": 0.01, "recall": 0.015}
SAME_IS = 5e-4  # relative: the same images drawn again (LlamaGen#48: 193.6122 for 193.613)
WRONG_FID, WRONG_PRECISION = 0.05, 0.03  # LlamaGen#48 and #53: 12% to 41% of FID, 0.09 of precision
# Settings of configs/sampling for viewing samples, not for measuring them.
GALLERIES = {"gallery": {"guidance": 4.0, "top_k": 2000}, "gallery-masc": {"guidance": 2.5, "top_k": 0}}
VALIDATION_FID = 1.684  # real validation images under ADM's protocol (LlamaGen paper)
RECONSTRUCTION_FID = 4.28  # VQ-16's reconstructions under that protocol (LlamaGen#34); their rFID is 2.19


@dataclass(frozen=True)
class Finding:
    """An observation, its verdict, and advice."""

    code: str
    verdict: str  # problem, warning, note or fine
    text: str
    advice: str = ""


@dataclass(frozen=True)
class Case:
    """One file of results, and other files that a reader may compare with it."""

    results: Results
    others: tuple[Results, ...] = ()

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """The protocol of the FID, or of the first row without an FID."""
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
        """Whether the results hold an FID."""
        return "FID" in self.values

    @property
    def is_coco(self) -> bool:
        return str(self.protocol.get("protocol", "")).startswith("coco")

    def draw(self, setting: str = "") -> str:
        """The command that draws such images with another setting, into a new set."""
        release = self.protocol.get("release")
        if not release and not self.protocol.get("model"):  # drawn by others
            return f"make the images again{f' ({setting})' if setting else ''}"
        subject = f"RELEASE={shlex.quote(release)}" if release else "RUN=..."
        stage = "eval-coco" if self.is_coco else "sample"  # eval-coco shows captions
        return f"`make {stage} {subject} SAMPLES=NEW_NAME{f' ARGS={setting}' if setting else ''}`"


def deviations(case: Case, row: PublishedRow) -> dict[str, float]:
    """Difference of ours from the published value in units of TOLERANCE, for each metric that both have."""
    found = {}
    for metric, tolerance in TOLERANCE.items():
        if metric in case.values and metric in row.values:
            scale = 1.0 if metric in ("precision", "recall") else row.values[metric]
            found[metric] = (case.values[metric] - row.values[metric]) / (scale * tolerance)
    return found


def agrees(case: Case, row: PublishedRow) -> bool:
    """Whether FID and all further common metrics agree within TOLERANCE."""
    found = deviations(case, row)
    return "FID" in found and all(abs(value) <= 1 for value in found.values())


def beside(case: Case, row: PublishedRow) -> str:
    """Our numbers with the published ones: `FID 6.130 (published 5.464), IS 193.6 (published 193.6)`."""
    return ", ".join(
        f"{metric} {case.values[metric]:.4g} (published {row.values[metric]:.4g})" for metric in deviations(case, row)
    )


def of_same_is(case: Case) -> list[PublishedRow]:
    """Published rows of any model with the same evaluator, image count and IS (within SAME_IS)."""
    score, wanted = case.values.get("IS", math.nan), [case.protocol.get(key) for key in ("evaluator", "num_images")]
    if None in wanted:
        return []
    rows = [row for row in published() if row.kind == "result" and [row.evaluator, row.num_images] == wanted]
    return [row for row in rows if abs(score / row.values.get("IS", math.nan) - 1) <= SAME_IS]


def wrong_reference(case: Case) -> Iterator[Finding]:
    """A reference that is not the published one.

    IS does not depend on the reference: if IS matches the published value and FID and precision do not, the reference
    differs. A validation reference is reported too, except for COCO, where it is standard."""
    if not case.is_fid or case.is_coco:
        return
    name = case.protocol.get("reference", "not named")
    validation = case.protocol.get("reference_split") in ("val", "validation")
    row = _same_images(case)
    if not validation and row is None:
        return
    seen = [f"The reference ({name}) holds validation images; published FIDs use training images"] * validation
    if row is not None:
        seen.append(
            f"IS agrees with {row.describe()}, the other metrics do not: {beside(case, row)}. FID and precision depend "
            f"on the reference ({name}) and IS does not, so the reference differs from the published one (in "
            "LlamaGen#48 and #53 it held validation images)"
        )
    certain = validation or ("precision" in deviations(case, row) and row.guidance is not None)
    yield Finding(
        "wrong-reference",
        "problem" if certain else "warning",
        f"{'. '.join(seen)}.",
        "measure again against training images; for ImageNet: adm-imagenet256 (VIRTUAL_imagenet256_labeled.npz)",
    )


def _same_images(case: Case) -> PublishedRow | None:
    """A published row with our IS, but with another FID and another precision; None without such a row.

    If the model is unknown, the IS must agree within SAME_IS, and the precision must be stated and differ."""
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
    """Reconstructions measured against the reference of generated images: VQ-16 has a known FID there."""
    protocol = case.protocol
    if protocol.get("model") or protocol.get("reference") not in TRAINING_STATISTICS or not case.is_fid:
        return
    if abs(case.values["FID"] / RECONSTRUCTION_FID - 1) <= TOLERANCE["FID"]:
        yield Finding(
            "reconstruction-reference",
            "note",
            f"FID {case.values['FID']:.4g} against the training images of {protocol['reference']} is the value of "
            "VQ-16's reconstructions (LlamaGen#34). If these images are reconstructions, it is not their rFID (2.19), "
            "which is measured against their originals.",
            "measure reconstructions against their originals: `make eval-tokenizer`",
        )


def few_images(case: Case) -> Iterator[Finding]:
    """FID is biased upwards by about c / N (Chong and Forsyth 2020)."""
    count, needed = case.protocol.get("num_images"), 30_000 if case.is_coco else 50_000
    if not case.is_fid or count is None or count == needed:
        return
    advice = f"{case.draw(f'num_images={needed}')}, then measure these"
    if count > needed:
        text = f"FID uses {count:,} images, the protocol {needed:,}: more images give a lower FID."
        yield Finding("many-images", "note", text, advice)
        return
    text = (
        f"FID uses {count:,} images, the protocol {needed:,}. Its bias is proportional to 1 / N: here it is "
        f"{needed / count:.3g} times the bias of {needed:,} images."
    )
    if count <= FEATURES:
        text += (
            f" {count:,} images cannot fill the covariance of {FEATURES:,} features (its rank is at most "
            f"{count - 1:,}): the value is mostly bias."
        )
    elif not case.is_coco:
        most = VALIDATION_FID * (needed / count - 1)
        text += f" For images as varied as real ones this adds about {most:.2g} at most."
    yield Finding("few-images", "problem", text, advice)


def small_reference(case: Case) -> Iterator[Finding]:
    size, name = case.protocol.get("reference_size"), case.protocol.get("reference")
    needed = 30_000 if case.is_coco else 50_000
    # ADM's file counts its 10,000 images for precision and recall, but its statistics cover the whole set.
    if not case.is_fid or size is None or size >= needed or name == "adm-imagenet256":
        return
    if size > FEATURES and not is_imagenet(case.protocol):
        return  # the data set may have no more images, and nothing is published to compare with
    yield Finding(
        "small-reference",
        "warning",
        f"The reference {name} has {size:,} images, published references at least {needed:,}. Few images raise "
        "FID" + (f", and {size:,} cannot fill the covariance of {FEATURES:,} features." if size <= FEATURES else "."),
        "make a reference of the whole training set: `make reference DATA=...`",
    )


def resolution(case: Case) -> Iterator[Finding]:
    """A release drawn at a resolution that it was not trained for (256 or 384)."""
    release, drawn_at = case.protocol.get("release"), case.protocol.get("drawn_at")
    sizes = {row.drawn_at for row in published() if row.release == release and row.kind == "result"}
    if None in (release, drawn_at) or not sizes or drawn_at in sizes:
        return
    right = sizes.pop()
    yield Finding(
        "resolution",
        "problem",
        f"{release} draws {right} x {right} pixels ({right // 16} tokens a side), but the file says that the images "
        f"were drawn at {drawn_at}: the model was not trained with these positions.",
        f"`make sample RELEASE={shlex.quote(release)}`: the config of the release has its grid",
    )


def another_row(case: Case) -> Iterator[Finding]:
    """FID and IS that match the same model at another resolution or guidance than stated."""
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
            f"The file says {said}, but the numbers agree with {row.describe()}: {beside(case, row)}.",
            f"check the checkpoint and the {what} of these images; {case.draw()} records both",
        )
        return


def sampling(case: Case) -> Iterator[Finding]:
    """Guidance, temperature, top-k and top-p that differ from the release's preset, or that are a gallery's."""
    protocol = case.protocol
    if not case.is_fid or case.is_coco:
        return
    preset = next((row for row in published() if row.preset and row.release == protocol.get("release")), None)
    wanted = {**preset.sampling, "guidance": preset.guidance} if preset else Protocol.neutral()
    off = {k: protocol[k] for k, value in wanted.items() if protocol.get(k) is not None and protocol[k] != value}
    gallery = _gallery(protocol, off)
    if gallery:
        # MASC's own rows do not state their guidance, so a sweep may include the gallery's value: only a note.
        yield Finding(
            "gallery",
            "note" if gallery == "gallery-masc" else "warning",
            f"{_settings(GALLERIES[gallery])} are settings of {gallery}, for viewing and not for measuring: strong "
            "guidance raises IS and precision, and also FID.",
            f"draw with the settings for measuring: {case.draw()}",
        )
    elif off:
        kept = ", ".join(f"{key} {wanted[key]}" for key in off)
        source = f"the preset of {preset.release}" if preset else "published protocols"
        expected, verdict = _expected(case, preset, set(off))
        text = f"The samples have {_settings(off)}, not {kept} as in {source}.{expected}"
        yield Finding("off-preset", verdict, text, f"to compare with published numbers: {case.draw()}")


def _gallery(protocol: dict[str, Any], off: dict[str, Any]) -> str | None:
    """The name of the gallery with these settings, or None.

    MASC's gallery counts only for MASC's heads, because LlamaGen has a published row at the same guidance."""
    for name, settings in GALLERIES.items():
        is_own = name == "gallery" or str(protocol.get("head")).startswith("masc")
        if is_own and all(protocol.get(key) == value for key, value in settings.items()) and set(off) <= set(settings):
            return name
    return None


def _expected(case: Case, preset: PublishedRow | None, off: set[str]) -> tuple[str, str]:
    """A sentence about the published number at this guidance, and the verdict of the finding."""
    if preset is None or off != {"guidance"}:
        return " No published number has these settings.", "warning"
    grid = [row for row in published() if row.release == preset.release and row.kind == "result"]
    ours = max(float(case.protocol["guidance"]), 1.0)
    near = min(grid, key=lambda row: abs(row.guidance - ours))
    text = f" The nearest published guidance is {near.guidance:g}: FID {near.values['FID']:.4g} expected there."
    return text, "note" if near.guidance == ours and agrees(case, near) else "warning"


def _settings(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def across_evaluators(case: Case) -> Iterator[Finding]:
    """Published rows of the model from another evaluator."""
    protocol = case.protocol
    rows = rows_for(protocol.get("model"), label_of(protocol)) if case.is_fid and protocol.get("model") else []
    theirs, ours = sorted({row.evaluator for row in rows if row.evaluator}), protocol.get("evaluator")
    if not theirs or ours is None or ours in theirs:
        return
    yield Finding(
        "across-evaluators",
        "note",
        f"The published rows of {rows[0].model} {rows[0].label} were measured by {', '.join(theirs)}, these by {ours}. "
        "On the same features and reference, ADM's and torch-fidelity's FID agree to nine digits, precision and recall "
        "to 0.001, IS except for its grouping; clean-fid and pytorch-fid resize differently and compare with neither.",
        f"measure with the protocol of {theirs[0]} too before you compare the numbers",
    )
