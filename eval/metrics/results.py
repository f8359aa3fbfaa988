"""Results: numbers, each with its protocol, and observations about the images, in one file.

A protocol is a dict of keys and values, so that files keep their layout. `Protocol` lists every key with its role;
tables and comparisons ask it for the keys of a role."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from masc.runtime.errors import InputError
from masc.runtime.files import write_json
from masc.runtime.reading import Damaged, advising, check_json, read_json
from metrics.stored import Evidence, StoredRow, check_sizes

TOKENIZER_FILES = {"reconstruction": "tokenizer.json", "replacement": "replacement.json"}  # of a tokenizer's evaluation
VERSION = 1
FITTED_NATS = "held-out nats per token at a fitted temperature"  # a metric of eval/likelihood.json


class Role(StrEnum):
    """What a key of a protocol says about its number."""

    IDENTITY = "identity"  # what the number describes: model, samples, tokenizer. Decides the row of a table.
    SETTING = "setting"  # how it was measured: numbers that differ here do not compare. Decides the table.
    DETAIL = "detail"  # how this metric is defined. Decides the column.
    PER_RUN = "per run"  # differs between seeds of one family and is no choice


def key(role: Role, neutral: Any = None, compared: bool = False, apart: bool = False, method: bool = False) -> Any:
    """A field of `Protocol`.

    `neutral`: the value that changes nothing. `compared`: the doctor names the key if two FIDs of a model differ in it.
    `apart`: results that differ in the key get files of their own. `method`: the key describes the head or its tree."""
    flags = {"compared": compared, "apart": apart, "method": method}
    return field(default=None, metadata={"role": Role(role), "neutral": neutral, **flags})


def with_roles(schema: type) -> type:
    """The dataclass unchanged. Raises TypeError if one of its fields has no role."""
    bare = [each.name for each in fields(schema) if "role" not in each.metadata]
    if bare:
        raise TypeError(f"{schema.__name__}: {', '.join(bare)} needs a role, as in `= key(Role.SETTING)`")
    return schema


@with_roles
@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Every key that a row's protocol may have, in the order of tables; all are optional.

    A trailing underscore is not part of the key: `as_` is `as`, which Python reserves."""

    # How it was measured.
    protocol: str = key(Role.SETTING)  # name of its config
    evaluator: str = key(Role.SETTING, compared=True)  # its definitions are used
    reference: str = key(Role.SETTING, compared=True)
    reference_sha256: str = key(Role.SETTING, compared=True, apart=True)
    reference_split: str = key(Role.SETTING)
    reference_size: int = key(Role.SETTING)  # images
    reference_neighbours: int = key(Role.SETTING)  # images that precision and recall use
    extractor: str = key(Role.SETTING)
    extractor_sha256: str = key(Role.SETTING, compared=True, apart=True)
    resize: str = key(Role.SETTING, compared=True, apart=True)
    input: str = key(Role.SETTING)  # of the embedded extractor
    arithmetic: Mapping[str, Any] = key(Role.SETTING)
    num_images: int = key(Role.SETTING, compared=True, apart=True)
    image_size: int = key(Role.SETTING, compared=True)  # pixels a side
    crop: str = key(Role.SETTING, compared=True)
    codes_sha256: str = key(Role.SETTING)  # held-out codes of a likelihood
    candidates: int = key(Role.SETTING)  # images and captions of a gallery, among which an own one is sought
    reference_images: str = key(Role.SETTING)  # of COCO: all, or those paired with the captions
    captions_sha256: str = key(Role.SETTING, compared=True)
    ids_sha256: str = key(Role.SETTING)  # image and caption ids of COCO
    # How one metric is defined.
    form: str = key(Role.DETAIL)
    splits: int = key(Role.DETAIL)
    chunk: int = key(Role.DETAIL)  # images of an inception score's chunk
    order: str = key(Role.DETAIL)
    neighbour: int = key(Role.DETAIL)  # k of precision and recall
    distances: str = key(Role.DETAIL)
    text: str = key(Role.DETAIL)  # what the CLIP score's caption is put into
    preprocessing: str = key(Role.DETAIL)
    open_clip: str = key(Role.DETAIL)  # version
    pixels: str = key(Role.DETAIL)  # type of the values that PSNR compares
    at_most: float = key(Role.DETAIL)  # PSNR of equal images
    by: str = key(Role.DETAIL)  # package
    as_: str = key(Role.DETAIL)  # the implementation that is followed
    data_range: float = key(Role.DETAIL)
    gaussian_weights: bool = key(Role.DETAIL)
    sigma: float = key(Role.DETAIL)
    use_sample_covariance: bool = key(Role.DETAIL)
    version: str = key(Role.DETAIL)  # of LPIPS
    backbone: str = key(Role.DETAIL)
    backbone_sha256: str = key(Role.DETAIL)
    against: str = key(Role.DETAIL)  # what replaced images are compared with
    # What it describes.
    images: str = key(Role.IDENTITY)
    file_type: str = key(Role.IDENTITY)
    captions: str = key(Role.IDENTITY)
    release: str = key(Role.IDENTITY)
    model: str = key(Role.IDENTITY)
    head: str = key(Role.IDENTITY, method=True)
    tree: str = key(Role.IDENTITY, method=True)
    K: int = key(Role.IDENTITY, method=True)
    levels: Sequence[int] = key(Role.IDENTITY, method=True)  # all cuts of a head that has several
    loss: str = key(Role.IDENTITY, method=True)  # what the model was trained by, unless it is cross-entropy
    data: str = key(Role.IDENTITY)
    step: int = key(Role.IDENTITY)
    images_seen: int = key(Role.IDENTITY)
    weights: str = key(Role.IDENTITY)  # raw or average
    tokenizer: str = key(Role.IDENTITY)
    tokenizer_sha256: str = key(Role.IDENTITY)
    labels: str = key(Role.IDENTITY)
    drawn_at: int = key(Role.IDENTITY)  # pixels a side as decoded
    resolution: int = key(Role.IDENTITY)  # pixels a side as stored
    sampling_precision: str = key(Role.IDENTITY)
    guidance: float = key(Role.IDENTITY)
    guidance_power: float = key(Role.IDENTITY)
    guidance_start: float = key(Role.IDENTITY)
    temperature: float = key(Role.IDENTITY, neutral=1.0)
    top_k: int = key(Role.IDENTITY, neutral=0)
    top_p: float = key(Role.IDENTITY, neutral=1.0)
    guidance_schedule: str = key(Role.IDENTITY, neutral="constant")
    guidance_interval: int = key(Role.IDENTITY, neutral=-1)
    guided_decisions: int = key(Role.IDENTITY, neutral=0)
    # What differs from run to run.
    seed: int = key(Role.PER_RUN)
    seconds: float = key(Role.PER_RUN)  # of training
    standard_error_over_images: float = key(Role.PER_RUN)
    temperatures: Sequence[float] = key(Role.PER_RUN)  # of likelihoods: each fitted on half of the images for the other
    weights_sha256: str = key(Role.PER_RUN)
    tree_sha256: str = key(Role.PER_RUN)
    images_sha256: str = key(Role.PER_RUN)
    manifest_sha256: str = key(Role.PER_RUN)
    seeds: Sequence[int] = key(Role.PER_RUN)  # of the replacement test: a value is the mean over them
    sd_over_seeds: float = key(Role.PER_RUN)
    by_seed: Sequence[float] = key(Role.PER_RUN)

    def __post_init__(self) -> None:
        check_sizes(asdict(self))
        for name in ("num_images", "reference_size", "image_size", "drawn_at", "resolution", "K", "chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be positive, found {value}")

    @classmethod
    @cache
    def roles(cls) -> dict[str, Role]:
        """The role of each key."""
        return {_name(each): each.metadata["role"] for each in fields(cls)}

    @classmethod
    def keys(cls, *roles: Role) -> tuple[str, ...]:
        """Keys of these roles, in order."""
        return tuple(name for name, role in cls.roles().items() if role in roles)

    @classmethod
    def flagged(cls, flag: str) -> tuple[str, ...]:
        """Keys with a flag (`compared`, `apart` or `method`), in order."""
        return tuple(_name(each) for each in fields(cls) if each.metadata[flag])

    @classmethod
    @cache
    def neutral(cls) -> dict[str, Any]:
        """The neutral value of each key that has one."""
        return {_name(each): each.metadata["neutral"] for each in fields(cls) if each.metadata["neutral"] is not None}

    @classmethod
    def check(cls, protocol: dict[str, Any], where: str) -> None:
        """Raise ValueError if the protocol of a row has a key that is no field of this class."""
        unknown = sorted(protocol.keys() - cls.roles().keys())
        if unknown:
            raise ValueError(
                f"{where} has the unknown key {', '.join(map(repr, unknown))} in a protocol; known keys: "
                f"{', '.join(sorted(cls.roles()))}"
            )

    @classmethod
    def check_stored(cls, protocol: dict[str, Any], path: Path) -> None:
        """Raise `Damaged` if a protocol in the file at `path` has an unknown key, or a value of another type."""
        try:
            cls.check(protocol, str(path))
        except ValueError as error:
            raise Damaged(str(error)) from error
        names = {_name(each): each.name for each in fields(cls)}
        check_json({names[key]: value for key, value in protocol.items()}, cls, path)


