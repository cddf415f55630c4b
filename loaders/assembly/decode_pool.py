"""Decoding threads: one queue of parts for all of them; each batch builder collects its own results."""

from __future__ import annotations

import atexit
import queue
import sys
import threading
import time
import weakref
from typing import Protocol

_open: weakref.WeakSet[DecodePool] = weakref.WeakSet()
_AT_EXIT_S = 10.0  # a stuck thread must not keep the process from exiting
_BITE = 8  # parts that a thread takes at once, at most


class Parts(Protocol):
    """Work in numbered parts."""

    def run(self, part: int) -> None:
        """Do one part. Must not raise."""
        ...


class DecodePool:
    """`num_threads` threads that run parts in the order of their submission.

    Cheaper per part than `concurrent.futures`, whose future, condition and callback take more time than a small image.
    """

    def __init__(self, num_threads: int, name: str = "patchnpack-decode") -> None:
        self._tasks: queue.SimpleQueue[tuple[Parts, range] | None] = queue.SimpleQueue()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{i}", daemon=True) for i in range(num_threads)
        ]
        _open.add(self)
        for thread in self._threads:
            thread.start()

    def submit(self, work: Parts, num_parts: int) -> None:
        """Queue parts 0 to `num_parts` - 1, in bites that leave work for every thread."""
        bite = max(1, min(_BITE, num_parts // (2 * len(self._threads))))
        for first in range(0, num_parts, bite):
            self._tasks.put((work, range(first, min(first + bite, num_parts))))

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None and not self._closed:
            work, parts = task
            for part in parts:
                if not self._closed:
                    work.run(part)
            del task, work  # an idle thread must not keep a batch alive

    def close(self, timeout: float | None = None) -> None:
        """Drop parts that have not started, wait up to `timeout` seconds for those that have, and end the threads."""
        self._closed = True
        until = None if timeout is None else time.monotonic() + timeout
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            # The garbage collector may close a forgotten iterator in any thread, even one of these, and at exit.
            if thread is not threading.current_thread() and not sys.is_finalizing():
                thread.join(None if until is None else max(0.0, until - time.monotonic()))


class CallerThread:
    """Runs each part in the caller's thread as it is submitted; replaces `DecodePool` where there are no threads."""

    def submit(self, work: Parts, num_parts: int) -> None:
        """Run parts 0 to `num_parts` - 1."""
        for part in range(num_parts):
            work.run(part)

    def close(self, timeout: float | None = None) -> None:
        """Do nothing: no thread was started."""


@atexit.register
def _close_all() -> None:
    """End the threads of open iterators while Python still runs.

    Later, Python would end each thread where it next asks for the GIL. In the middle of C++ code (torch, or a library
    that a transform calls) that aborts the process.
    """
    until = time.monotonic() + _AT_EXIT_S
    for pool in list(_open):
        pool.close(max(0.0, until - time.monotonic()))
