"""`check_whole`: the validation of every count in a configuration."""

from __future__ import annotations

import numpy as np


def check_whole(name: str, value: object, least: int = 1) -> None:
    """Raise ValueError unless `value` is a whole number and at least `least`.

    >>> check_whole("seq_len", 0)
    Traceback (most recent call last):
    ValueError: seq_len is 0; it must be at least 1
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"{name} is {value!r}; it must be a whole number")
    if value < least:
        raise ValueError(f"{name} is {value}; it must be at least {least}")
