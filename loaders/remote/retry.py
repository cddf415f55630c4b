"""Retries: how long to try one remote file, and the loop that does."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from patchnpack.loaders.remote.addresses import redact
from patchnpack.loaders.remote.errors import PermanentError, RemoteError, RemoteNotFound, TransientError
from patchnpack.loaders.remote.shard_cache import Stopped

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Retry:
    """How long to try one remote file.

    Attributes:
        attempts: consecutive attempts without a new byte before giving up.
        deadline_s: seconds for attempts, pauses and transfer together.
        stall_s: seconds without a byte after which an attempt has failed.
        pause_s: pause after the first failure. It doubles with each consecutive failure up to `max_pause_s`, less a
            random part of up to half.

    >>> Retry(attempts=0)
    Traceback (most recent call last):
        ...
    ValueError: attempts is 0; it must be at least 1
    """

    attempts: int = 6
    deadline_s: float = 900.0
    stall_s: float = 20.0
    pause_s: float = 0.5
    max_pause_s: float = 20.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts is {self.attempts}; it must be at least 1")
        for name in ("deadline_s", "stall_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0 and finite")
        if not 0 <= self.pause_s <= self.max_pause_s < float("inf"):
            raise ValueError(f"pause_s is {self.pause_s}; it must be from 0 to max_pause_s, {self.max_pause_s}")


RETRY = Retry()


def take_retry(storage_options: Mapping[str, Any] | None) -> tuple[Retry, Mapping[str, Any] | None]:
    """Split storage_options into the policy under `retry` and the options of the store.

    Raises:
        ValueError: `retry` is not a dict of `Retry`'s fields, or a value is out of range.

    >>> take_retry({"anon": True, "retry": {"attempts": 3}})[0].attempts
    3
    """
    if storage_options is None or "retry" not in storage_options:
        return RETRY, storage_options
    others = dict(storage_options)
    given = others.pop("retry")
    if isinstance(given, Retry):
        return given, others
    names = [field.name for field in fields(Retry)]
    try:
        values = {str(name): int(value) if name == "attempts" else float(value) for name, value in given.items()}
    except (AttributeError, TypeError, ValueError):
        values = {"": 0}
    if not values.keys() <= set(names):
        raise ValueError(f"storage_options has retry={given!r}; it must be a dict of numbers, of {', '.join(names)}")
    return Retry(**values), others  # type: ignore[arg-type]  # attempts is an int


class Attempts:
    """Counts the attempts at one file against its policy."""

    def __init__(self, url: str, policy: Retry, stop: threading.Event | None) -> None:
        self._url, self._policy = url, policy
        self._stop = stop or threading.Event()
        self._began = time.monotonic()
        self._deadline = self._began + policy.deadline_s
        self._count = self._failures = 0
        self._last_reason = ""

    def begin(self) -> None:
        """Count one more attempt."""
        self._count += 1

    def progress(self) -> None:
        """Reset the count of consecutive failures, because new bytes have arrived."""
        self._failures = 0

    def deadline(self) -> float:
        """The deadline by `time.monotonic`; raises `RemoteError` once it has passed, `Stopped` if cancelled."""
        if self._stop.is_set():
            raise Stopped(f"{redact(self._url)}: cancelled")
        if time.monotonic() >= self._deadline:
            raise self.final_error(TransientError(self._last_reason or "the deadline has passed"))
        return self._deadline

    def pause_after(self, error: TransientError) -> None:
        """Count a failure and pause before the next attempt; raises `RemoteError` if no attempt is left."""
        self._failures += 1
        self._last_reason = str(error)
        if self._failures >= self._policy.attempts:
            raise self.final_error(error)
        max_pause = min(self._policy.max_pause_s, self._policy.pause_s * 2 ** (self._failures - 1))
        pause = max_pause * random.uniform(0.5, 1)
        if time.monotonic() + pause >= self._deadline:
            raise self.final_error(error)
        self._stop.wait(pause)

    def final_error(self, error: TransientError | PermanentError) -> RemoteError:
        """The error to raise when no attempt follows."""
        remedy = error.remedy or (
            f"try again later, or raise the limits: storage_options={{'retry': ...}}, now {self._policy}"
        )
        kind = RemoteNotFound if isinstance(error, PermanentError) and error.missing else RemoteError
        attempts = f"{self._count} attempt{'s'[: self._count != 1]}"
        seconds = time.monotonic() - self._began
        final = kind(f"{redact(self._url)}: {error} ({attempts} in {seconds:.1f} s); {remedy}")
        final.permanent = isinstance(error, PermanentError)
        return final


def retry(url: str, policy: Retry, call: Callable[[Attempts], T], stop: threading.Event | None = None) -> T:
    """Return what `call` returns, calling it again after each `TransientError` within the policy.

    Raises:
        RemoteError: `call` raised `PermanentError`, or the policy's limits are reached.
        Stopped: `stop` was set.
    """
    attempts = Attempts(url, policy, stop)
    while True:
        attempts.begin()
        try:
            return call(attempts)
        except TransientError as error:
            failure = error
        except PermanentError as error:
            raise attempts.final_error(error) from None
        attempts.pause_after(failure)
