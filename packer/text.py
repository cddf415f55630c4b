"""Counts and shares as people read them."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Format a count with its noun, in the plural unless the count is 1.

    >>> counted(1, "image"), counted(1200, "image")
    ('1 image', '1,200 images')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def floor_percent(part: int, whole: int) -> str:
    """Format a share in percent, rounded down, so that only the whole is 100 %.

    >>> floor_percent(9999, 10000), floor_percent(1, 1)
    ('99.9 %', '100 %')
    """
    return f"{1000 * part // max(1, whole) / 10:g} %"
