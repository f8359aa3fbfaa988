"""Start the processes of a stage on this machine, one for each GPU, together with those of other machines.

    python scripts/launch.py GPUS NODES MACHINE_RANK MAIN_HOST MAIN_PORT LAUNCH_DEVICE SCRIPT WORD...

The config is checked before any process starts. Each process finds its place in the variables that torch and
accelerate read (RANK, WORLD_SIZE, MASTER_ADDR, ...). If one fails, is stopped or hangs, all are ended, on all machines.
A signal that asks the launcher to stop is passed on: processes that can save do so."""

import logging
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace

from meeting import Meeting, free_port, listen
from messages import explain, log_plainly
from watch import Watch
from worker import (
    BEATS,
    CONTINUES,
    EXIT_STOPPED,
    GRACE,
    PIPES,
    SAVING,
    SIGNALS,
    WRITING,
    claim_error,
    interrupt_on_signals,
)

from masc.runtime.errors import InputError

DEVICES = ("--multi_gpu", "--cpu")
LOOK = 0.1  # seconds between two looks at the processes
AGAIN = 1  # seconds after a signal from which the next one is a second request: one request may bring several at once


@dataclass(frozen=True)
class Launch:
    """The processes of one machine among those of all."""

    gpus: int  # processes of each machine
    nodes: int
    node: int
    host: str  # of node 0
    port: int  # on which nodes meet, then processes
    on_cpu: bool
    command: tuple[str, ...]  # of each process

    def environment(self, **place: str) -> dict[str, str]:
        """The environment of a process; `place` holds its own variables."""
        shared = {"LOCAL_WORLD_SIZE": str(self.gpus), "GROUP_RANK": str(self.node), "GROUP_WORLD_SIZE": str(self.nodes)}
        on_cpu = {"ACCELERATE_USE_CPU": "1", "CUDA_VISIBLE_DEVICES": ""} if self.on_cpu else {}
        # One thread for each of several, as torchrun sets it: they share the cores.
        threads = {"OMP_NUM_THREADS": "1"} if self.gpus > 1 else {}
        return threads | os.environ | shared | on_cpu | place


def parse(words: list[str]) -> Launch:
    """The launch that a command line asks for; InputError for a value that no launch has."""
    numbers = {}
    for name, text, least in zip(("GPUS", "NODES", "MACHINE_RANK"), words, (1, 1, 0), strict=False):
        if not text.isdecimal() or int(text) < least:
            raise InputError(f"{name} must be a whole number from {least} up, found {text!r}")
        numbers[name] = int(text)
    host, port, device = words[3:6]
    if numbers["NODES"] > 1 and not _is_name(host):
        raise InputError(f"MAIN_HOST must be the name or address of node 0, found {host!r}")
    if device not in DEVICES:
        raise InputError(f"LAUNCH_DEVICE must be one of {', '.join(DEVICES)}, found {device!r}")
    if port and not (port.isdecimal() and 0 < int(port) < 2**16):
        raise InputError(f"MAIN_PORT must be a whole number from 1 to 65535, found {port!r}")
    if numbers["MACHINE_RANK"] >= numbers["NODES"]:
        raise InputError(
            f"MACHINE_RANK must be less than NODES={numbers['NODES']}, found {numbers['MACHINE_RANK']}; give each "
            "machine a number of its own, from 0 up"
        )
    return Launch(*numbers.values(), host, int(port or 0), device == "--cpu", (sys.executable, *words[6:]))


def _is_name(host: str) -> bool:
    """Whether a name of a machine can be looked up."""
    try:
        return bool(host.encode("idna"))
    except UnicodeError:
        return False


def launch(here: Launch) -> int:
    """Run all processes to their end; return the exit status: 0, that of the first that failed, or EXIT_STOPPED."""
    if here.gpus * here.nodes == 1 or {"-h", "--help"} & set(here.command):
        os.execve(here.command[0], here.command, here.environment())
    if sys.platform != "linux":
        raise InputError(f"several processes need Linux, which shows how each of them fares, found {sys.platform}")
    if here.nodes == 1 and here.port:
        listen(here.port).close()  # the first process will listen there
    check = subprocess.Popen([*here.command[:2], "--check", *here.command[2:]], env=here.environment())
    try:
        status = check.wait()
    finally:
        stop([check])
    if status < 0:
        raise ended_by(status)
    if status:
        return status
    if here.nodes == 1:
        return run_workers(replace(here, host="127.0.0.1", port=here.port or free_port()))
    with Meeting.of(here.node, here.nodes, here.host, here.port or 29500, [here.gpus, *here.command[1:]]) as meeting:
        status = run_workers(replace(here, port=meeting.port), meeting)
        meeting.leave(status)
    return status


