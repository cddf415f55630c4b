"""Checks of configuration values. Each raises ValueError with the value, what it must be and, where known, the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

import numpy as np


def check_whole(name: str, value: object, least: int = 1) -> None:
    """Raise ValueError unless `value` is a whole number and at least `least`.

    >>> check_whole("seq_len", 0)
    Traceback (most recent call last):
    ValueError: seq_len is 0; it must be at least 1
    >>> check_whole("seq_len", "1024")
    Traceback (most recent call last):
    ValueError: seq_len is '1024'; it must be a whole number: 1024
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        meant = _whole_of(value)
        raise ValueError(f"{name} is {shown(value)}; it must be a whole number{'' if meant is None else f': {meant}'}")
    if value < least:
        raise ValueError(f"{name} is {value}; it must be at least {least}")


def check_real(name: str, value: object, wanted: str = "a number") -> None:
    """Raise ValueError unless `value` is a number other than NaN; `wanted` describes it.

    >>> check_real("max_rate", "0.1", "a share from 0 to 1")
    Traceback (most recent call last):
    ValueError: max_rate is '0.1'; it must be a share from 0 to 1
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating) or value != value:
        raise ValueError(f"{name} is {shown(value)}; it must be {wanted}")


def check_flag(name: str, value: object, instead: str = "") -> None:
    """Raise ValueError unless `value` is True or False; `instead` is a remedy for those who mean something else.

    >>> check_flag("shuffle", 1000, "shuffle_window sets how far rows are shuffled")
    Traceback (most recent call last):
    ValueError: shuffle is 1000; it must be True or False: shuffle_window sets how far rows are shuffled
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} is {shown(value)}; it must be True or False{instead and ': ' + instead}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of the choices; names the nearest one.

    >>> check_choice("interpolation", "BICUBIC", ("bilinear", "bicubic"))
    Traceback (most recent call last):
    ValueError: interpolation is 'BICUBIC'; it must be one of 'bilinear', 'bicubic': did you mean 'bicubic'?
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"{name} is {shown(value)}; it must be one of {', '.join(map(repr, choices))}{did_you_mean(value, choices)}"
        )


def did_you_mean(value: object, choices: Iterable[str]) -> str:
    """Return ": did you mean 'x'?" if one choice is near to `value`, else "".

    >>> did_you_mean("textt", ["txt", "json"])
    ": did you mean 'txt'?"
    """
    text = value if isinstance(value, str) else str(getattr(value, "name", ""))
    lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(text.lower(), lower, n=1, cutoff=0.7)
    return f": did you mean {lower[near[0]]!r}?" if near else ""


def shown(value: object, limit: int = 160) -> str:
    """Return `value` as an error message shows it: on one line, cut after `limit` characters.

    >>> shown(list(range(1000)), 12)
    '[0, 1, 2, 3,...'
    """
    text = f"the class {value.__name__}" if isinstance(value, type) else " ".join(repr(value).split())
    return text if len(text) <= limit else f"{text[:limit]}..."


def kind_of(value: object) -> str:
    """Return the type of a value as a message names it, with its module: "torch.utils.data.DataLoader".

    >>> kind_of(1), kind_of(np.zeros(1))
    ('int', 'numpy.ndarray')
    """
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _whole_of(value: object) -> int | None:
    """Return the whole number that somebody who gave `value` meant, if it can be known."""
    if isinstance(value, float | np.floating):
        number = float(value)
        return int(number) if number.is_integer() and abs(number) < 1 << 53 else None
    if isinstance(value, str) and value.strip().lstrip("+-").isdecimal() and len(value) < 20:
        return int(value)
    return None
