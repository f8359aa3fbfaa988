"""Metrics of a run: metrics.jsonl always, wandb when it is on, under the same names (docs/metrics.md).

wandb is a copy: a thread hands it the rows, and at every start the rows of metrics.jsonl that it lacks. Those are the
rows that the server, or offline the files of the run's earlier starts, do not hold; a killed run may have left an empty
file. `wandb sync` appends the files to the run, so each step stands in one of them."""

import contextlib
import hashlib
import logging
import netrc
import os
import queue
import shlex
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamagen.training.wandb_log import mend_log
from masc.runtime.reading import reason
from masc.runtime.run import MetricsLog, plain, read_metrics, read_provenance

logger = logging.getLogger(__name__)
# Mode of the config -> the modes of wandb to try in turn.
MODES = {"online": ("online", "offline"), "offline": ("offline",), "disabled": ()}
INIT_SECONDS = 60  # that wandb may take to reach its server; the training does not wait for it
FINISH_SECONDS = 20  # that the end of a training waits for wandb's last rows
GRID = "samples/step-{:08d}.png"  # of a step in the run's directory


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
    """Writes rows of one run to metrics.jsonl and to wandb. wandb never ends or delays a training."""

    def __init__(self, config: TrackingConfig, run: Any, log: MetricsLog, summary: dict[str, Any]):
        """`run` is the TrainConfig; its directory names the wandb run, which a resumed run continues."""
        self.log, self.mirror = log, None
        if modes := MODES[config.resolved_mode()]:
            self.mirror = _Mirror(modes, config.project, run, read_metrics(log.path), summary)

    def write(self, step: int, row: dict[str, float], images: int, seconds: float) -> None:
        """One row; `images` seen and training `seconds` so far."""
        row = {"step": step, "images": images, "seconds": round(seconds, 3), **row}
        self.log.write(row)
        if self.mirror is not None:
            self.mirror.write(row)

    def finish(self) -> None:
        """Wait for wandb to take the last rows, FINISH_SECONDS at most."""
        if self.mirror is not None:
            self.mirror.finish()


class _Mirror:
    """A thread that starts wandb and hands it rows. Any failure ends it with one warning.

    Where wandb cannot go online, the run is written offline; after another failure metrics.jsonl alone is written."""

    def __init__(
        self, modes: tuple[str, ...], project: str, run: Any, earlier: list[dict[str, float]], summary: dict[str, Any]
    ):
        self.modes, self.project, self.run, self.summary = modes, project, run, summary
        self.folder: Path | None = None  # of the wandb run, once it has started
        self.rows: queue.SimpleQueue[dict[str, float] | None] = queue.SimpleQueue()
        for row in earlier:
            self.rows.put(row)
        # A daemon: it must not keep a process alive whose training has failed.
        self.thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self.thread.start()

    def write(self, row: dict[str, float]) -> None:
        if self.thread.is_alive():
            self.rows.put(row)

    def finish(self) -> None:
        self.rows.put(None)
        self.thread.join(1.25 * FINISH_SECONDS)  # wandb itself gives up after FINISH_SECONDS
        if self.thread.is_alive():
            logger.warning("wandb did not take all rows within %d seconds; %s", FINISH_SECONDS, self._remedy())

    def _remedy(self) -> str:
        send = f"; send them with `{self._command()}`" if self.folder else ""
        return f"metrics.jsonl has all rows{send}"

    def _command(self) -> str:
        """The command that sends the files of the run."""
        if not self.folder.name.startswith("offline-"):
            return f"wandb sync --include-online {shlex.quote(str(self.folder))}"
        _, _, run_id = self.folder.name.rpartition("-")
        return f"wandb sync {shlex.quote(str(self.folder.parent))}/offline-run-*-{run_id}"

    def _work(self) -> None:
        for mode in self.modes:
            with self._optional(f"wandb does not start {mode}"):
                wandb_run = _start(mode, self.project, self.run, self.summary)
                break
        else:
            return
        self.folder = Path(wandb_run.dir).parent
        if mode == "offline":
            logger.info("wandb is offline; send this run with `%s`", self._command())
        with self._optional("wandb takes no more rows"):
            known = self._known_steps(wandb_run) if mode == "offline" else set()
            while (row := self.rows.get()) is not None:
                step = row["step"]
                if step >= wandb_run.starting_step and step not in known:
                    wandb_run.log(row | self._grid(step), step=step, commit=True)
            wandb_run.finish()

    def _known_steps(self, wandb_run: Any) -> set[int]:
        """The steps in the files of earlier starts of the run; those without any, at which `wandb sync` stops, go."""
        known: set[int] = set()
        for file in self.folder.parent.glob(f"*run-*-{wandb_run.id}/*.wandb"):
            if file.parent not in (self.folder, self.folder.parent / "latest-run"):
                steps = mend_log(file)
                known |= steps
                if not steps:
                    shutil.rmtree(file.parent)
        return known

    def _grid(self, step: int) -> dict[str, Any]:
        """The sample grid of a step, if one was drawn."""
        import wandb

        file = Path(self.run.directory) / GRID.format(step)
        return {"samples": wandb.Image(str(file))} if file.exists() else {}

    @contextlib.contextmanager
    def _optional(self, what: str) -> Iterator[None]:
        """Go on without wandb, with a warning, if anything inside fails."""
        try:
            yield
        except Exception as error:  # of a package that talks to a network and to processes of its own: any type
            logger.warning(
                "%s (%s: %s); the training continues, %s", what, type(error).__name__, reason(error), self._remedy()
            )


def _start(mode: str, project: str, run: Any, summary: dict[str, Any]) -> Any:
    """The wandb run of a TrainConfig, with the hashes of its tree, codebook and codes; raises errors of any type."""
    directory = Path(run.directory).resolve()
    # What `Settings` has no key for. wandb's own process prints its log where it can write no cache. Reports of its
    # errors go to the server that is out of reach, print that they do not arrive, and delay the end of the process.
    quiet = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
    with _environment(**quiet, WANDB_CACHE_DIR=str(directory / "wandb" / "cache")):
        import wandb

        settings = wandb.Settings(
            console="off",
            silent=True,
            reinit="create_new",  # whatever another training in this process has left
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
        )
        try:
            return wandb.init(
                project=project,
                name=f"{run.model.name}/{run.label}/seed{run.seed}",
                id=hashlib.sha256(str(directory).encode()).hexdigest()[:16],
                resume="allow" if mode == "online" else None,
                dir=directory,
                mode=mode,
                config=plain(run) | summary | {"sha256": read_provenance(directory).parents},
                allow_val_change=True,  # of the volatile keys of a resumed run
                settings=settings,
            )
        except Exception:
            wandb.teardown()  # else its own process keeps the id of the run, and a second start is refused
            raise


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set variables that are not set, for the time of the block."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
