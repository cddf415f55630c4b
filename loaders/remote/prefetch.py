"""Prefetching: threads that bring shards into the cache before they are used."""

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
    """A file for the cache.

    Attributes:
        name: the file's name in the cache.
        make: writes the file to a path; raises `Stopped` once the event is set.
        nbytes: its size, if known.
    """

    name: str
    make: Callable[[Path, threading.Event], None]
    nbytes: int | None = None


@dataclass(slots=True)
class _Job:
    shard: Shard
    position: int
    state: str = _WAITING
    fd: int | None = None
    error: BaseException | None = None


class Prefetcher:
    """Fetches the `ahead` shards after the furthest acquired one into the cache, one thread per shard.

    Each shard is made once: `acquire` waits for a shard in flight. `acquire` raises the error of a failed shard, and a
    further `acquire` tries again. A fetched shard stays readable until it is acquired, even if evicted.

    Close it, or use it as a context manager: that cancels the shards in flight and ends the threads.

    Args:
        cache: where the shards go.
        shards: the shards in the order of their use; repeated names are ignored.
        ahead: number of shards to fetch ahead, at least 0.
        behind: shards more than `behind` before the furthest acquired one are neither fetched nor kept open.
        at_start: whether use begins with the first shard. If not, nothing is fetched before the first `acquire`.
    """

    def __init__(
        self, cache: ShardCache, shards: Iterable[Shard], ahead: int = 2, behind: int = 1 << 62, at_start: bool = True
    ) -> None:
        if ahead < 0:
            raise ValueError(f"ahead is {ahead}; it must be at least 0")
        self._cache, self._ahead, self._behind, self._at_start = cache, ahead, behind, at_start
        self._passed = 0
        self._jobs: dict[str, _Job] = {}
        for shard in shards:
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
        """Whether `name` is one of the shards."""
        return name in self._jobs

    def acquire(self, name: str) -> int:
        """A descriptor of a shard, open for reading; the caller closes it. A shard can be acquired repeatedly.

        Raises:
            KeyError: `name` is not one of the shards.
            ValueError: this prefetcher has been closed.

        Re-raises what `make` raised.
        """
        job = self._jobs[name]
        with self._change:
            self._furthest = max(self._furthest, job.position)
            while self._passed < self._furthest - self._behind:
                self._release(self._order[self._passed])
                self._passed += 1
            self._change.notify_all()
            if job.state == _WAITING:
                job.state = _DONE  # this thread makes the shard, below
            while job.state == _RUNNING:
                self._change.wait()
            if self._stop.is_set():
                raise ValueError(f"shard {name!r} was acquired after its prefetcher was closed")
            if job.fd is not None:
                fd, job.fd = job.fd, None
                return fd
            if job.error is not None:
                error, job.error = job.error, None
                raise error
        return self._acquire(job.shard)

    def close(self) -> None:
        """Cancel the shards in flight and end the threads."""
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
            fd, failure = None, None
            try:
                fd = self._acquire(job.shard)
            except Stopped:
                pass  # `acquire` reports that this prefetcher was closed
            except BaseException as error:  # noqa: BLE001 - `acquire` re-raises it
                failure = error
            with self._change:
                job.fd, job.error, job.state = fd, failure, _DONE
                if job.position < self._passed:
                    self._release(job)
                self._change.notify_all()

    @staticmethod
    def _release(job: _Job) -> None:
        if job.fd is not None:
            os.close(job.fd)
            job.fd = None

    def _take(self) -> _Job | None:
        """Wait for the next job within `ahead`; None when no job is left or this prefetcher is closed."""
        with self._change:
            while not self._stop.is_set() and self._next < len(self._order):
                job = self._order[self._next]
                if job.state != _WAITING or job.position < self._passed:
                    self._next += 1
                elif (self._at_start or self._furthest >= 0) and job.position <= self._furthest + self._ahead:
                    self._next += 1
                    job.state = _RUNNING
                    return job
                else:
                    self._change.wait()
        return None


@atexit.register
def _close_all() -> None:
    """Close all prefetchers before the interpreter finalizes: no thread may return from a download after that."""
    for prefetcher in list(_open):
        prefetcher.close()
