"""What the processes of one launch share: `launch.py` starts them, and `run_stage` runs in each.

Each inherits the reading ends of two pipes. The first holds one byte, for the first process that fails: it prints its
error, and the others end silently. The second is closed when the launcher ends, whatever ended it. With them comes an
open file, in which each process counts its beats."""

import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from typing import NoReturn

import start  # noqa: F401  # isort: skip
from masc.runtime import beats
from masc.runtime.errors import InputError, Stopped

PIPES = "LAUNCH_PIPES"  # the file descriptors of both pipes, as in 3,4
BEATS = "LAUNCH_BEATS"  # that of the file
CONTINUES = "the same command continues from the last checkpoint or finished stage"
NOTICE = 2  # seconds in which the launcher sees that another process has died
GRACE = 10  # seconds from SIGTERM to SIGKILL once the processes cannot work on
SAVING = 90  # seconds in which processes that are asked to stop save and end, writes of checkpoints apart
WRITING = 600  # seconds that a process may take to finish a write once all are ended
EXIT_STOPPED = 75  # exit status of a stage that was asked to stop and has saved (EX_TEMPFAIL of sysexits.h)
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)  # they ask a process to stop, as Ctrl-C does
SHOW_STACK = signal.SIGUSR2  # asks a process of a launch to print where it is


def interrupt_on_signals() -> None:
    """Take the signals that ask this process to stop as Ctrl-C, so that it can stop the processes that it started.

    A signal that is ignored, as SIGHUP under nohup, stays so."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


def is_launched() -> bool:
    """Whether this process is one of several that a launcher started."""
    return "LOCAL_RANK" in os.environ


def is_main() -> bool:
    """Whether this process speaks for all: the only one, or the first of several."""
    return os.environ.get("RANK", "0") == "0"


def num_started() -> int:
    """The number of processes, on all machines, that start after the check that this process makes."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) * int(os.environ["GROUP_WORLD_SIZE"])


def claim_error(pipe: int) -> bool:
    """Whether no other process has claimed to print its error. `pipe` is the first of the two, and does not block."""
    try:
        return bool(os.read(pipe, 1))
    except BlockingIOError:
        return False


def print_error(message: str | None, error: BaseException) -> None:
    """Print the message, or the traceback if there is none, if this process is alone or the first that fails.

    All processes of a launch that is stopped say the same, and none has failed: there the main one prints it."""
    if isinstance(error, Stopped):
        prints = is_main()
    else:
        prints = PIPES not in os.environ or claim_error(int(os.environ[PIPES].split(",")[0]))
    if prints:
        print(message, file=sys.stderr) if message is not None else traceback.print_exception(error)


def end_worker(message: str | None, error: BaseException) -> NoReturn:
    """Print an error and end this process at once: the interpreter's own end would wait for the other processes."""
    try:
        if message is None:  # perhaps only because another process has died: then the launcher ends this one now
            time.sleep(NOTICE)
        print_error(message, error)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(EXIT_STOPPED if isinstance(error, Stopped) else 1)


def end_processes() -> None:
    """Part from the other processes at the end of a stage; without it torch's threads can abort the process."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def check_machine() -> None:
    """Raise InputError if this machine lacks a GPU for each of the processes that are to be started on it, or if these
    GPUs cannot send to each other."""
    import torch
    from accelerate.utils import check_cuda_p2p_ib_support

    if "ACCELERATE_USE_CPU" in os.environ:
        return
    started, found = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if found < started:
        raise InputError(
            f"GPUS={started}, but this machine has {found} GPU(s); use GPUS={max(found, 1)}, or LAUNCH_DEVICE=--cpu to "
            f"start {started} processes on the CPU"
        )
    if not check_cuda_p2p_ib_support() and not {"NCCL_P2P_DISABLE", "NCCL_IB_DISABLE"} <= set(os.environ):
        raise InputError(
            "these GPUs cannot send to each other with this driver; update it, or set NCCL_P2P_DISABLE=1 and "
            "NCCL_IB_DISABLE=1 in the environment"
        )


def join_launcher() -> None:
    """Tie this process to the launcher that started it, if one did.

    It ends when its launcher has ended, its beats are counted, and it prints where it is when it is asked to."""
    if PIPES in os.environ:
        threading.Thread(target=_end_with_launcher, args=[int(os.environ[PIPES].split(",")[1])], daemon=True).start()
    if BEATS in os.environ:
        beats.connect(int(os.environ[BEATS]), int(os.environ["LOCAL_RANK"]))
        faulthandler.register(SHOW_STACK, all_threads=False)


def _end_with_launcher(pipe: int) -> None:
    os.read(pipe, 1)  # returns at the end of the file
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SAVING)  # a process that waits for others in a library does not see the signal
    until = time.monotonic() + WRITING
    while beats.is_writing() and time.monotonic() < until:
        time.sleep(NOTICE)
    os._exit(1)
