"""Batches of the next micro-batches, made by a thread while the device computes."""

import queue
import threading
import time
from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")
DEPTH = 4  # items that are ready at most
PATIENCE = 0.1  # seconds after which a thread that waits for room looks whether it is still wanted


class Ahead(Generic[Item]):
    """Items in their own order, made by a thread as far as DEPTH ahead, or when they are taken.

    An error of the thread is raised where the item that it made impossible is taken."""

    def __init__(self, items: Iterator[Item], threaded: bool):
        self._items, self._waited = items, 0.0
        self._ready: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(DEPTH)
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="read-ahead", daemon=True) if threaded else None
        if self._thread is not None:
            self._thread.start()

    def _fill(self) -> None:
        try:
            for item in self._items:
                if not self._put(item, None):
                    return
            self._put(None, StopIteration())
        except BaseException as error:  # whatever it is, the training must not wait for ever
            self._put(None, error)

    def _put(self, item: Item | None, error: BaseException | None) -> bool:
        """Whether there was room before the end."""
        while not self._ends.is_set():
            try:
                self._ready.put((item, error), timeout=PATIENCE)
                return True
            except queue.Full:
                pass
        return False

    def take(self) -> Item:
        """The next item."""
        start = time.perf_counter()
        item, error = (next(self._items), None) if self._thread is None else self._ready.get()
        self._waited += time.perf_counter() - start
        if error is not None:
            raise error
        return item

    def waited(self) -> float:
        """Seconds that items were waited for since the last call."""
        seconds, self._waited = self._waited, 0.0
        return seconds

    def close(self) -> None:
        """End the thread."""
        self._ends.set()
        if self._thread is not None:
            self._thread.join()
