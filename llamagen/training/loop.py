"""The steps of a training: what is computed, when it is logged, judged and saved, and how it ends.

Nothing in a step waits for the device. The losses and gradient norms of the steps are fetched together: when they are
logged, and every AGREE_SECONDS at least. At that moment the processes also agree on whether to stop, and bad steps are
found. An update with a gradient norm that is not finite, or above a ceiling, is left out on the device itself."""

import contextlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from llamagen.backbones.dropout import set_dropout_keys
from llamagen.training.ahead import Ahead
from llamagen.training.average import Average
from llamagen.training.batches import Batch, batches
from llamagen.training.checkpoint import Progress
from llamagen.training.config import TrainConfig
from llamagen.training.inputs import RunInputs
from llamagen.training.optim import learning_rate, set_learning_rate
from llamagen.training.optimizer_state import Optimizers
from llamagen.training.parallel import ParallelModel, whole_tensor
from llamagen.training.saving import Saver
from llamagen.training.stream import CodeStream
from llamagen.training.tracking import Tracker
from llamagen.training.watching import bar_words, speeds
from masc.runtime.beats import beat, rest
from masc.runtime.device import from_main
from masc.runtime.errors import InputError, Stopped
from masc.runtime.stopping import StopRequest, stop_requests

logger = logging.getLogger(__name__)
TOLD = {"train/nats_per_token": "nats per token", "train/loss": "loss", "val/nats_per_token": "held out"}
SILENCE = 30  # seconds between two lines of progress where no bar is shown, evaluations apart
AGREE_SECONDS = 5.0  # after which the processes ask each other whether to stop
FEW = 64  # positions
LISTED = 8  # images of a bad step that its message names


def attention_kernel(device: torch.device, positions: int) -> Callable[[], contextlib.AbstractContextManager]:
    """Context manager that chooses the attention of a training step on images of as many tokens.

    On a CPU it is the plain one up to 64 positions, where it costs no more than torch's fused kernel (`make bench`
    prints both). Elsewhere torch chooses."""
    is_plain = device.type == "cpu" and positions <= FEW
    return partial(sdpa_kernel, SDPBackend.MATH) if is_plain else contextlib.nullcontext


