"""Numeric precision of this machine, and processes that wait for each other."""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masc.runtime.environment import pin_environment
from masc.runtime.errors import InputError
from masc.runtime.run import differences, flatten

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

PRECISIONS = ("auto", "fp32", "bf16")


def check_precision(precision: str) -> None:
    """Raise ValueError unless `precision` is one of PRECISIONS."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")


def resolve_precision(precision: str) -> str:
    """`fp32` or `bf16`; `auto` becomes bf16 if the hardware has instructions for it.

    On a CPU without them, bf16 autocast is slower than float32."""
    import torch

    check_precision(precision)
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32"


# Processes that share work end minutes apart, but NCCL's barriers stop waiting after ten minutes.
PATIENCE = timedelta(days=1)


def build_accelerator(precision: str = "fp32", timeout: timedelta | None = None) -> "Accelerator":
    """An Accelerator that computes in `precision`, `fp32` or `bf16`, and in no other way that the environment asks for.

    Its processes wait for each other for `timeout`, by default as long as torch does. Raises InputError as
    `check_processes`."""
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
    from accelerate.state import AcceleratorState

    pin_environment()
    mixed = "no" if precision == "fp32" else precision
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed:
        AcceleratorState._reset_state()  # of an Accelerator that this process had before
    # The buffers of a model never change, so they are not sent before every forward pass; gradients are kept once.
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)]
    handlers += [] if timeout is None else [InitProcessGroupKwargs(timeout=timeout)]
    accelerator = Accelerator(
        mixed_precision=mixed, gradient_accumulation_steps=1, dynamo_backend="no", kwargs_handlers=handlers
    )
    check_processes(accelerator.num_processes)
    return accelerator


def patient_accelerator() -> "Accelerator":
    """An Accelerator whose processes wait a day for each other."""
    return build_accelerator(timeout=PATIENCE)


def patient_state() -> "PartialState":
    """The processes that share a piece of work, and the device of this one; they wait a day for each other.

    Raises InputError as `check_processes`."""
    import torch
    from accelerate import PartialState

    pin_environment()
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    check_processes(state.num_processes)
    return state


def check_processes(seen: int) -> None:
    """Raise InputError if several processes were started but this one sees another number of them, `seen`: each would
    do all of the work."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if seen != started:
        raise InputError(
            f"{started} processes were started (WORLD_SIZE), but this one sees {seen}, as on a machine without a GPU "
            "for each; use GPUS=1, or LAUNCH_DEVICE=--cpu for several processes on a CPU"
        )


def check_agreement(own: dict[str, Any], ignored: tuple[str, ...] = ()) -> None:
    """Raise InputError unless all processes have the same values; keys that begin with one of `ignored` may differ.

    Each process reads its own files, and machines may have other files or another precision."""
    from accelerate.utils import gather_object

    first, *others = gather_object([flatten(own)])
    for rank, other in enumerate(others, 1):
        lines = differences(first, other, ignored)
        if lines:
            raise InputError(
                f"process {rank} (now) would not compute what process 0 (there) computes:\n{lines}\nGive all machines "
                "the same command and the same files; where their precision differs, set precision=fp32"
            )


def from_main(compute: Callable[[], Any]) -> Any:
    """The result of `compute`, which only the main process calls, for every process.

    An InputError or OSError there is raised in every process: the others would wait for a result."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    result: Any = None
    if PartialState().is_main_process:
        try:
            result = compute()
        except (InputError, OSError) as error:
            result = error
    (result,) = broadcast_object_list([result])
    if isinstance(result, Exception):
        raise result
    return result
