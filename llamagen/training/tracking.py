"""Metrics of a run: metrics.jsonl always, wandb when it is on, under the same names."""

import contextlib
import hashlib
import logging
import netrc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masc.runtime.reading import reason
from masc.runtime.run import MetricsLog, plain

logger = logging.getLogger(__name__)
# Mode of the config -> the modes of wandb to try in turn.
MODES = {"online": ("online", "offline"), "offline": ("offline",), "disabled": ()}
INIT_SECONDS, FINISH_SECONDS = 20, 120  # that wandb may take to reach its server, and to send the last rows


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
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
        return False


class Tracker:
    """Writes rows of one run to metrics.jsonl and to wandb.

    wandb never ends a training, and a training waits for wandb for INIT_SECONDS at most. Where wandb cannot go online,
    the run is written offline; after another failure metrics.jsonl alone is written. Each failure gives one warning."""

    def __init__(self, config: TrackingConfig, run: Any, log: MetricsLog, summary: dict[str, Any]):
        """`run` is the TrainConfig; its directory names the wandb run, which a resumed run continues."""
        self.log, self.wandb = log, None
        for mode in MODES[config.resolved_mode()]:
            with self._optional(f"wandb does not start {mode}"):
                self.wandb = _start(mode, config.project, run, summary)
                break

    def write(self, step: int, row: dict[str, float], images: int, seconds: float) -> None:
        """One row; `images` seen and training `seconds` so far."""
        row = {"step": step, "images": images, "seconds": round(seconds, 3), **row}
        self.log.write(row)
        if self.wandb is not None:
            with self._optional("wandb takes no more rows"):
                self.wandb.log(row, step=step)

    def finish(self) -> None:
        if self.wandb is not None:
            with self._optional("wandb did not finish"):
                self.wandb.finish()

    @contextlib.contextmanager
    def _optional(self, what: str) -> Iterator[None]:
        """Go on without wandb, with a warning, if anything inside fails."""
        try:
            yield
        except Exception as error:  # of a package that talks to a network and to processes of its own: any type
            self.wandb = None
            logger.warning(
                "%s (%s: %s); the training continues, metrics.jsonl has all rows",
                what,
                type(error).__name__,
                reason(error),
            )


def _start(mode: str, project: str, run: Any, summary: dict[str, Any]) -> Any:
    """The wandb run of a TrainConfig; raises errors of any type."""
    import wandb

    directory = Path(run.directory).resolve()
    settings = wandb.Settings(console="off", silent=True, init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS)
    try:
        return wandb.init(
            project=project,
            name=f"{run.model.name}/{run.label}/seed{run.seed}",
            id=hashlib.sha256(str(directory).encode()).hexdigest()[:16],
            resume="allow" if mode == "online" else None,
            dir=directory,
            mode=mode,
            config=plain(run) | summary,
            settings=settings,
        )
    except Exception:
        wandb.teardown()  # else its own process keeps the id of the run, and a second start is refused
        raise
