"""Signals that ask a long computation to stop at its next safe point, instead of interrupting it.

SIGTERM and SIGINT ask for it, SIGHUP when a terminal is closed, and SIGUSR1, which SLURM sends some time before it ends
a job."""

import contextlib
import signal
import time
from collections.abc import Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
INSISTS = 1.0  # seconds after which another signal is not the first one once more, sent to the process and to its group


class StopRequest:
    """Whether one of SIGNALS has come, and which one."""

    def __init__(self):
        self.name: str | None = None
        self._at = 0.0

    def take(self, number: int, _frame: object) -> None:
        """The handler of the signals: a second one, unless it is SIGUSR1, raises KeyboardInterrupt."""
        if self.name is None:
            self.name, self._at = signal.Signals(number).name, time.monotonic()
        elif number != signal.SIGUSR1 and time.monotonic() - self._at > INSISTS:
            raise KeyboardInterrupt


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Inside, SIGNALS only set the request; one that is ignored, as SIGHUP under nohup, stays so.

    Outside of the main thread, where no handler can be set, none comes."""
    request, before = StopRequest(), {}
    try:
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                with contextlib.suppress(ValueError):
                    before[number] = signal.signal(number, request.take)
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
