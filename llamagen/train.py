"""The training loop: any backbone, any head, one CPU core to many nodes (through accelerate).

The loss is the negative log-likelihood of the fine tokens in nats per token, whatever the head. With the `masc` head
its gradient is that of the paper's K-way cross-entropy (MASC, Eq. 5).

All randomness depends on the seed and the step only, and dropout also on the micro-batch. A resumed run therefore
repeats the losses of an uninterrupted run, and one process with 8 micro-batches repeats those of eight processes."""

import contextlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from llamagen.model import build_model, count_parameters
from llamagen.training.average import start_average
from llamagen.training.checkpoint import (
    Progress,
    last_checkpoint,
    load_average,
    load_optimizer,
    load_progress,
    load_weights,
    save_checkpoint,
)
from llamagen.training.config import TrainConfig
from llamagen.training.diagnostics import diagnose
from llamagen.training.initial import initial_parents
from llamagen.training.inputs import RunInputs, load_inputs
from llamagen.training.likelihood import evaluate, on_device
from llamagen.training.optim import build_optimizer, learning_rate, set_learning_rate
from llamagen.training.stream import CodeStream, caption_choices, dropped_conditions
from llamagen.training.tracking import Tracker
from llamagen.training.warm import check_start, freeze, record_start, start_warm
from masc.runtime.device import build_accelerator, check_agreement, from_main, resolve_precision
from masc.runtime.errors import InputError
from masc.runtime.run import MetricsLog, locked, plain
from masc.runtime.streams import Purpose, torch_seed

logger = logging.getLogger(__name__)
# Keys of a config that may differ between processes.
PLACES = ("config.tracking.", "config.artifacts", "config.captions", "config.init", "config.data.path")
SILENCE = 30  # seconds between two lines of progress where no bar is shown, evaluations apart


def check_run(config: TrainConfig, num_processes: int) -> None:
    """Raise the InputError that `train` would raise in `num_processes` processes: an input is missing, another config
    uses the directory, or the batch cannot be shared. Nothing is written."""
    inputs, progress = load_inputs(config), load_progress(last_checkpoint(config.directory))
    check_start(config, inputs, progress.step > 0)
    _images_of_share(config, progress, num_processes)
    config.check_directory(inputs.parents | initial_parents(config, progress.step > 0))


