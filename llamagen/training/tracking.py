"""Metrics of a run: metrics.jsonl always, wandb when it is on, under the same names."""

import hashlib
import netrc
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masc.runtime.run import MetricsLog, plain


@dataclass(kw_only=True)
class TrackingConfig:
    """wandb: `auto` is what WANDB_MODE says, else online with a key and offline without."""

    mode: str = "auto"  # auto, online, offline or disabled
    project: str = "masc-llamagen"

    def __post_init__(self) -> None:
        if self.mode not in ("auto", "online", "offline", "disabled"):
            raise ValueError(f"tracking.mode must be auto, online, offline or disabled, not {self.mode!r}")

    def resolved_mode(self) -> str:
        if self.mode != "auto":
            return self.mode
        if os.environ.get("WANDB_MODE") in ("online", "offline", "disabled"):
            return os.environ["WANDB_MODE"]
        return "online" if has_wandb_key() else "offline"


def has_wandb_key() -> bool:
    """Whether wandb could log in: WANDB_API_KEY, or an entry in ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


class Tracker:
    """Writes rows of one run to metrics.jsonl and to wandb."""

    def __init__(self, config: TrackingConfig, run: Any, log: MetricsLog, summary: dict[str, Any]):
        """`run` is the TrainConfig; its directory names the wandb run, which a resumed run continues."""
        self.log, self.wandb = log, None
        mode = config.resolved_mode()
        if mode == "disabled":
            return
        import wandb

        directory = Path(run.directory).resolve()
        self.wandb = wandb.init(
            project=config.project,
            name=f"{run.model.name}/{run.label}/seed{run.seed}",
            id=hashlib.sha256(str(directory).encode()).hexdigest()[:16],
            resume="allow" if mode == "online" else None,
            dir=directory,
            mode=mode,
            config=plain(run) | summary,
            settings=wandb.Settings(console="off", silent=True),
        )

    def write(self, step: int, row: dict[str, float], images: int, seconds: float) -> None:
        """One row; `images` seen and training `seconds` so far."""
        row = {"step": step, "images": images, "seconds": round(seconds, 3), **row}
        self.log.write(row)
        if self.wandb is not None:
            self.wandb.log(row, step=step)

    def finish(self) -> None:
        if self.wandb is not None:
            self.wandb.finish()