def _name(each: Any) -> str:
    return each.name.rstrip("_")


def row(metric: str, value: float, protocol: dict[str, Any], interval: dict[str, Any] | None = None) -> dict[str, Any]:
    """A number with its protocol, and with its confidence interval if there is one: the only form in which results are
    stored. Raises ValueError for a key that `Protocol` does not have."""
    Protocol.check(protocol, f"the row of {metric}")
    return {"metric": metric, "value": value, **({"interval": interval} if interval else {}), "protocol": protocol}


def check_rows(rows: Any, path: Path) -> list[dict[str, Any]]:
    """The rows that a file holds, without the keys of a protocol that are null, which means absent.

    Raises `Damaged` if there is no row, if one has another form, an unknown key or a value of another type, or if two
    describe one number."""
    check_json(rows, list[StoredRow], path)
    found = [row | {"protocol": {k: v for k, v in row["protocol"].items() if v is not None}} for row in rows]
    for row in found:
        Protocol.check_stored(row["protocol"], path)
    alike = {identity([row["metric"], row["protocol"]]) for row in found}
    if not rows or len(alike) < len(rows):
        raise Damaged(f"expected one or more rows in {path}, each of another number, found {len(rows)}")
    return found


def check_new(rows: list[dict[str, Any]], path: Path) -> None:
    """Raise InputError, before rows are written to `path`, for what `check_rows` would refuse when they are read.

    A number that is not finite is named by its metric."""
    for row in rows:
        interval = row.get("interval") or {}
        numbers = [row["value"], *(interval[end] for end in ("low", "high") if end in interval)]
        if not all(map(math.isfinite, numbers)):
            raise InputError(
                f"expected a finite {row['metric']}, found {', '.join(map(str, numbers))}; {path} was not written. "
                "Check the images, and the weights of the networks that measured them"
            )
    check_rows(rows, path)