def train(config: TrainConfig) -> Path:
    """Train a run to its last step, from its last checkpoint if there is one; return its directory.

    A run that is resumed keeps its precision where the config says `auto`. Raises InputError if an input is missing,
    another config or another process uses the directory, the run was started in another precision or with another
    number of shares of a batch, or processes differ in what they train."""
    inputs = load_inputs(config)
    directory, last = config.directory, last_checkpoint(config.directory)
    progress = load_progress(last)
    check_start(config, inputs, progress.step > 0)
    parents = inputs.parents | initial_parents(config, progress.step > 0)
    is_resumed = config.precision == "auto" and progress.step > 0
    precision = progress.precision if is_resumed else resolve_precision(config.precision)
    if is_resumed and precision != resolve_precision("auto"):
        logger.warning("%s continues in %s, in which it was started, whatever suits this machine", directory, precision)
    accelerator = build_accelerator(precision)
    share = _images_of_share(config, progress, accelerator.num_processes)
    with contextlib.ExitStack() as held:
        from_main(lambda: held.enter_context(locked(directory)))
        from_main(lambda: config.open_directory(parents))
        progress = load_progress(last)
        own = {"config": plain(config), "precision": precision, "step of the checkpoint": progress.step}
        check_agreement(own | {"SHA-256": parents}, PLACES)
        if progress.step >= config.steps:
            logger.info("%s is trained already (%d steps)", directory, progress.step)
            return directory
        if progress.step == 0:
            progress = Progress(shares=config.batch_size // share, precision=precision)
        _run(config, accelerator, inputs, progress, share)
    return directory


def _images_of_share(config: TrainConfig, progress: Progress, processes: int) -> int:
    """The images of a batch that each process takes in each micro-batch.

    Raises InputError if the batch cannot be shared equally, or an unfinished run was started with another number of
    shares."""
    shares, there = processes * config.micro_batches, progress.shares
    if 0 < progress.step < config.steps and there != shares:
        advice = f"set micro_batches={there // processes}" if there % processes == 0 else f"start {there} processes"
        raise InputError(
            f"{config.directory} was started with {there} share(s) of a batch, now {processes} process(es) x "
            f"micro_batches {config.micro_batches} make {shares}; {advice}, or choose another directory with "
            "RUN_DIR=..."
        )
    share, remainder = divmod(config.batch_size, shares)
    if remainder:
        raise InputError(
            f"batch_size {config.batch_size} must be a multiple of {processes} processes x {config.micro_batches} "
            "micro-batches; change batch_size or micro_batches in ARGS"
        )
    return share


def _run(config: TrainConfig, accelerator: Accelerator, inputs: RunInputs, progress: Progress, share: int) -> None:
    directory, last = config.directory, last_checkpoint(config.directory)
    model = build_model(config.model, config.head, inputs.shape, inputs.tree, config.seed, inputs.counts)
    if progress.step:
        load_weights(last, model)
    elif config.init is not None:
        record = start_warm(config, model.to(accelerator.device), inputs)
        if accelerator.is_main_process:
            record_start(record, directory)
    freeze(model, config.frozen)
    optimizer = build_optimizer(model, config.optim, fused=True)
    if progress.step:
        load_optimizer(last, optimizer)
        logger.info("resuming %s at step %d", directory, progress.step)
    num_parameters = count_parameters(model)
    model, optimizer = accelerator.prepare(model, optimizer)
    average = start_average(accelerator.unwrap_model(model), config.ema_decay) if config.ema_decay else None
    if progress.step and average is not None:
        load_average(last, average)
    stream = CodeStream(inputs.train, config.seed, config.batch_size)
    tracker = None
    first = _validate(config, accelerator, model, inputs) if progress.step == 0 else None
    if accelerator.is_main_process:
        log = MetricsLog(directory / "metrics.jsonl", progress.step)
        tracker = Tracker(config.tracking, config, log, {"parameters": num_parameters})
        if first is not None:
            tracker.write(0, first, images=0, seconds=0.0)

    loop = _Loop(config, accelerator, model, optimizer, average, stream, inputs, share)
    loop.run(progress, tracker, last)
    if tracker is not None:
        tracker.finish()


def _validate(
    config: TrainConfig, accelerator: Accelerator, model: torch.nn.Module, inputs: RunInputs
) -> dict[str, float]:
    """The metrics of a validation."""
    if config.diagnostics:
        return diagnose(accelerator, model, inputs, config.seed, config.directory)
    return evaluate(accelerator, model, inputs)


def attention_kernel(device: torch.device) -> Callable[[], contextlib.AbstractContextManager]:
    """Context manager that chooses the attention of a training step.

    On a CPU it is the plain one: at 64 positions it costs no more than torch's fused kernel (`make bench` prints
    both). Elsewhere torch chooses."""
    return partial(sdpa_kernel, SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext


@dataclass
class _Loop:
    config: TrainConfig
    accelerator: Accelerator
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    stream: CodeStream
    inputs: RunInputs
    share: int  # images a process and micro-batch

    def run(self, progress: Progress, tracker: Tracker | None, last: Path) -> None:
        config, accelerator = self.config, self.accelerator
        bar = tqdm(
            total=config.steps,
            initial=progress.step,
            desc=f"{config.label} seed {config.seed}",
            unit="step",
            disable=None if accelerator.is_main_process else True,
        )
        losses: list[Tensor] = []
        clock = time.perf_counter()
        says, told = bar.disable and accelerator.is_main_process, -math.inf
        while progress.step < config.steps:
            losses.append(self.step(progress.step))
            progress.step += 1
            bar.update()
            step = progress.step
            is_last = step == config.steps
            logs, evaluates = step % config.log_every == 0, step % config.evaluate_every == 0 or is_last
            if logs or evaluates:
                elapsed = time.perf_counter() - clock
                nats = accelerator.reduce(torch.stack(losses).mean(), "mean").item()
                if not np.isfinite(nats):
                    raise InputError(
                        f"the loss is {nats} at step {step} of {config.directory}; lower optim.learning_rate "
                        f"(now {config.optim.learning_rate}) or set precision=fp32, each in another directory with "
                        "RUN_DIR=..."
                    )
                progress.seconds += elapsed
                row = {
                    "train/nats_per_token": nats,
                    "train/learning_rate": learning_rate(config.optim, step - 1, config.steps),
                    "speed/images_per_second": len(losses) * config.batch_size / elapsed,
                }
                if evaluates:
                    row |= _validate(config, accelerator, self.model, self.inputs)
                if tracker is not None:
                    tracker.write(step, row, images=step * config.batch_size, seconds=progress.seconds)
                bar.set_postfix(nats=f"{nats:.3f}")
                if says and (evaluates or time.perf_counter() - told > SILENCE):
                    told = time.perf_counter()
                    held_out = f", {row['val/nats_per_token']:.3f} held out" if evaluates else ""
                    rate = row["speed/images_per_second"]
                    left = timedelta(seconds=round((config.steps - step) * config.batch_size / rate))
                    logger.info(
                        "step %d of %d: %.3f nats per token%s, %.1f images/s, %s left",
                        *(step, config.steps, nats, held_out, rate, left),
                    )
                losses, clock = [], time.perf_counter()
            if (step % config.checkpoint_every == 0 or is_last) and accelerator.is_main_process:
                progress.seconds += time.perf_counter() - clock
                save_checkpoint(last, accelerator.unwrap_model(self.model), self.optimizer, progress, self.average)
                clock = time.perf_counter()
        accelerator.wait_for_everyone()

    def step(self, step: int) -> Tensor:
        """Take one optimizer step; return the mean loss of this process's images in nats per token."""
        config, accelerator, model = self.config, self.accelerator, self.model
        model.train()
        set_learning_rate(self.optimizer, learning_rate(config.optim, step, config.steps))
        first = accelerator.process_index * config.micro_batches
        losses = []
        for micro in range(config.micro_batches):
            index = first + micro
            part = slice(index * self.share, (index + 1) * self.share)
            tokens = self.stream.tokens(step, part)
            condition, mask = self.condition(step, part)
            # Dropout draws from torch's global generator only, so that generator is seeded by step and share.
            torch.manual_seed(torch_seed(config.seed, Purpose.DROPOUT, step, index))
            is_last = micro == config.micro_batches - 1
            with torch.enable_grad() if is_last else accelerator.no_sync(model):
                with accelerator.autocast(), attention_kernel(accelerator.device)():
                    log_probs = model(tokens.to(accelerator.device), condition, mask)
                loss = -log_probs.sum(-1).mean()
                accelerator.backward(loss / config.micro_batches)
            losses.append(loss.detach())
        accelerator.clip_grad_norm_(model.parameters(), config.optim.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(accelerator.unwrap_model(model))
        return torch.stack(losses).mean()

    def condition(self, step: int, part: slice) -> tuple[Tensor, Tensor | None]:
        """Condition of the images in `part` of this step, with class dropout, and the mask of their captions."""
        config = self.config
        which = config.seed, step, part, config.batch_size
        images, choices = self.stream.images(step, part), caption_choices(*which)
        backbone = self.accelerator.unwrap_model(self.model).backbone
        condition, mask = on_device(self.accelerator, *self.inputs.conditions["train"].batch(images, choices))
        dropped = dropped_conditions(config.model.class_dropout, *which).to(condition.device)
        return backbone.drop_condition(condition, dropped), mask
