"""The training loop: any backbone, any head, one CPU core to many nodes (through accelerate).

The loss is the negative log-likelihood of the fine tokens in nats per token, whatever the head. With the `masc` head
its gradient is that of the paper's K-way cross-entropy (MASC, Eq. 5).

All randomness depends on the seed, the step and the image only. A resumed run therefore repeats the losses of an
uninterrupted run, and one process repeats those of eight, up to rounding."""

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import Accelerator

from llamagen.model import ARModel, build_model, count_parameters
from llamagen.training.average import Average
from llamagen.training.branch import BRANCH, Branch, open_branch
from llamagen.training.checkpoint import (
    Progress,
    hash_config,
    last_checkpoint,
    load_progress,
    load_weights,
    owes_row,
    read_average,
    set_damaged_aside,
)
from llamagen.training.compute import float32_products
from llamagen.training.config import TrainConfig
from llamagen.training.diagnostics import diagnose
from llamagen.training.initial import initial_parents
from llamagen.training.inputs import RunInputs, load_inputs
from llamagen.training.likelihood import evaluate
from llamagen.training.loop import Loop
from llamagen.training.optim import build_optimizers
from llamagen.training.optimizer_state import load_optimizers
from llamagen.training.parallel import ParallelModel
from llamagen.training.saving import Keeping, Saver
from llamagen.training.stream import CodeStream
from llamagen.training.tracking import Tracker
from llamagen.training.warm import check_start, freeze, record_start, start_warm
from masc.runtime.device import build_accelerator, check_agreement, from_main, resolve_precision
from masc.runtime.errors import InputError
from masc.runtime.reading import advising
from masc.runtime.run import MetricsLog, Provenance, is_begun, locked, plain, read_provenance

if TYPE_CHECKING:
    from llamagen.training.drawing import Drawing

logger = logging.getLogger(__name__)
# Keys of a config that may differ between processes.
PLACES = ("config.tracking.", "config.artifacts", "config.captions", "config.init", "config.data.path")


@dataclass(frozen=True)
class Start:
    """Where a run begins or continues."""

    inputs: RunInputs
    checkpoint: Path  # directory
    progress: Progress
    branch: Branch | None  # the checkpoint, if it is one of another run
    parents: dict[str, str]


def _find_start(config: TrainConfig, inputs: RunInputs, checkpoint: Path) -> Start:
    """Where the run of a config goes on: `checkpoint` is its own last one, or the place of its first one.

    Raises InputError as `check_start`, `initial_parents` and `open_branch`."""
    progress, branch = load_progress(checkpoint), None
    recorded = _recorded_branch(config.directory)
    if progress.step == 0 and (branch := open_branch(config, inputs.parents)) is not None:
        checkpoint, progress = branch.checkpoint, branch.progress
    elif progress.step == 0 and recorded:
        raise InputError(
            f"{config.directory} began at a checkpoint of another run and has none of its own yet; set FROM to that "
            "checkpoint again (`began_at` in provenance.json)"
        )
    elif config.from_checkpoint is not None and not _began_at(recorded, config.from_checkpoint):
        raise InputError(
            f"{config.directory} holds a run at step {progress.step}, and FROM={config.from_checkpoint} begins a new "
            "one; say where the new run goes with RUN_DIR=..., or leave FROM out to resume the run"
        )
    check_start(config, inputs, progress.step > 0)
    parents = inputs.parents | initial_parents(config, progress.step > 0)
    if branch is not None:
        parents |= branch.parents
    elif recorded is not None:
        parents[BRANCH] = recorded.parents[BRANCH]
    return Start(inputs, checkpoint, progress, branch, parents)


def _recorded_branch(directory: Path) -> Provenance | None:
    """The provenance of the run in a directory, if it began at a checkpoint of another one."""
    if not is_begun(directory):
        return None
    with advising("copy it back, or choose another directory with RUN_DIR=..."):
        provenance = read_provenance(directory)
    return provenance if BRANCH in provenance.parents else None


