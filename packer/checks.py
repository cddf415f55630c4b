"""`check_whole`: the check that every count of a configuration passes."""

from __future__ import annotations

import numpy as np


def check_whole(name: str, value: object) -> None:
    """Raises ValueError unless `value` is a whole number of at least 1.

    >>> check_whole("seq_len", 0)
    Traceback (most recent call last):
    ValueError: seq_len is 0; it must be at least 1
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"{name} is {value!r}; it must be a whole number")
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1")
