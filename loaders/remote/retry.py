"""How long is tried to have a remote file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Retry:
    """How long to try, for one remote file.

    Attributes:
        attempts: attempts in a row that bring no new byte.
        deadline_s: seconds for all of it: attempts, pauses and transfer.
        stall_s: seconds without a byte after which an attempt has failed.
        pause_s: pause after the first failure; doubled with each in a row, up to `max_pause_s`, less a random part
            of up to half.

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
    """What `retry` in storage_options says, and the options without it, which are a store's own.

    Raises:
        ValueError: `retry` is no dict of `Retry`'s fields, or a value is out of range.

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
