"""Several commands at the same time, with one progress bar."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import start  # noqa: F401  # isort: skip
from tqdm import tqdm

from masc.runtime.errors import InputError
from masc.runtime.writing import make_folder, writing

THREADS = 1  # of a job


@dataclass(frozen=True)
class Job:
    """A command, its amount of work, and functions that tell how much is done."""

    name: str
    command: list[str]
    log: Path  # its output is written here
    is_done: Callable[[], bool]  # called once, before the start
    total: int = 1  # units of work
    progress: Callable[[], int] | None = None  # units done so far, called while it runs


def available_cores() -> int:
    """Number of cores that this process may use; a container can allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """The GPUs that this process sees, by the names that CUDA_VISIBLE_DEVICES has for them."""
    import torch

    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return (names or list(map(str, range(torch.cuda.device_count()))))[: torch.cuda.device_count()]


def default_workers() -> int:
    """How many jobs run at the same time: one for each GPU, without a GPU one for each core."""
    return len(visible_gpus()) or available_cores()


def run_jobs(jobs: list[Job], num_workers: int, description: str, unit: str) -> None:
    """Run the jobs that are not done, `num_workers` at a time, with THREADS threads each.

    Each worker sees one GPU if there are any. One thread for each process is the fastest way to share cores between
    runs. It also makes the floating-point sums of a run independent of the number of cores. Raises InputError with the
    end of the log if a job fails."""
    total = sum(job.total for job in jobs)
    waiting = [job for job in jobs if not job.is_done()]
    finished = total - sum(job.total for job in waiting)
    running: dict[subprocess.Popen, Job] = {}
    free, places, gpus = list(range(num_workers)), {}, visible_gpus() if waiting else []
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
    with tqdm(total=total, desc=description, unit=unit, initial=finished) as bar:
        try:
            while waiting or running:
                while waiting and free:
                    job, place = waiting.pop(0), free.pop(0)
                    make_folder(job.log.parent)
                    own = {"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} if gpus else {}
                    with writing(job.log), job.log.open("ab") as log:
                        process = subprocess.Popen(job.command, stdout=log, stderr=log, env=environment | own)
                    running[process], places[process] = job, place
                time.sleep(0.3)
                for process in [process for process in running if process.poll() is not None]:
                    job = running.pop(process)
                    free.append(places.pop(process))
                    _check(process, job)
                    finished += job.total
                under_way = sum(job.progress() for job in running.values() if job.progress)
                if finished + under_way != bar.n:
                    bar.update(finished + under_way - bar.n)
                elif sys.stderr.isatty():
                    bar.refresh()
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait()


def _check(process: subprocess.Popen, job: Job) -> None:
    if process.returncode:
        tail = "\n".join(job.log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:])
        raise InputError(f"{job.name} stopped with exit status {process.returncode}; the end of {job.log}:\n{tail}")
