"""Lower bounds on the number of packs, compared with exhaustive search over a few items."""

from __future__ import annotations

import doctest
import importlib.util
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bounds.py"
spec = importlib.util.spec_from_file_location("bounds", SCRIPT)
assert spec is not None
assert spec.loader is not None
bounds = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bounds)

BOUNDS = [bounds.volume_bound, bounds.martello_toth_bound, bounds.column_generation_bound]
FEW = st.integers(1, 24).flatmap(
    lambda capacity: st.tuples(st.lists(st.integers(1, capacity), min_size=1, max_size=7), st.just(capacity))
)


def fewest_packs(lengths: list[int], capacity: int) -> int:
    """The minimum over all assignments: each item into each open pack, or into a new one."""

    def place(item: int, used: tuple[int, ...]) -> int:
        if item == len(lengths):
            return len(used)
        options = [(*used[:p], u + lengths[item], *used[p + 1 :]) for p, u in enumerate((*used, 0))]
        return min(place(item + 1, option) for option in options if max(option) <= capacity)

    return place(0, ())


def linear_programme(lengths: list[int], capacity: int) -> float:
    """The minimum of the linear programme over every pattern that fits."""
    sizes, counts = np.unique(lengths, return_counts=True)
    ranges = [range(capacity // size + 1) for size in sizes]
    patterns = np.array([p for p in itertools.product(*ranges) if 0 < np.dot(p, sizes) <= capacity])
    return float(linprog(np.ones(len(patterns)), A_ub=-patterns.T, b_ub=-counts).fun)


def test_docstring_examples_run() -> None:
    tried = doctest.testmod(bounds)
    assert tried.failed == 0
    assert tried.attempted >= 4


@settings(deadline=None)
@given(FEW)
def test_no_bound_exceeds_the_fewest_packs(few: tuple[list[int], int]) -> None:
    lengths, capacity = few
    fewest = fewest_packs(lengths, capacity)
    for bound in BOUNDS:
        assert bound(np.array(lengths), capacity) <= fewest, bound
    assert bounds.column_generation_bound(np.array(lengths), capacity, groups=2) <= fewest
    assert bounds.lower_bound(np.array(lengths), capacity)[0] == max(b(np.array(lengths), capacity) for b in BOUNDS)


@settings(deadline=None)
@given(FEW)
def test_martello_toth_equals_its_definition_at_the_best_threshold(few: tuple[list[int], int]) -> None:
    lengths, capacity = few
    best = 0
    for t in range(capacity // 2 + 1):
        alone = [w for w in lengths if w > capacity - t]
        large = [w for w in lengths if capacity / 2 < w <= capacity - t]
        small = [w for w in lengths if t <= w <= capacity / 2]
        beyond = sum(small) - (len(large) * capacity - sum(large))
        best = max(best, len(alone) + len(large) + max(0, math.ceil(beyond / capacity)))
    assert bounds.martello_toth_bound(np.array(lengths), capacity) == best


@pytest.mark.parametrize("seed", range(12))
def test_column_generation_equals_the_linear_programme_over_all_patterns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    capacity = int(rng.integers(20, 40))
    lengths = rng.choice(rng.integers(capacity // 5, capacity, 6), 60)
    least = linear_programme(lengths.tolist(), capacity)
    assert bounds.column_generation_bound(lengths, capacity) == math.ceil(least - 1e-6)


def test_column_generation_is_tight_where_other_bounds_are_not() -> None:
    rng = np.random.default_rng(0)
    cuts = np.sort(rng.integers(1, 1023, (300, 4)) // 8 * 8, axis=1)
    lengths = np.diff(np.pad(cuts, ((0, 0), (1, 1)), constant_values=((0, 0), (0, 1024)))).ravel()
    assert bounds.column_generation_bound(lengths[lengths > 0], 1024) == 300
    thirds = np.full(300, 342)  # two fit into a pack of 1024, three nearly do
    assert [bound(thirds, 1024) for bound in BOUNDS] == [101, 101, 150]


def test_bound_stopped_early_is_lower_but_not_below_the_volume() -> None:
    lengths = np.random.default_rng(1).choice(np.arange(100, 900, 7), 5000)
    early = bounds.column_generation_bound(lengths, 1024, rounds=3)
    assert bounds.volume_bound(lengths, 1024) <= early <= bounds.column_generation_bound(lengths, 1024)


def test_bound_of_grouped_lengths_is_lower_and_close() -> None:
    lengths = np.random.default_rng(2).integers(300, 700, 20_000)
    grouped, every = (bounds.column_generation_bound(lengths, 1024, groups=groups) for groups in (64, 400))
    assert 0.99 * every <= grouped < every
