"""Writing checkpoints: gathered whole on the main process, written there, in the background where that pays.

`torch.distributed.checkpoint` is not used: its own format keeps the layout in a pickle, which could run code when a
run from outside is opened, and its safetensors writer leaves shards or joins them by writing all bytes twice. Gathering
moves each byte once, and training waits for that copy only."""

import contextlib
import logging
import shutil
import time
from collections.abc import Container, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from llamagen.training.average import Average
from llamagen.training.checkpoint import (
    AVERAGE,
    MANIFEST,
    OPTIMIZER,
    PROGRESS,
    WEIGHTS,
    Manifest,
    Progress,
    checkpoint_path,
    list_checkpoints,
    step_of,
)
from llamagen.training.optimizer_state import Optimizers, optimizer_state
from llamagen.training.parallel import whole_tensor
from masc.runtime.beats import writes
from masc.runtime.errors import InputError
from masc.runtime.files import hash_file, replacing, save_safetensors, write_json

logger = logging.getLogger(__name__)
LARGE = 256 * 2**20  # bytes from which on a checkpoint is written in the background


@dataclass(frozen=True)
class Keeping:
    """Which checkpoints stay: the newest `last`, and for ever each whose step is a multiple of `every` (0: none)."""

    last: int
    every: int

    def dropped(self, checkpoints: Iterable[Path]) -> list[Path]:
        """Those that need not stay, of checkpoints from the newest to the oldest."""
        old = list(checkpoints)[self.last :]
        return [path for path in old if not self.every or step_of(path) is None or step_of(path) % self.every]


class Saver:
    """Writes the checkpoints of one run."""

    def __init__(
        self,
        run_dir: Path,
        config_sha256: str,
        keeping: Keeping,
        background: str,
        is_main: bool,
        origin: Path | None = None,
    ):
        """`config_sha256` is that of `hash_config`; `background` is `auto`, `on` or `off`, see `ComputeConfig`.
        `origin` is the checkpoint of another run where this one began."""
        self.run_dir, self.config_sha256 = Path(run_dir), config_sha256
        self.keeping, self.background, self.is_main, self.origin = keeping, background, is_main, origin
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def save(self, model: nn.Module, optimizers: Optimizers, average: Average | None, progress: Progress) -> float:
        """Write a checkpoint, or begin to; return the seconds that training waits. All processes call this together.

        Raises InputError, on the main process, if a number is not finite (nothing is written then), and if this or the
        checkpoint before it could not be written."""
        start = time.perf_counter()
        self.wait()
        files = {WEIGHTS: model.state_dict(), OPTIMIZER: optimizer_state(model, optimizers)}
        if average is not None:
            files[AVERAGE] = average.parameters
        whole = self._gather(files, dict(model.named_parameters()), progress)
        if self.is_main:
            is_large = sum(tensor.nbytes for state in whole.values() for tensor in state.values()) >= LARGE
            now = Progress(**asdict(progress))
            if self.background == "on" or (self.background == "auto" and is_large):
                self._pending = self._thread.submit(self._write, whole, now)
                logger.info("writing the checkpoint of step %d while training goes on", now.step)
            else:
                self._write(whole, now)
        return time.perf_counter() - start

    def _gather(
        self, files: dict[str, dict[str, Tensor]], parameters: Container[str], progress: Progress
    ) -> dict[str, dict[str, Tensor]]:
        """Copies of all tensors, whole, in the memory of the main process; empty on the others."""
        gathered: dict[str, dict[str, Tensor]] = {name: {} for name in files}
        finite: dict[str, Tensor] = {}
        for file, state in files.items():
            for name, tensor in state.items():
                tensor = whole_tensor(tensor.detach())
                if not self.is_main:
                    continue
                if file != WEIGHTS or name in parameters:  # a buffer may hold infinity, as a mask does
                    finite[f"{name} of {file}"] = tensor.isfinite().all()
                copy = tensor.to("cpu", copy=True) if tensor.device.type == "cpu" else tensor.cpu()
                gathered[file][name] = copy.contiguous()
        if finite and not bool(torch.stack(list(finite.values())).all()):
            wrong = [name for name, is_finite in finite.items() if not is_finite]
            raise InputError(
                f"{wrong[0]} is not finite at step {progress.step} of {self.run_dir}, and so are {len(wrong) - 1} "
                f"other tensors; nothing was saved. {self.remedy()}"
            )
        return gathered

    def remedy(self) -> str:
        """How to continue from the last good checkpoint."""
        with contextlib.suppress(Exception):  # that checkpoint is not there then, and another error is told already
            self.wait()
        there = list_checkpoints(self.run_dir) or ([self.origin] if self.origin is not None else [])
        change = "optim.learning_rate=..., precision=fp32 or optim.skip_bad_steps=..."
        if not there:
            return f"There is no checkpoint yet: start again in another directory, RUN_DIR=..., with {change}"
        return (
            f"The last good checkpoint is {there[0]}. Continue from it in another directory, with FROM={there[0]} "
            f"RUN_DIR=... and {change}; in the same directory only optim.skip_bad_steps may change"
        )

    def wait(self) -> None:
        """Wait for the checkpoint that is being written; raise the error of its write."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def check(self) -> None:
        """Raise the error of a write in the background that has failed by now."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def close(self) -> None:
        """Wait for the last write; afterwards nothing can be saved."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _write(self, whole: dict[str, dict[str, Tensor]], progress: Progress) -> None:
        """Write a checkpoint completely or not at all, then delete those that need not stay."""
        start, path = time.perf_counter(), checkpoint_path(self.run_dir, progress.step)
        with writes(), replacing(path) as temporary:
            temporary.mkdir(parents=True)
            for name, state in whole.items():
                save_safetensors(temporary / name, state)
            write_json(temporary / PROGRESS, asdict(progress))
            files = sorted(file for file in temporary.iterdir() if file.is_file())
            with ThreadPoolExecutor() as threads:
                hashes = dict(zip([file.name for file in files], threads.map(hash_file, files), strict=True))
            sizes = {file.name: file.stat().st_size for file in files}
            manifest = Manifest(config_sha256=self.config_sha256, bytes=sizes, sha256=hashes)
            write_json(temporary / MANIFEST, asdict(manifest))
        for old in self.keeping.dropped(list_checkpoints(self.run_dir)):
            shutil.rmtree(old, ignore_errors=True)
        logger.info("saved %s in %.1f s", path, time.perf_counter() - start)