def run_workers(here: Launch, meeting: Meeting | None = None) -> int:
    """Start the processes of this machine; return their exit status."""
    errors, first_error = os.pipe()
    alive, held = os.pipe()  # nobody else holds `held`: the processes see when this one ends
    os.write(first_error, b"!")
    os.set_blocking(errors, False)
    workers: list[subprocess.Popen] = []
    first = here.node * here.gpus
    with Watch(here.gpus, first) as watch, Requests() as requests:
        try:
            for local in range(here.gpus):
                environment = here.environment(
                    RANK=str(first + local),
                    LOCAL_RANK=str(local),
                    WORLD_SIZE=str(here.gpus * here.nodes),
                    MASTER_ADDR=here.host,
                    MASTER_PORT=str(here.port),
                    **{PIPES: f"{errors},{alive}", BEATS: str(watch.file)},
                )
                files = [errors, alive, watch.file]
                workers.append(subprocess.Popen(here.command, env=environment, pass_fds=files))
            while (status := ended(workers)) is None:
                hanging = watch.look(workers)
                if meeting is not None:
                    meeting.check()
                    hanging = meeting.join_hanging(hanging)
                if hanging:
                    raise watch.error(workers, hanging)
                requests.pass_on(workers, watch)
                time.sleep(LOOK)
            if status < 0 and requests.first is not None:
                raise KeyboardInterrupt  # the signal came before the process could take it
            if status < 0 and claim_error(errors):
                raise ended_by(status)
            return abs(status)
        except InputError:
            claim_error(errors)  # the other processes end silently
            raise
        except KeyboardInterrupt:
            stop(workers, watch)
            if claim_error(errors):
                print(f"\ninterrupted; {CONTINUES}", file=sys.stderr)
            raise
        finally:
            stop(workers, watch)
            os.close(held)


class Requests:
    """The signals that ask the launcher to stop while its processes run.

    The first is passed on, so that the processes can save: all of them, for the terminal, `make` or a cluster may have
    sent it to some or to all. One that comes more than a second later interrupts; SIGUSR1, which no person sends, never
    does."""

    def __init__(self):
        self.first: float | None = None  # when the first came
        self.until = math.inf  # when the processes must have ended

    def __enter__(self) -> "Requests":
        self.before = {number: signal.getsignal(number) for number in (signal.SIGINT, *SIGNALS)}
        for number, handler in self.before.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if self.first is None:
            self.first = time.monotonic()
        elif number != signal.SIGUSR1 and time.monotonic() > self.first + AGAIN:
            raise KeyboardInterrupt

    def pass_on(self, processes: list[subprocess.Popen], watch: Watch) -> None:
        """Ask the processes to stop if somebody asked the launcher; InputError if they take too long, writes apart.

        A process that has got the signal itself does not take SIGUSR1 for a second request."""
        now = time.monotonic()
        has_stopped = any(process.returncode == EXIT_STOPPED for process in processes)  # asked on another machine
        if self.until == math.inf and (self.first is not None or has_stopped):
            self.until = now + SAVING
            for process in processes if self.first is not None else ():
                process.send_signal(signal.SIGUSR1)
        if any(map(watch.writes, range(len(processes)))):
            self.until = max(self.until, now + GRACE)
        if now > self.until:
            raise InputError(f"not all processes had saved {SAVING} s after a signal, so all are ended; {CONTINUES}")


def ended_by(status: int) -> InputError:
    """The error for a process that a signal has ended; `status` is its exit status."""
    return InputError(
        f"a process was ended by {signal.Signals(-status).name}, so all are; if nobody sent it, the memory may have "
        f"been full; {CONTINUES}"
    )


def ended(processes: list[subprocess.Popen]) -> int | None:
    """The exit status of a process that has failed, negative for a signal, or else of all when all have ended.

    None while they run. Where one was stopped by a signal after it had saved, all were."""
    states = [process.poll() for process in processes]
    failed = [state for state in states if state not in (None, 0, EXIT_STOPPED)]
    return failed[0] if failed else None if None in states else max(states)


def stop(processes: list[subprocess.Popen], watch: Watch | None = None) -> None:
    """End the processes that still run: by SIGTERM, and by SIGKILL those that do not follow.

    One that writes a checkpoint is let finish it, for WRITING seconds at most. An interrupt ends the wait."""
    for process in processes:
        process.terminate()
    start = time.monotonic()
    for index, process in enumerate(processes):
        try:
            process.wait(max(0, start + GRACE - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
            if isinstance(error, KeyboardInterrupt):
                start = -math.inf
            while watch is not None and watch.writes(index) and process.poll() is None:
                if time.monotonic() > start + WRITING:
                    break
                time.sleep(LOOK)
            process.kill()
            process.wait()


def main() -> None:
    interrupt_on_signals()  # and so end the processes as well
    log_plainly(logging.INFO)
    try:
        sys.exit(launch(parse(sys.argv[1:])))
    except InputError as error:
        sys.exit(f"error: {explain(error)}")
    except KeyboardInterrupt:
        sys.exit(1)


if __name__ == "__main__":
    main()
