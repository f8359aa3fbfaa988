"""Several commands at once, each with its share of the CPU, under one progress bar."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from masc.runtime.artifacts import InputError


@dataclass(frozen=True)
class Job:
    """A command, how much work it is, and how to see from outside how much of that is done."""

    name: str
    command: list[str]
    log: Path  # what it prints goes here
    is_done: Callable[[], bool]  # asked once, before it would start
    total: int = 1  # units of work
    progress: Callable[[], int] | None = None  # units done so far, asked while it runs


def available_cores() -> int:
    """Cores that this process may use, which a container can limit below the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(jobs: list[Job], num_workers: int, description: str, unit: str) -> None:
    """Run the jobs that are not done, `num_workers` at a time, one thread each where there are several cores.

    One thread a process is the fastest way to share cores between runs, and makes a run's floating-point sums
    the same on every machine of a kind. Raises InputError with the end of its log if a job fails."""
    total = sum(job.total for job in jobs)
    waiting = [job for job in jobs if not job.is_done()]
    finished = total - sum(job.total for job in waiting)
    running: dict[subprocess.Popen, Job] = {}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with tqdm(total=total, desc=description, unit=unit, initial=finished) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < num_workers:
                    job = waiting.pop(0)
                    job.log.parent.mkdir(parents=True, exist_ok=True)
                    with job.log.open("a") as log:
                        process = subprocess.Popen(job.command, stdout=log, stderr=log, env=environment)
                    running[process] = job
                time.sleep(0.3)
                for process in [process for process in running if process.poll() is not None]:
                    job = running.pop(process)
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
        tail = "\n".join(job.log.read_text().splitlines()[-8:])
        raise InputError(f"{job.name} stopped with exit status {process.returncode}; the end of {job.log}:\n{tail}")
