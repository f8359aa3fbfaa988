"""What a run has logged."""

from pathlib import Path
from typing import Any

from masc.runtime.run import read_metrics


def losses(run_dir: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl without what a clock decides."""
    return [
        {k: v for k, v in row.items() if k != "seconds" and not k.startswith("speed/")}
        for row in read_metrics(run_dir / "metrics.jsonl")
    ]
