"""Tables of tokenizers for the page over all runs: reconstruction and semantic replacement.

The results come from `make eval-tokenizer` and `make eval-replacement`, below `artifacts`. Tokenizers share a table
only if they were measured on the same images."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masc.runtime.errors import InputError
from masc.runtime.reading import Damaged, advising, check_json, damaged_is_missing, read_json
from metrics.evaluators import SHA256_PREFIX
from metrics.results import TOKENIZER_FILES, Protocol, Role, check_rows, identity
from reports.comparison import group_by
from reports.published import PublishedRow, published
from reports.subjects import is_image

RECONSTRUCTIONS = ("training images", "reconstructions")  # further lists of rows in the file of reconstruction
IMAGES = ("images", "num_images", "images_sha256")  # decide the table
COLUMN = tuple(key for key in Protocol.keys(Role.SETTING, Role.DETAIL) if key not in IMAGES)  # decide the column
# Names of published metrics by ours. Every published SSIM follows LlamaGen's definition.
PUBLISHED = {"rFID": "rFID", "PSNR (dB)": "PSNR", "SSIM (LlamaGen's)": "SSIM"}


@dataclass(frozen=True)
class MeasuredTokenizer:
    """Results of one tokenizer: rows of reconstruction, and rows of replacement for each tree and K."""

    place: Path
    reconstruction: list[dict[str, Any]]
    replacement: list[dict[str, Any]]
    image: Path | None

    @property
    def rows(self) -> list[tuple[str, dict[str, Any]]]:
        """All rows, each with the name of its file."""
        replaced = [row for case in self.replacement for row in case["metrics"]]
        return [(TOKENIZER_FILES["reconstruction"], row) for row in self.reconstruction] + [
            (TOKENIZER_FILES["replacement"], row) for row in replaced
        ]


def find_tokenizers(root: Path) -> tuple[list[MeasuredTokenizer], list[dict[str, str]]]:
    """The measured tokenizers below `root`, and a list of unreadable files with reasons."""
    found, skipped = [], []
    for place in sorted(root.glob("*/eval")):
        parts: dict[str, list[dict[str, Any]]] = {part: [] for part in TOKENIZER_FILES}
        for part in (part for part, name in TOKENIZER_FILES.items() if (place / name).exists()):
            try:
                parts[part] = read_tokenizer_results(place / TOKENIZER_FILES[part], part)[part]
            except InputError as error:
                skipped.append({"place": str(place / TOKENIZER_FILES[part]), "reason": str(error)})
        image = place / "replacement.png"
        advice = f"remove {TOKENIZER_FILES['replacement']} beside it and measure the replacement again"
        is_shown = parts["replacement"] and image.exists() and is_image(image, skipped, advice)
        if any(parts.values()):
            found.append(MeasuredTokenizer(place, **parts, image=image if is_shown else None))
    return found, skipped


@dataclass(frozen=True)
class _Case:
    """The replacement test within the clusters of a tree at one K."""

    tree: str
    K: int
    largest_cluster: int
    metrics: list[dict[str, Any]]


def read_tokenizer_results(file: Path, part: str) -> dict[str, Any]:
    """The content of a file of a tokenizer's results; `part` is its key of TOKENIZER_FILES.

    Raises MissingArtifact if the file is missing or damaged, lacks the part, or has an unknown key or a wrong value."""
    tokenizer = file.parent.parent.name
    with damaged_is_missing("tokenizer results", file, remove=True, tokenizer=tokenizer), advising("measure again"):
        content = read_json(file)
        if part == "replacement":
            check_json(content.get(part), list[_Case], file)
            for case in content[part]:
                case["metrics"] = _check_images(check_rows(case["metrics"], file), file)
        else:
            content[part] = _check_images(check_rows(content.get(part), file), file)
            for name in {*RECONSTRUCTIONS} & content.keys():
                content[name] = check_rows(content[name], file)
        if not content[part]:
            raise Damaged(f"expected results of {part} in {file}, found none")
    return content


def _check_images(rows: list[dict[str, Any]], file: Path) -> list[dict[str, Any]]:
    """The rows unchanged; `Damaged` if one does not say what was measured on which images."""
    for row in rows:
        lacking = [key for key in ("tokenizer", "images", "num_images") if key not in row["protocol"]]
        if lacking:
            raise Damaged(f"the {row['metric']} in {file} lacks {', '.join(lacking)}")
    return rows


def tokenizer_tables(found: list[MeasuredTokenizer]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Tables of reconstruction and then of replacement, and published rows of the same tokenizers that match no
    table."""
    everything = [(each.place, row) for each in found for row in each.reconstruction]
    groups = group_by(everything, lambda item: [item[1]["protocol"].get(key) for key in IMAGES])
    tables = [_reconstruction(group) for group in groups]
    titles = [table["title"] for table in tables]
    for table in tables:
        if titles.count(table["title"]) > 1:  # other images of the same source
            table["title"] += f", images {str(table['images']['images_sha256'])[:8]}"
    names = dict.fromkeys(row["protocol"]["tokenizer"] for _, row in everything)
    placed = {_key(row) for table in tables for row in table["published"]}
    described = [_describe(row) for name in names for row in _rows_of(name)]
    replaced = [_replacement(each) for each in found if each.replacement]
    return [*tables, *replaced], [row for row in described if _key(row) not in placed]


