from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from patchnpack.loaders.assembly.plan_ahead import PlanAhead


def _planned(advanced: list[int], count: int, images: int = 1, fails: bool = False) -> Iterator[Any]:
    for number in range(count):
        advanced.append(number)
        yield SimpleNamespace(num_images=images, number=number), number
    if fails:
        raise RuntimeError("the plan fails")
    yield None, count


def _settled(advanced: list[int]) -> int:
    """Return how far the thread has come once it waits."""
    before = -1
    while before != len(advanced):
        before = len(advanced)
        time.sleep(0.05)
    return before


@pytest.mark.parametrize("images", [1, 7, 5000])
def test_items_come_in_order_and_each_once(images: int) -> None:
    ahead = PlanAhead(_planned([], 3000, images))
    items: Iterator[Any] = iter(ahead)
    found = [next(items) for _ in range(3001)]
    ahead.close(None)
    assert [left_out for _, left_out in found] == list(range(3001))
    assert [builder is None for builder, _ in found] == [False] * 3000 + [True]


def test_groups_double_and_at_most_two_are_ahead() -> None:
    advanced: list[int] = []
    ahead = PlanAhead(_planned(advanced, 100_000))
    items: Iterator[Any] = iter(ahead)
    assert _settled(advanced) == 1 + 2
    next(items)  # takes the first group, of one batch
    assert _settled(advanced) == 1 + 2 + 4
    for _ in range(5000):
        next(items)
    assert _settled(advanced) - 5001 <= 3 * 1024
    ahead.close(None)


def test_an_error_is_raised_after_the_items_before_it() -> None:
    ahead = PlanAhead(_planned([], 50, fails=True))
    items: Iterator[Any] = iter(ahead)
    assert [next(items)[1] for _ in range(50)] == list(range(50))
    with pytest.raises(RuntimeError, match="the plan fails"):
        next(items)
    ahead.close(None)


def test_close_ends_the_thread() -> None:
    before = threading.active_count()
    ahead = PlanAhead(_planned([], 10))
    assert threading.active_count() == before + 1
    ahead.close(None)
    assert threading.active_count() == before
