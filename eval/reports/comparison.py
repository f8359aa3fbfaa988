"""Tables of all results: one table for each protocol, averages over seeds, and the published rows beside ours.

Two numbers share a table only if their settings are equal, and a column only if their details are equal
(`metrics.results.Role`)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from metrics.results import Protocol, Role, identity
from reports.published import PublishedRow, label_of, matching, rows_for
from reports.subjects import Subject

FULL_SIZE = {"coco": 30_000}  # images of the published numbers, by prefix of the protocol's name; otherwise 50,000
# A published row is shown even if it differs from ours in these keys, because every row states its own values.
STATED_BY_ROW = ("guidance", "K", "epochs", "release", *Protocol.neutral())


@dataclass(frozen=True)
class Entry:
    """One row of one results file, and the key of the table it belongs to."""

    subject: Subject
    file: str
    row: dict[str, Any]
    key: dict[str, Any]

    @property
    def metric(self) -> str:
        return self.row["metric"]

    @property
    def protocol(self) -> dict[str, Any]:
        return self.subject.about(self.row["protocol"])

    @property
    def settings(self) -> dict[str, Any]:
        """The keys of the protocol that say what the number describes, without measurement and seed."""
        return _part(self.protocol, Role.IDENTITY)

    @property
    def column(self) -> dict[str, Any]:
        """Keys that define this metric's column: details, and settings that differ from the table's."""
        protocol = self.row["protocol"]
        differing = {k: v for k, v in _part(protocol, Role.SETTING).items() if v != self.key.get(k)}
        return _part(protocol, Role.DETAIL) | differing


def _part(protocol: dict[str, Any], role: Role) -> dict[str, Any]:
    """The keys of one role."""
    return {key: value for key, value in protocol.items() if Protocol.roles()[key] == role}


def entries(subjects: list[Subject]) -> list[Entry]:
    """All rows of all results files, with the key of their table.

    A metric without a reference (IS, CLIP score) goes to the table of the rows of its file with the same protocol and
    image count, if there is exactly one such table. If it was measured differently, its column heading says how."""
    found = []
    for subject in subjects:
        for file, results in subject.results.items():
            settings = Protocol.keys(Role.SETTING)
            keys = [{k: row["protocol"][k] for k in settings if k in row["protocol"]} for row in results.rows]
            for row, key in zip(results.rows, keys, strict=True):
                hosts = {identity(each): each for each in keys if _may_host(each, key)}
                joined = hosts.popitem()[1] if "reference" not in key and len(hosts) == 1 else key
                found.append(Entry(subject, file, row, joined))
    return found


def _may_host(table: dict[str, Any], key: dict[str, Any]) -> bool:
    return "reference" in table and all(table.get(k) == key.get(k) for k in ("protocol", "num_images"))


def group_by(items: Iterable[Any], key: Any) -> list[list[Any]]:
    """Groups of items with equal keys, in order of first appearance."""
    groups: dict[str, list[Any]] = {}
    for item in items:
        groups.setdefault(identity(key(item)), []).append(item)
    return list(groups.values())


def compare(found: list[Entry]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The tables, and published rows of the same models and methods that match no table."""
    tables = [_table(members) for members in group_by(found, lambda entry: entry.key)]
    order = {"images": 0, "embedded": 1, "likelihood": 2}
    tables.sort(key=lambda table: (order[table["kind"]], -(table["protocol"].get("num_images") or 0)))
    placed = {row["text"] for table in tables for row in table["published"]}
    names = dict.fromkeys((entry.protocol.get("model"), label_of(entry.protocol)) for entry in found)
    rows = [row for model, label in names if model and label for row in rows_for(model, label)]
    others = [_describe(row) for row in rows if _describe(row)["text"] not in placed]
    return tables, others


def _table(members: list[Entry]) -> dict[str, Any]:
    key = members[0].key
    columns = [group[0] for group in group_by(members, lambda entry: (entry.metric, entry.column))]
    metrics = [column.metric for column in columns]
    groups = group_by(members, lambda entry: (entry.subject.family, entry.file, entry.settings))
    rows = [row for group in groups for row in _average(group, columns)]
    names = list(dict.fromkeys(row["name"] for row in rows))
    rows.sort(key=lambda row: (names.index(row["name"]), row["images_seen"] or 0))
    if any("nats" in metric for metric in metrics):
        kind = "likelihood"
    else:
        kind = "embedded" if any(metric.endswith("-lite0") for metric in metrics) else "images"
    headings = [heading(column, metrics.count(column.metric) > 1) for column in columns]
    published = _published(members, metrics) if kind == "images" else []
    return {"kind": kind, "title": _title(members), "protocol": key, "columns": headings, "rows": rows} | {
        "details": [{"metric": column.metric, **column.column} for column in columns],
        "published": published,
    }