def _reconstruction(group: list[tuple[Path, dict[str, Any]]]) -> dict[str, Any]:
    rows = [row for _, row in group]
    images = {key: rows[0]["protocol"].get(key) for key in IMAGES}
    size = next((row["protocol"]["image_size"] for row in rows if "image_size" in row["protocol"]), None)
    columns = _columns(rows)
    names = dict.fromkeys(row["protocol"]["tokenizer"] for row in rows)
    beside = [row for name in names for row in _rows_of(name) if _is_of(row, images, size)]
    return {
        "kind": "reconstruction",
        "title": f"{_images_text(images)}{f' of {size} px' if size else ''}",
        "images": images,
        "columns": list(columns.values()),
        "rows": [
            {"about": {"tokenizer": members[0][1]["protocol"]["tokenizer"]}, "place": str(members[0][0])}
            | {"cells": _cells([row for _, row in members], columns)}
            for members in group_by(group, lambda item: str(item[0]))
        ],
        "published": [_describe(row) | {"cells": [_value(row, key) for key in columns]} for row in beside],
        "image": None,
    }


def _replacement(tokenizer: MeasuredTokenizer) -> dict[str, Any]:
    rows = [row for case in tokenizer.replacement for row in case["metrics"]]
    protocol, columns = rows[0]["protocol"], _columns(rows)
    images = {key: protocol.get(key) for key in IMAGES}
    return {
        "kind": "replacement",
        "title": f"{protocol['tokenizer']}, {_images_text(images)}",
        "images": images,
        "columns": list(columns.values()),
        "rows": [
            {"about": {"tree": case["tree"], "K": case["K"], "largest cluster": case["largest_cluster"]}}
            | {"place": str(tokenizer.place), "cells": _cells(case["metrics"], columns)}
            for case in tokenizer.replacement
        ],
        "published": [],
        "image": None if tokenizer.image is None else str(tokenizer.image),
    }


def _images_text(images: dict[str, Any]) -> str:
    return f"{images['images']}, {images['num_images']:,} images"


def _column(row: dict[str, Any]) -> str:
    """A text that is equal for numbers of one metric that were measured alike."""
    return identity([row["metric"], {key: v for key, v in row["protocol"].items() if key in COLUMN}])


def _columns(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Heading of each column: the metric, and the keys that differ if it was measured in several ways."""
    ways = {column: json.loads(column) for column in dict.fromkeys(map(_column, rows))}
    headings = {}
    for column, (metric, how) in ways.items():
        others = [other for name, other in ways.values() if name == metric]
        differing = [key for key in how if any(other.get(key) != how[key] for other in others)]
        headings[column] = metric + "".join(f", {key.replace('_', ' ')} {str(how[key])[:12]}" for key in differing)
    return headings


def _cells(rows: list[dict[str, Any]], columns: dict[str, str]) -> list[dict[str, Any] | None]:
    """The value of each column, with its spread over several seeds; None if it was not measured."""
    cells = {_column(row): {"mean": row["value"], "sd": row["protocol"].get("sd_over_seeds")} for row in rows}
    return [cells.get(column) for column in columns]


def _rows_of(name: str) -> list[PublishedRow]:
    return [row for row in published() if row.kind == "reconstruction" and row.model == name]


def _is_of(row: PublishedRow, images: dict[str, Any], size: int | None) -> bool:
    """Whether a published row has the same image set, count and size: `imagenet val` at 256 pixels is imagenet256-val.

    Other sets do not state their year, so only ImageNet's rows match."""
    source, _, split = images["images"].partition(" ")
    ours = f"{source}{size}-{split}"
    return (row.num_images, row.reference, row.drawn_at) == (images["num_images"], ours, size)


def _value(row: PublishedRow, column: str) -> float | None:
    """The value of a published row for a column; None if ours was measured with other Inception weights."""
    metric, how = json.loads(column)
    is_published = str(how.get("extractor_sha256", SHA256_PREFIX)).startswith(SHA256_PREFIX)
    return row.values.get(PUBLISHED.get(metric, "")) if is_published else None


def _key(described: dict[str, Any]) -> tuple[str, str]:
    return described["text"], described["protocol"]


def _describe(row: PublishedRow) -> dict[str, Any]:
    return {
        "text": f"{row.source}: {row.model}, drawn at {row.drawn_at} px {f'({row.note})' if row.note else ''}".strip(),
        "name": row.model,
        "source": row.source,
        "note": row.note,
        "protocol": f"reference {row.reference}, {row.num_images:,} images",
        "values": row.values,
    }