def _began_at(recorded: Provenance | None, given: str) -> bool:
    """Whether a run began at the checkpoint, or at one of the run, that `from_checkpoint` gives."""
    if recorded is None:
        return False
    place = Path(str((recorded.began_at or {}).get("checkpoint")))
    return Path(given).absolute() in (place, place.parent.parent)


def check_run(config: TrainConfig, num_processes: int) -> None:
    """Raise the InputError that `train` would raise in `num_processes` processes: an input is missing, another config
    uses the directory, or the batch cannot be shared. Nothing is written."""
    start = _find_start(config, load_inputs(config), last_checkpoint(config.directory, warns=False))
    _images_of_share(config, start.progress, num_processes)
    config.check_directory(start.parents)
    _open_drawing(config, start.inputs)


def train(config: TrainConfig) -> Path:
    """Train a run to its last step, from its last checkpoint if there is one; return its directory.

    A run that is resumed keeps its precision where the config says `auto`. Raises InputError if an input is missing,
    another config or another process uses the directory, the run was started in another precision, or processes differ
    in what they train; `Stopped` if a signal asked to stop, after the run was saved."""
    directory, inputs, own = config.directory, load_inputs(config), last_checkpoint(config.directory, warns=False)
    start = _find_start(config, inputs, own)
    progress = start.progress
    is_resumed = config.precision == "auto" and progress.step > 0 and start.branch is None
    precision = progress.precision if is_resumed else resolve_precision(config.precision)
    accelerator = build_accelerator(precision)
    if is_resumed and precision != resolve_precision("auto") and accelerator.is_main_process:
        logger.warning("%s continues in %s, in which it was started, whatever suits this machine", directory, precision)
    share = _images_of_share(config, progress, accelerator.num_processes)
    drawing = _open_drawing(config, start.inputs)
    if start.branch is not None:
        from_main(start.branch.check)
    with float32_products(config.compute.tf32, precision), contextlib.ExitStack() as held:
        from_main(lambda: held.enter_context(locked(directory)))
        from_main(lambda: config.open_directory(start.parents, start.branch and start.branch.record))
        found = Path(from_main(lambda: str(set_damaged_aside(directory, config.ema_decay > 0))))
        start = start if found == own else _find_start(config, inputs, found)
        progress = start.progress
        same = {"config": plain(config), "precision": precision, "step of the checkpoint": progress.step}
        check_agreement(same | {"SHA-256": start.parents}, PLACES)
        if progress.step >= config.steps and not from_main(lambda: owes_row(directory, progress)):
            logger.info("%s is trained already (%d steps)", directory, progress.step)
            return directory
        if start.branch is not None:
            from_main(lambda: start.branch.copy_rows(directory))
        if progress.step == 0 or start.branch is not None:
            progress.precision = precision
        progress.shares = config.batch_size // share
        if drawing is not None:
            drawing.load_reference(accelerator.device)
        _run(config, accelerator, start, share, drawing)
    return directory


def _open_drawing(config: TrainConfig, inputs: RunInputs) -> "Drawing | None":
    """The samples of a run in training, if any are drawn. Raises InputError as `Drawing`."""
    if not config.watch.sample_every:
        return None
    from llamagen.training.drawing import Drawing  # loads the metrics, which other trainings do not need

    return Drawing(config, inputs)


def _images_of_share(config: TrainConfig, progress: Progress, processes: int) -> int:
    """The images of a batch that each process takes in each micro-batch.

    Raises InputError if the batch cannot be shared equally, or if an unfinished run, whose dropout depends on it, was
    started with another number of shares."""
    shares, there = processes * config.micro_batches, progress.shares
    is_other = config.depends_on_shares and not config.compute.other_shares and there != shares
    if is_other and 0 < progress.step < config.steps:
        advice = f"set micro_batches={there // processes}" if there % processes == 0 else f"start {there} processes"
        raise InputError(
            f"{config.directory} was started with {there} share(s) of a batch, now {processes} process(es) x "
            f"micro_batches {config.micro_batches} make {shares}; {advice}, or accept other dropout masks from here on "
            "with compute.other_shares=true"
        )
    share, remainder = divmod(config.batch_size, shares)
    if remainder:
        raise InputError(
            f"batch_size {config.batch_size} must be a multiple of {processes} processes x {config.micro_batches} "
            "micro-batches; change batch_size or micro_batches in ARGS"
        )
    return share


