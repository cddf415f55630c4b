"""Prefetching: threads that bring the coming shards into the cache before they are asked for."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from patchnpack.loaders.remote.shard_cache import ShardCache, Stopped

_open: weakref.WeakSet[Prefetcher] = weakref.WeakSet()
_WAITING, _RUNNING, _DONE = "waiting", "running", "done"


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of the cache: its name, what writes it to a path (until the event is set), and its size if known."""

    name: str
    make: Callable[[Path, threading.Event], None]
    nbytes: int | None = None


@dataclass(slots=True)
class _Job:
    shard: Shard
    place: int
    state: str = _WAITING
    fd: int | None = None
    error: BaseException | None = None


class Prefetcher:
    """Keeps the `ahead` shards that follow the furthest one asked for on their way into the cache, a thread each.

    A shard is made once: whoever asks for one that is under way waits for it. What went wrong with it is raised to the
    one who asks; asked again, it is tried again. A shard brought here stays readable until it is asked for, even where
    the cache's limit has evicted it before.

    Args:
        cache: where the shards go.
        coming: the shards in the order of their use; of a name that comes twice the first counts.
        ahead: how many, at least 0.
        behind: one so far behind the furthest one asked for is no longer fetched, nor kept open.
        at_start: whether the first one will be asked for first; else nothing is fetched before one is asked for.

    `close` it, or use it as a context manager: its threads end, and what was under way is called off.
    """

    def __init__(
        self, cache: ShardCache, coming: Iterable[Shard], ahead: int = 2, behind: int = 1 << 62, at_start: bool = True
    ) -> None:
        if ahead < 0:
            raise ValueError(f"ahead is {ahead}; it must be at least 0")
        self._cache, self._ahead, self._behind, self._at_start = cache, ahead, behind, at_start
        self._passed = 0
        self._jobs: dict[str, _Job] = {}
        for shard in coming:
            if shard.name not in self._jobs:
                self._jobs[shard.name] = _Job(shard, len(self._jobs))
        self._order = list(self._jobs.values())
        self._next, self._furthest = 0, -1
        self._change = threading.Condition()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, name=f"patchnpack-prefetch-{i}", daemon=True)
            for i in range(min(ahead, len(self._order)))
        ]
        _open.add(self)
        for thread in self._threads:
            thread.start()

    def has(self, name: str) -> bool:
        """Whether it is one of the coming shards."""
        return name in self._jobs

    def acquire(self, name: str) -> int:
        """A descriptor of one of the coming shards, open for reading; the caller closes it. May be asked for again.

        Raises:
            KeyError: a name that is not among the coming shards.
            ValueError: this prefetcher has been closed.

        And whatever making the shard raises, or has raised.
        """
        job = self._jobs[name]
        with self._change:
            self._furthest = max(self._furthest, job.place)
            while self._passed < self._furthest - self._behind:
                self._let_go(self._order[self._passed])
                self._passed += 1
            self._change.notify_all()
            if job.state == _WAITING:
                job.state = _DONE  # this thread makes it
            while job.state == _RUNNING:
                self._change.wait()
            if self._stop.is_set():
                raise ValueError(f"shard {name!r} was asked for after its prefetcher was closed")
            if job.fd is not None:
                fd, job.fd = job.fd, None
                return fd
            if job.error is not None:
                error, job.error = job.error, None
                raise error
        return self._acquire(job.shard)

    def close(self) -> None:
        """Ends the threads, and with them what they have under way."""
        self._stop.set()
        with self._change:
            self._change.notify_all()
        for thread in self._threads:
            thread.join()
        with self._change:
            for job in self._order:
                if job.fd is not None:
                    os.close(job.fd)
                    job.fd = None

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _acquire(self, shard: Shard) -> int:
        return self._cache.acquire(shard.name, lambda path: shard.make(path, self._stop), shard.nbytes, stop=self._stop)

    def _work(self) -> None:
        while (job := self._take()) is not None:
            fd, failed = None, None
            try:
                fd = self._acquire(job.shard)
            except Stopped:
                pass  # whoever asks is told that this prefetcher was closed
            except BaseException as error:  # noqa: BLE001 - it is raised to the one who asks for the shard
                failed = error
            with self._change:
                job.fd, job.error, job.state = fd, failed, _DONE
                if job.place < self._passed:
                    self._let_go(job)
                self._change.notify_all()

    @staticmethod
    def _let_go(job: _Job) -> None:
        if job.fd is not None:
            os.close(job.fd)
            job.fd = None

    def _take(self) -> _Job | None:
        """The next job once it is near enough, or None when there is none or all is called off."""
        with self._change:
            while not self._stop.is_set() and self._next < len(self._order):
                job = self._order[self._next]
                if job.state != _WAITING or job.place < self._passed:
                    self._next += 1
                elif (self._at_start or self._furthest >= 0) and job.place <= self._furthest + self._ahead:
                    self._next += 1
                    job.state = _RUNNING
                    return job
                else:
                    self._change.wait()
        return None


@atexit.register
def _close_all() -> None:
    """Calls off what is still open while Python still runs: a thread must not come back from a download after it."""
    for prefetcher in list(_open):
        prefetcher.close()
