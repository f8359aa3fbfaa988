"""What a run has logged."""

from pathlib import Path
from typing import Any

from masc.runtime.run import read_metrics

CLOCK = ("seconds", "speed/images_per_second")


def losses(run_dir: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl without what a clock decides."""
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in read_metrics(run_dir / "metrics.jsonl")]