def _title(members: list[Entry]) -> str:
    protocol = members[0].row["protocol"] | members[0].key
    num_images = protocol.get("num_images")
    words = [
        str(protocol.get("protocol", "")),
        f"{protocol['evaluator']} evaluator" if "evaluator" in protocol else "",
        f"against {protocol['reference']}" if "reference" in protocol else "",
        f"{num_images:,} images" if isinstance(num_images, int) else "",
        f"resize {protocol['resize']}" if "resize" in protocol else "",
        f"images of {protocol['image_size']} px" if protocol.get("image_size", 256) != 256 else "",
        captions_text(protocol),
        str(protocol.get("images", "")) if "codes_sha256" in protocol else "",
    ]
    return ", ".join(word for word in words if word) or "no protocol stated"


def captions_text(protocol: dict[str, Any]) -> str:
    """The caption list of the images in words; empty without captions."""
    return f"captions {protocol['captions_sha256'][:8]}" if "captions_sha256" in protocol else ""


def heading(entry: Entry, is_one_of_several: bool = False) -> str:
    """Column heading. FID and sFID of fewer images than published carry the image count."""
    num_images = entry.row["protocol"].get("num_images")
    name = str(entry.row["protocol"].get("protocol", ""))
    full = next((size for start, size in FULL_SIZE.items() if name.startswith(start)), 50_000)
    is_small = entry.metric in ("FID", "sFID") and isinstance(num_images, int) and num_images < full
    words = f"{entry.metric} ({num_images:,})" if is_small else entry.metric
    if is_one_of_several:
        words += "".join(f", {key.replace('_', ' ')} {value}" for key, value in entry.column.items())
    return words


def _average(group: list[Entry], columns: list[Entry]) -> list[dict[str, Any]]:
    """One row with the average over a family's seeds, or one row for each run if a seed occurs twice."""
    runs = group_by(group, lambda entry: str(entry.subject.place))
    seeds = [run[0].subject.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        return [_row([run], columns) for run in runs]
    return [_row(runs, columns)]


def _row(runs: list[list[Entry]], columns: list[Entry]) -> dict[str, Any]:
    first = runs[0][0]
    cells = []
    for column in columns:
        same = [identity((column.metric, column.column))]
        rows = [e.row for run in runs for e in run if identity((e.metric, e.column)) in same]
        cells.append(_cell(rows, len(runs)) if rows else None)
    return {
        "name": first.subject.name,
        "file": first.file,
        "places": [str(run[0].subject.place) for run in runs],
        "seeds": [run[0].subject.seed for run in runs if run[0].subject.seed is not None],
        "images_seen": first.protocol.get("images_seen"),
        "settings": settings_text(first.protocol),
        "cells": cells,
    }


def _cell(rows: list[dict[str, Any]], num_runs: int) -> dict[str, Any]:
    """Mean and standard deviation over seeds, and the value and interval of each seed."""
    values = [float(row["value"]) for row in rows]
    return {
        "mean": float(np.mean(values)),
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "of": len(values),
        "is_complete": len(values) == num_runs,
        "values": values,
        "intervals": [row.get("interval") for row in rows],
        "errors": [row["protocol"].get("standard_error_over_images") for row in rows],
    }


def settings_text(protocol: dict[str, Any]) -> str:
    """Sampling settings in words, without neutral values."""
    words = [f"guidance {protocol['guidance']:g}"] if isinstance(protocol.get("guidance"), int | float) else []
    words += [
        f"{key.replace('_', ' ')} {protocol[key]}"
        for key, plain in Protocol.neutral().items()
        if protocol.get(key, plain) != plain
    ]
    words += ["averaged weights"] * (protocol.get("weights") == "average")
    words += [f"{protocol['labels']} labels"] if protocol.get("labels") else []
    words += [f"drawn at {protocol['drawn_at']} px"] if protocol.get("drawn_at") else []
    return ", ".join(words)


def _published(members: list[Entry], metrics: list[str]) -> list[dict[str, Any]]:
    """Published rows of our models and labels with the same evaluator, reference, image count and image size."""
    found: dict[int, tuple[PublishedRow, bool]] = {}
    for entry in members:
        protocol = entry.protocol | entry.key
        if protocol.get("image_size", 256) != 256:  # all published rows are measured at 256 pixels
            continue
        exact = {id(row) for row in matching(protocol)}
        for row in matching(protocol, ignoring=STATED_BY_ROW):
            found[id(row)] = (row, id(row) in exact or found.get(id(row), (row, False))[1])
    usable = {metric for metric in metrics if metrics.count(metric) == 1}
    return [
        _describe(row) | {"same_settings": same, "cells": [row.values.get(m) if m in usable else None for m in metrics]}
        for row, same in found.values()
        if usable & set(row.values)
    ]


def _describe(row: PublishedRow) -> dict[str, Any]:
    settings = settings_text({**row.sampling, "guidance": row.guidance, "drawn_at": row.drawn_at})
    return {
        "text": f"{row.describe()} {row.note or ''}".strip(),
        "name": " ".join(word for word in (row.model, row.label) if word) + (f", K = {row.K}" if row.K else ""),
        "source": row.source,
        "confidence": row.confidence,
        "epochs": row.epochs,
        "settings": settings if row.guidance is not None else f"{settings}, guidance not stated".strip(", "),
        "note": row.note,
        "protocol": row.protocol,
        "values": row.values,
    }