@dataclass
class Loop:
    """A training between two of its steps."""

    config: TrainConfig
    accelerator: Accelerator
    model: ParallelModel
    optimizers: Optimizers
    average: Average | None
    stream: CodeStream
    inputs: RunInputs
    share: int  # images a process and micro-batch
    progress: Progress
    saver: Saver
    tracker: Tracker | None  # of the main process
    validate: Callable[[], dict[str, float]]
    draw: Callable[[int], dict[str, float]]  # samples after a step
    full_speed: float | None  # images a second of the peak of all processes' GPUs, if it is known
    losses: list[Tensor] = field(default_factory=list)  # of this process, of the steps since `agree`
    norms: list[Tensor] = field(default_factory=list)  # of the gradients of all processes
    _clock: float = 0.0  # until when training time was counted
    _next_agree: int = 0  # step
    _first: int | None = None  # step that this process took first
    _since_row: tuple[int, float] = (0, 0.0)  # steps and seconds of this process since the last row
    _saved_in: float | None = None  # seconds that training waited for a checkpoint since the last row

    def run(self) -> None:
        """Train to the last step, or until a signal asks to stop: then save, and raise `Stopped`.

        Raises InputError for a step that is not finite, once `optim.skip_bad_steps` such steps were left out."""
        config, progress = self.config, self.progress
        self.bar = tqdm(
            total=config.steps,
            initial=progress.step,
            desc=f"{config.label} seed {config.seed}",
            unit="step",
            disable=None if self.accelerator.is_main_process else True,
        )
        self._told, self._clock = -math.inf, time.perf_counter()
        self._next_agree = progress.step
        self._first = progress.step
        rest()
        self.batches = self._read()
        with self.bar, stop_requests() as request, contextlib.closing(self.saver), contextlib.closing(self.batches):
            logs, evaluates, draws = self._logs(progress.step)
            if progress.window and logs:
                self.log(evaluates, draws)
            while progress.step < config.steps:
                loss, norm = self.step(progress.step)
                self.losses.append(loss)
                self.norms.append(norm)
                progress.step += 1
                self.bar.update()
                self._after_step(request)
        rest()
        self.accelerator.wait_for_everyone()

    def _read(self) -> Ahead[Batch]:
        """The micro-batches of this process, read ahead or when they are taken."""
        accelerator, given = self.accelerator, (self.config, self.inputs, self.stream, self.model.own, self.share)
        device, read = accelerator.device.type, batches(*given, accelerator.process_index, self.progress.step)
        return Ahead(map(Batch.pinned, read) if device == "cuda" else read, self.config.compute.reads_ahead(device))

    def _logs(self, step: int) -> tuple[bool, bool, bool]:
        """Whether a row is written after a step, whether it holds a validation, and whether samples are drawn."""
        config = self.config
        evaluates = step == config.steps or step % config.evaluate_every == 0
        draws = config.watch.draws(step, config.steps)
        return evaluates or draws or step % config.log_every == 0, evaluates, draws

    def _after_step(self, request: StopRequest) -> None:
        config, step = self.config, self.progress.step
        is_last = step == config.steps
        logs, evaluates, draws = self._logs(step)
        saves = is_last or step % config.checkpoint_every == 0
        if not (logs or saves or step >= self._next_agree):
            return
        stops = self.agree(request.name is not None) and not is_last
        if evaluates or draws or saves or stops:
            rest()
        # The checkpoint comes first, as a validation may take long: a run that dies there writes the row when it is
        # resumed.
        if saves or stops:
            if self.tracker is not None:
                self.tracker.log.flush()
            self._saved_in = self.saver.save(self.model.own, self.optimizers, self.average, self.progress)
            self._clock = time.perf_counter()
        if stops:
            self.saver.wait()
            raise Stopped(
                f"stopped at step {step} of {config.steps} by {request.name or 'a signal to another process'}; the "
                f"same command continues {config.directory} from there"
            )
        if logs:
            self.log(evaluates, draws)
        beat()

    def agree(self, wants_stop: bool) -> bool:
        """Fetch what the steps since the last call gave, into `progress`; return whether a process wants to stop.

        Raises InputError for a bad step that may not be skipped, on all processes alike."""
        progress, count = self.progress, len(self.losses)
        now = time.perf_counter()
        elapsed, self._clock = now - self._clock, now
        progress.seconds += elapsed
        self._since_row = self._since_row[0] + count, self._since_row[1] + elapsed
        flags = torch.tensor([float(wants_stop), elapsed], device=self.losses[0].device)
        sums = self.accelerator.reduce(torch.cat([torch.stack(self.losses), flags]), "sum").tolist()
        norms, processes = torch.stack(self.norms).tolist(), self.accelerator.num_processes
        means = [value / processes for value in sums[:count]]
        first = progress.step - count
        for index, (loss, norm) in enumerate(zip(means, norms, strict=True)):
            if math.isfinite(loss) and self._is_good(norm):
                progress.window.append([loss, norm])
            else:
                self._skip(first + index, loss, norm)
        self.losses, self.norms = [], []
        self.saver.check()
        seconds = sums[-1] / processes / count
        self._next_agree = progress.step + max(1, int(AGREE_SECONDS / max(seconds, 1e-6)))
        return sums[-2] > 0

    def _is_good(self, norm: float) -> bool:
        ceiling = self.config.optim.norm_ceiling
        return math.isfinite(norm) and (ceiling is None or norm <= ceiling)

    def _skip(self, step: int, loss: float, norm: float) -> None:
        """Count a bad step; InputError if no more may be skipped. `step` counts from 0."""
        config, progress = self.config, self.progress
        progress.skipped += 1
        most = config.optim.skip_bad_steps
        rows = self.stream.images(step).tolist()
        what = f"step {step + 1} of {config.directory} has a loss of {loss:.6g} and a gradient norm of {norm:.6g}"
        images = f"images {', '.join(map(str, rows[:LISTED]))}{', ...' if len(rows) > LISTED else ''} of the codes"
        if progress.skipped > most:
            from_main(self.saver.wait)  # or a process that ends first would cut the write short
            raise InputError(
                f"{what} ({images}); its update was left out, and {progress.skipped - 1} bad steps before it were "
                f"skipped (optim.skip_bad_steps={most}). {self.saver.remedy()}"
            )
        if self.accelerator.is_main_process:
            logger.warning("%s (%s); its update is left out: %d of at most %d", what, images, progress.skipped, most)

    def log(self, evaluates: bool, draws: bool) -> None:
        """Write a row of metrics.jsonl about the steps since the last row."""
        config, progress, step = self.config, self.progress, self.progress.step
        row: dict[str, float] = {}
        if window := progress.window:
            nats, norm = (math.fsum(values) / len(window) for values in zip(*window, strict=True))
            row |= {self._training_loss: nats, "train/gradient_norm": norm}
        row["train/learning_rate"] = learning_rate(config.optim, step - 1, config.steps)
        if config.optim.skip_bad_steps:
            row["train/skipped_steps"] = progress.skipped
        steps, seconds = self._since_row
        if steps:
            row |= speeds(steps * config.batch_size / seconds, self.inputs.train.num_positions, self.full_speed)
            row["speed/data_wait"] = round(self.batches.waited() / seconds, 5)
        self.bar.set_postfix(bar_words(row))
        if self._saved_in is not None:
            row["speed/save_seconds"] = round(self._saved_in, 3)
        progress.window, self._since_row, self._saved_in = [], (0, 0.0), None
        if evaluates:
            row |= self.validate()
        if draws:
            row |= self.draw(step)
        if self.tracker is not None:
            self.tracker.write(step, row, images=step * config.batch_size, seconds=progress.seconds)
            if self.bar.disable:
                self._tell(row, evaluates)
        self._clock = time.perf_counter()

    @property
    def _training_loss(self) -> str:
        """The name of the training loss: it is a likelihood only if nothing stands beside the head."""
        return "train/nats_per_token" if self.model.own.loss is None else "train/loss"

    def _tell(self, row: dict[str, float], evaluates: bool) -> None:
        """Log a line of progress, where no bar is shown."""
        if not evaluates and time.perf_counter() - self._told <= SILENCE:
            return
        self._told, step, steps = time.perf_counter(), self.progress.step, self.config.steps
        parts = [f"{row[key]:.3f} {words}" for key, words in TOLD.items() if key in row]
        if rate := row.get("speed/images_per_second"):
            left = timedelta(seconds=round((steps - step) * self.config.batch_size / rate))
            parts += [f"{rate:.1f} images/s", f"{left} left"]
        logger.info("step %d of %d: %s", step, steps, ", ".join(parts))

    def step(self, step: int) -> tuple[Tensor, Tensor]:
        """Take one optimizer step; return the mean loss of this process's images a token, and the norm of the gradient
        of the whole batch."""
        config, accelerator = self.config, self.accelerator
        self.model.own.train()
        for optimizer in self.optimizers:
            set_learning_rate(optimizer, learning_rate(config.optim, step, config.steps))
        note_progress = rest if step == self._first else beat  # the first step compiles
        losses = []
        for micro in range(config.micro_batches):
            batch = self.batches.take().to(accelerator.device)
            set_dropout_keys(self.model.own, batch.keys)
            torch.manual_seed(batch.seed)
            kernel = attention_kernel(accelerator.device, self.inputs.train.num_positions)
            with self.model.accumulating(micro == config.micro_batches - 1), kernel():
                with accelerator.autocast():
                    terms = self.model(*batch.arguments)
                # The gradient of a sum is one number, which the host need not read (masc/heads/losses.py).
                loss = -terms.sum() / batch.arguments[0].numel()
                note_progress()  # in `backward` the processes wait for each other
                accelerator.backward(loss / config.micro_batches)
            losses.append(loss.detach())
            note_progress()
        return torch.stack(losses).mean(), self.update()

    def update(self) -> Tensor:
        """Clip the gradients and take the optimizers' step, unless the step is bad; return the norm before clipping."""
        config = self.config.optim
        trained = [each for each in self.model.own.parameters() if each.grad is not None]
        norm = whole_tensor(torch.nn.utils.get_total_norm([each.grad for each in trained]))
        torch.nn.utils.clip_grads_with_norm_(trained, config.max_grad_norm, norm)
        is_bad = ~norm.isfinite() if config.norm_ceiling is None else ~(norm <= config.norm_ceiling)
        for optimizer in self.optimizers:
            optimizer.found_inf = is_bad.float()  # read by the fused optimizers: they do nothing if it is 1
            optimizer.step()
            optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.model.own)
        return norm
