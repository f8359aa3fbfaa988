"""Results files of an evaluation: which are kept, and where new ones go."""

import logging
from pathlib import Path
from typing import Any

from masc.runtime.errors import InputError
from metrics.reference import hash_of
from metrics.results import Protocol, Results

logger = logging.getLogger(__name__)


def saved_row(path: Path) -> dict[str, Any] | None:
    """The first row of a results file; None if there is no file, or none that can be read."""
    try:
        return Results.load(path).rows[0]
    except InputError:
        return None


def holds(path: Path, protocol: dict[str, Any], replicates: int = 0) -> bool:
    """Whether the results at `path` have these protocol values, and intervals of so many resamples."""
    found = saved_row(path)
    if found is None or any(found["protocol"].get(key) != value for key, value in protocol.items()):
        return False
    return (found.get("interval") or {}).get("replicates", 0) == (replicates if replicates > 1 else 0)


def save_beside(found: Results, path: Path) -> Path:
    """Save results and return the path.

    A file at `path` is kept if it cannot be read, or was measured with another reference, image count, extractor or
    resize: the new name then gets a hash of these four values."""
    ours = {key: found.rows[0]["protocol"].get(key) for key in Protocol.flagged("apart")}
    there = saved_row(path)
    differing = [] if there is None else [key for key in ours if there["protocol"].get(key) != ours[key]]
    if differing or (there is None and path.exists()):
        beside = path.with_name(f"{path.stem}-{hash_of(ours)[:8]}.json")
        what = f"results of another {' and '.join(differing)}" if differing else "what cannot be read"
        logger.warning("%s holds %s and stays; see %s", path, what, beside.name)
        path = beside
    found.save(path)
    return path