def _run(config: TrainConfig, accelerator: Accelerator, start: Start, share: int, drawing: "Drawing | None") -> None:
    directory, inputs, progress = config.directory, start.inputs, start.progress
    build = partial(
        *(build_model, config.model, config.head, inputs.shape, inputs.tree, config.seed, inputs.counts),
        *(config.loss, inputs.vectors),
    )
    model = build()
    if progress.step:
        load_weights(start.checkpoint, model, is_checked=True)
    elif config.init is not None:
        record = start_warm(config, model.to(accelerator.device), inputs)
        if accelerator.is_main_process:
            record_start(record, directory)
    if model.loss is not None and model.loss.target_entropy is not None:
        logger.info("targets of %s: %.3f nats of mean entropy", config.loss.name, model.loss.target_entropy)
    freeze(model, config.frozen)
    num_parameters = count_parameters(model)
    parallel = ParallelModel(model, accelerator, config.compute, config.steps)
    optimizers = build_optimizers(model, config.optim, fused=True)
    average = Average(model, config.ema_decay) if config.ema_decay else None
    if progress.step:
        load_optimizers(start.checkpoint, model, optimizers, is_checked=True)
        if average is not None and not (start.branch and start.branch.lacks_average):
            average.load(read_average(start.checkpoint, is_checked=True))
        logger.info("resuming %s at step %d of %s", directory, progress.step, start.checkpoint)

    def validate() -> dict[str, float]:
        with parallel.whole() as whole:
            return _validate(config, accelerator, whole, inputs)

    def draw(step: int) -> dict[str, float]:
        with parallel.whole(None if average is None else average.parameters) as whole:
            return drawing.draw(accelerator, whole, step)

    if progress.window and not from_main(lambda: owes_row(directory, progress)):
        progress.window = []
    tracker = None
    first = validate() if progress.step == 0 else None
    if accelerator.is_main_process:
        log = MetricsLog(directory / "metrics.jsonl", progress.step)
        tracker = Tracker(config.tracking, config, log, {"parameters": num_parameters})
        if first is not None:
            tracker.write(0, first, images=0, seconds=0.0)
    full_speed = _full_speed(build, accelerator, progress.precision)
    keeping = Keeping(config.keep_last, config.keep_every)
    background = config.compute.background_save
    is_main = accelerator.is_main_process
    config_sha256 = hash_config(directory) if is_main else ""
    origin = start.checkpoint if start.branch is not None else None
    saver = Saver(directory, config_sha256, keeping, background, is_main, origin)
    stream = CodeStream(inputs.train, config.seed, config.batch_size, inputs.groups)
    loop = Loop(
        *(config, accelerator, parallel, optimizers, average, stream, inputs, share),
        *(progress, saver, tracker, validate, draw, full_speed),
    )
    try:
        loop.run()
    finally:
        if tracker is not None:
            tracker.finish()


def _full_speed(build: Callable[[], ARModel], accelerator: Accelerator, precision: str) -> float | None:
    """Images a second of the peak of all processes' GPUs; None where it is not known."""
    if accelerator.device.type != "cuda":
        return None
    from llamagen.training.utilisation import full_speed  # loads what measures a step, which a CPU does not need

    each = full_speed(build, accelerator.device, precision)
    return None if each is None else accelerator.num_processes * each


def _validate(config: TrainConfig, accelerator: Accelerator, model: ARModel, inputs: RunInputs) -> dict[str, float]:
    """The metrics of a validation."""
    if config.diagnostics:
        return diagnose(accelerator, model, inputs, config.seed, config.directory)
    return evaluate(accelerator, model, inputs)
