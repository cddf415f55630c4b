"""The reference packers against textbook definitions and published numbers."""

from __future__ import annotations

import ast
import inspect
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchnpack.packer.binpacking import reference_fill
from patchnpack.packer.binpacking.packers import reference, reference_priced
from patchnpack.packer.policies import reference_draws

_NO_LIMIT = 10**6


def priced(lengths: list[int], capacity: int, max_items: int, lookahead: int, flush: bool) -> list[list[int]]:
    prices = [0, 0, 0, 307, 409, 512, 512, 512, 512, 512, 512]
    return reference_priced.priced(lengths, capacity, max_items, lookahead, flush, None, prices)


priced.__doc__ = reference_priced.priced.__doc__


@pytest.mark.parametrize(
    ("packer", "lengths", "lookahead", "packs"),
    [
        (reference.next_fit, [6, 5, 4, 3, 2], 5, [[6], [5, 4], [3, 2]]),
        (reference.first_fit, [6, 5, 4, 3, 2], 5, [[6, 4], [5, 3, 2]]),
        (reference.best_fit, [6, 7, 3, 4], 4, [[7, 3], [6, 4]]),
        (reference.first_fit_decreasing, [2, 5, 4, 7, 2], 5, [[7, 2], [5, 4], [2]]),
        (reference.best_fit_decreasing, [3, 5, 4, 6, 2], 5, [[6, 4], [5, 3, 2]]),
        (reference.largest_fit, [3, 5, 6, 2, 4], 5, [[3, 6], [5, 4], [2]]),
        (reference.subset_sum, [3, 5, 6, 2, 4, 2], 6, [[3, 2, 5], [6, 4], [2]]),
        (priced, [3, 5, 3, 5, 4], 5, [[3, 4, 3], [5, 5]]),
    ],
)
def test_pictures_in_the_docstrings_are_true(packer, lengths, lookahead, packs):  # type: ignore[no-untyped-def]
    found = packer(lengths, 10, 64, lookahead, True)
    assert [[lengths[i] for i in pack] for pack in found] == packs
    assert f"packs   {' '.join(map(str, packs))}".replace(",", "") in packer.__doc__


def test_picture_of_undrop_is_true() -> None:
    assert reference_fill.undrop([8, 6], [4, 3], 10) == [6, 4]
    assert "keep   6 4" in (reference_fill.undrop.__doc__ or "")


@pytest.mark.parametrize("module", [reference, reference_draws, reference_fill, reference_priced])
def test_reference_imports_only_the_standard_library(module: ModuleType) -> None:
    tree = ast.parse(inspect.getsource(module))
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imported]
    assert set(names) <= {"__future__", "itertools", "math", "collections", reference.__name__}


@given(st.lists(st.integers(1, 12), max_size=40))
@settings(max_examples=60, deadline=None)
def test_next_fit_only_looks_at_the_last_pack(lengths: list[int]) -> None:
    packs: list[list[int]] = []
    for item, length in enumerate(lengths):
        if packs and sum(lengths[i] for i in packs[-1]) + length <= 12:
            packs[-1].append(item)
        else:
            packs.append([item])
    assert reference.next_fit(lengths, 12, _NO_LIMIT, 1, True) == packs


@given(st.lists(st.integers(1, 12), max_size=40))
@settings(max_examples=60, deadline=None)
def test_first_fit_without_limits_is_the_textbook_algorithm(lengths: list[int]) -> None:
    packs: list[list[int]] = []
    for item, length in enumerate(lengths):
        for pack in packs:
            if sum(lengths[i] for i in pack) + length <= 12:
                pack.append(item)
                break
        else:
            packs.append([item])
    # Full packs leave early, so only the order of packs may differ.
    assert sorted(reference.first_fit(lengths, 12, _NO_LIMIT, _NO_LIMIT, True)) == sorted(packs)


@given(st.lists(st.integers(1, 12), max_size=40), st.integers(1, 10), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_largest_fit_starts_with_the_oldest_and_never_passes_over_a_larger_one_that_fits(
    lengths: list[int], lookahead: int, most: int
) -> None:
    left = list(range(len(lengths)))
    for pack in reference.largest_fit(lengths, 12, most, lookahead, True):
        waiting = left[:lookahead]
        assert pack[0] == waiting[0]
        room = 12
        for place, item in enumerate(pack):
            if place:
                assert lengths[item] == max(lengths[i] for i in waiting if lengths[i] <= room)
                assert item == min(i for i in waiting if lengths[i] == lengths[item])
            waiting.remove(item)
            left.remove(item)
            room -= lengths[item]
        assert len(pack) == most or not any(lengths[i] <= room for i in waiting)
    assert not left


def test_mix_is_the_finaliser_of_splitmix64() -> None:
    # The first outputs of the published generator for seed 1234567.
    golden = 0x9E3779B97F4A7C15
    states = [(1234567 + n * golden) % 2**64 for n in (1, 2, 3, 4, 5)]
    assert [reference_draws.mix(state) for state in states] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
