"""A pool of decoding threads: one queue in, results reported by the task itself."""

from __future__ import annotations

import atexit
import queue
import sys
import threading
import time
import weakref
from typing import Protocol

_open: weakref.WeakSet[DecodePool] = weakref.WeakSet()
_AT_EXIT_S = 10.0  # a thread that is stuck must not keep the process from ending


class Batchlike(Protocol):
    """Work in numbered parts; `run` must not raise."""

    def run(self, part: int) -> None: ...


class DecodePool:
    """`num_threads` threads that run parts of batches in the order in which they were submitted.

    Cheaper an item than `concurrent.futures`, whose future, condition and callback cost more Python than a small image.
    """

    def __init__(self, num_threads: int) -> None:
        self._tasks: queue.SimpleQueue[tuple[Batchlike, int] | None] = queue.SimpleQueue()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"patchnpack-decode-{i}", daemon=True) for i in range(num_threads)
        ]
        _open.add(self)
        for thread in self._threads:
            thread.start()

    def submit(self, batch: Batchlike, parts: int) -> None:
        """Queues parts 0 to `parts` - 1 of a batch."""
        for part in range(parts):
            self._tasks.put((batch, part))

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None and not self._closed:
            batch, part = task
            batch.run(part)
            del task, batch  # an idle thread must not keep a batch alive

    def close(self, timeout: float | None = None) -> None:
        """Drops what has not begun, waits for what has (at most `timeout` seconds), and ends the threads."""
        self._closed = True
        until = None if timeout is None else time.monotonic() + timeout
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            # The collector may drop a forgotten iterator in any thread, also in one of these, and as Python ends.
            if thread is not threading.current_thread() and not sys.is_finalizing():
                thread.join(None if until is None else max(0.0, until - time.monotonic()))


@atexit.register
def _close_all() -> None:
    """Ends the threads of iterators that are still open while Python still runs.

    Later it would kill them where they next ask for the GIL, and in the middle of C++ (torch, or the library of a
    transform) that aborts the process.
    """
    until = time.monotonic() + _AT_EXIT_S
    for pool in list(_open):
        pool.close(max(0.0, until - time.monotonic()))