def identity(content: Any) -> str:
    """A text that is equal for equal plain values."""
    return json.dumps(content, sort_keys=True, default=str)


def row_text(row: dict[str, Any]) -> str:
    """A row's metric, value and interval, in columns."""
    interval = row.get("interval")
    between = f"   95% {interval['low']:.4f} to {interval['high']:.4f}" if interval else ""
    return f"  {row['metric']:<10} {row['value']:>10.4f}{between}"


@dataclass(frozen=True)
class Results:
    """The rows of one evaluation, and the evidence that `make doctor` reads."""

    rows: list[dict[str, Any]]
    evidence: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, metric: str) -> dict[str, Any]:
        return self.by_metric[metric]

    @property
    def by_metric(self) -> dict[str, dict[str, Any]]:
        return {row["metric"]: row for row in self.rows}

    def save(self, path: Path) -> None:
        """Write the file completely or not at all. Raises InputError for what `load` would refuse."""
        check_new(self.rows, path)
        check_json(self.evidence, Evidence, path)
        write_json(path, {"format": "masc-results", "version": VERSION, "rows": self.rows, "evidence": self.evidence})

    @staticmethod
    def load(path: Path) -> "Results":
        """The results in a file. Raises InputError if it is missing, is no file of results, or holds a key or a value
        that does not belong there."""
        path = Path(path)
        with advising("name another file, or remove it and measure again"):
            content = read_json(path)
            found = (content.get("format"), content.get("version"))
            if found != ("masc-results", VERSION):
                raise Damaged(
                    f"expected masc-results of version {VERSION} in {path}, found {found[0]!r:.60} version "
                    f"{found[1]!r:.60}"
                )
            evidence = content.get("evidence")
            check_json(evidence, Evidence, path)
            return Results(check_rows(content.get("rows"), path), evidence)
