"""Results: numbers, each with its protocol, and what was seen of the pictures on the way, in one file."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from masc.runtime.artifacts import InputError, write_json

VERSION = 1


def row(metric: str, value: float, protocol: dict[str, Any], interval: dict[str, Any] | None = None) -> dict[str, Any]:
    """A number with its protocol, and with its confidence interval where there is one: the only form in which
    results are stored."""
    return {"metric": metric, "value": value, **({"interval": interval} if interval else {}), "protocol": protocol}


def row_text(row: dict[str, Any]) -> str:
    """A row's metric, value and interval, in columns."""
    interval = row.get("interval")
    between = f"   95% {interval['low']:.4f} to {interval['high']:.4f}" if interval else ""
    return f"  {row['metric']:<10} {row['value']:>10.4f}{between}"


@dataclass(frozen=True)
class Results:
    """The rows of one evaluation, and the evidence that `make doctor` judges them by."""

    rows: list[dict[str, Any]]
    evidence: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, metric: str) -> dict[str, Any]:
        return self.by_metric[metric]

    @property
    def by_metric(self) -> dict[str, dict[str, Any]]:
        return {row["metric"]: row for row in self.rows}

    def save(self, path: Path) -> None:
        """Write the file whole or not at all."""
        write_json(path, {"format": "masc-results", "version": VERSION, "rows": self.rows, "evidence": self.evidence})

    @staticmethod
    def load(path: Path) -> "Results":
        """Raises InputError if there is no such file, or it is not one of results."""
        path = Path(path)
        if not path.exists():
            raise InputError(f"no results at {path}; measure with `make eval-fid` or `make eval-lite`")
        try:
            content = json.loads(path.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is no file of results, or is truncated ({error}); measure again") from error
        found = (content.get("format"), content.get("version")) if isinstance(content, dict) else (None, None)
        if found != ("masc-results", VERSION):
            raise InputError(
                f"expected masc-results of version {VERSION} in {path}, found {found[0]} version {found[1]}; remove "
                "it and measure again"
            )
        if not {"rows", "evidence"} <= content.keys():
            raise InputError(f"{path} lacks its rows or its evidence; remove it and measure again")
        return Results(content["rows"], content["evidence"])
