"""How a launcher sees that one of its processes has been stopped, or that none makes progress any more."""

import mmap
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Self

from worker import CONTINUES, SHOW_STACK

from masc.runtime.beats import PLACE
from masc.runtime.errors import InputError

STOPPED = 20  # seconds that a process may stay stopped: Ctrl-Z and `fg` reach all processes within moments
SILENT = 45  # seconds without a beat where more are expected; all processes then end within a minute
TIMES = 5  # a process may also be silent for this many times its longest gap between two beats so far
FEW = 3  # gaps that were seen before a process is watched
TICK = 1  # seconds that the clock goes on at most between two looks: if more have passed, the launcher stood still too
STACK = 0.3  # seconds that a process has to print where it is


Place = tuple[int, int]  # rests of a process, beats since the last rest


@dataclass
class Seen:
    """What the launcher has seen of one process."""

    place: Place = (0, 0)
    silent: float = 0  # seconds since the place changed
    longest: float = 0  # seconds between two beats without a rest
    gaps: int = 0  # between beats so far
    stopped: float = 0  # seconds

    def look(self, place: Place, passed: float, is_stopped: bool) -> None:
        """Note the place of the process, `passed` seconds after the last look."""
        self.stopped = self.stopped + passed if is_stopped else 0
        self.silent += passed
        if place == self.place:
            return
        if place[0] == self.place[0] and self.place[1]:
            self.gaps, self.longest = self.gaps + 1, max(self.longest, self.silent)
        self.place, self.silent = place, 0

    @property
    def hangs(self) -> bool:
        """Whether a beat is expected and does not come."""
        return self.place[1] > 0 and self.gaps >= FEW and self.silent > max(SILENT, TIMES * self.longest)


class Watch:
    """The beats of the processes of this machine, in a file without a name that they inherit (on Linux only).

    `first` is the number of the first of them among the processes of all machines."""

    def __init__(self, num_processes: int, first: int):
        self.first = first
        self.file = os.memfd_create("beats")
        os.truncate(self.file, num_processes * PLACE.size)
        self.beats = mmap.mmap(self.file, 0)
        self.seen = [Seen() for _ in range(num_processes)]
        self.last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self.file)

    def look(self, processes: list[subprocess.Popen]) -> dict[int, Place]:
        """The places of the processes that still run, by their numbers, if all of them hang; else nothing.

        Where some still make progress the others wait for them. Raises InputError if one has been stopped for long."""
        now = time.monotonic()
        passed, self.last = min(now - self.last, TICK), now
        running: dict[int, Seen] = {}
        for index, (process, seen) in enumerate(zip(processes, self.seen, strict=True)):
            if process.returncode is None:
                seen.look(self._numbers(index)[:2], passed, is_stopped(process))
                running[self.first + index] = seen
        stopped = [number for number, seen in running.items() if seen.stopped > STOPPED]
        if stopped:
            verb = "was" if len(stopped) == 1 else "were"
            raise InputError(
                f"{_names(stopped)} {verb} stopped by a signal such as SIGSTOP for {STOPPED} s, so all are ended; "
                f"{CONTINUES}"
            )
        all_hang = all(seen.hangs for seen in running.values())
        return {number: seen.place for number, seen in running.items()} if all_hang else {}

    def writes(self, index: int) -> bool:
        """Whether a process of this machine, by its number here, writes what would be lost if it were ended now."""
        return self._numbers(index)[2] > 0

    def _numbers(self, index: int) -> tuple[int, int, int]:
        return PLACE.unpack_from(self.beats, index * PLACE.size)

    def error(self, processes: list[subprocess.Popen], hanging: dict[int, Place]) -> InputError:
        """The error for processes that hang, on all machines. Those that are behind the others print their stacks."""
        behind = sorted(number for number, place in hanging.items() if place == min(hanging.values()))
        for number in behind:
            if 0 <= number - self.first < len(processes):
                print(f"where process {number} is:", file=sys.stderr, flush=True)
                processes[number - self.first].send_signal(SHOW_STACK)
                time.sleep(STACK)
        who, others = "no process made", ""
        if len(behind) < len(hanging):
            who, others = f"{_names(behind)} made no", ", and the others wait"
        seconds = min(seen.silent for seen in self.seen)
        return InputError(
            f"{who} progress for {seconds:.0f} s{others}, so all are ended; see 'where process {behind[0]} is' in "
            f"the output of its machine; {CONTINUES}"
        )


def _names(numbers: list[int]) -> str:
    return f"process{'es' if len(numbers) > 1 else ''} {', '.join(str(number) for number in numbers)}"


def is_stopped(process: subprocess.Popen) -> bool:
    """Whether a signal has stopped a process and none has let it go on. It must be unwaited for."""
    state = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return state is not None and state.si_code == os.CLD_STOPPED
