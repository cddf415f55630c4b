from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from patchnpack.packer import (
    FitTokens,
    Native,
)
from patchnpack.packer.binpacking import _fill, reference_fill

EDGES = {"pad": _fill.PAD, "crop": _fill.CROP, "resize": _fill.RESIZE}


@given(
    packs=st.lists(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=6), max_size=6),
    room=st.integers(0, 60),
)
@settings(max_examples=150, deadline=None)
def test_undrop_fills_each_pack_or_restores_every_token_and_equals_the_reference(
    packs: list[list[tuple[int, int]]], room: int
) -> None:
    capacity = room + max((sum(kept for kept, _ in pack) for pack in packs), default=0)
    keep = np.array([kept for pack in packs for kept, _ in pack], np.int32)
    tokens = np.array([kept + dropped for pack in packs for kept, dropped in pack], np.int64)
    offsets = np.cumsum([0, *map(len, packs)])
    filled = keep.copy()
    _fill.undrop(tokens, filled, offsets, capacity)
    assert ((keep <= filled) & (filled <= tokens)).all()
    for a, b in pairwise(offsets):
        assert filled[a:b].tolist() == reference_fill.undrop(tokens[a:b].tolist(), keep[a:b].tolist(), capacity)
        assert filled[a:b].sum() == min(capacity, tokens[a:b].sum())


@given(
    packs=st.lists(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=6), max_size=6),
    more=st.integers(0, 60),
)
@settings(max_examples=150, deadline=None)
def test_trim_cuts_only_the_excess_and_equals_the_reference(packs: list[list[tuple[int, int]]], more: int) -> None:
    least = np.array([fewest for pack in packs for fewest, _ in pack], np.int64)
    keep = np.array([fewest + extra for pack in packs for fewest, extra in pack], np.int32)
    offsets = np.cumsum([0, *map(len, packs)])
    capacity = more + max((int(least[a:b].sum()) for a, b in pairwise(offsets)), default=0)
    cut = keep.copy()
    _fill.trim(least, cut, offsets, capacity)
    assert ((least <= cut) & (cut <= keep)).all()
    for a, b in pairwise(offsets):
        assert cut[a:b].tolist() == reference_fill.trim(least[a:b].tolist(), keep[a:b].tolist(), capacity)
        assert cut[a:b].sum() == min(capacity, keep[a:b].sum())


# Candidate sizes near an image's own

_IMAGE = st.tuples(st.integers(8, 700), st.integers(8, 700), st.floats(0.01, 1))


def _given(edge: str, image: tuple[int, int, float], patch: int, m: int) -> tuple[Any, Any, int]:
    w, h = max(image[0], patch * m), max(image[1], patch * m)
    policy = FitTokens(10**6) if edge == "resize" else Native(edge=edge)  # type: ignore[arg-type]
    size, grid, _ = policy.sizes(np.array([w]), np.array([h]), patch, m)
    return size[0], grid[0], max(1, int(grid[0].prod() * image[2]))


@given(
    edge=st.sampled_from(sorted(EDGES)),
    image=_IMAGE,
    patch=st.sampled_from([4, 7, 16]),
    m=st.sampled_from([1, 2]),
    max_scale=st.sampled_from([0.01, 0.05, 0.3]),
    max_tokens=st.sampled_from([50, 10**9]),
    cap=st.sampled_from([1, 40, 10**9]),
)
@settings(max_examples=250, deadline=None)
def test_options_equal_the_reference_and_stay_within_their_limits(
    edge: str, image: tuple[int, int, float], patch: int, m: int, max_scale: float, max_tokens: int, cap: int
) -> None:
    size, grid, keep = _given(edge, image, patch, m)
    found = np.empty((_fill._OPTIONS, 6), np.int64)
    count = _fill.options(size, grid, keep, patch, m, EDGES[edge], max_scale, max_tokens, cap, found)
    (w, h), (gw, gh) = size.tolist(), grid.tolist()
    expected = reference_fill.options((w, h), (gw, gh), keep, patch, m, edge, max_scale, max_tokens, cap)
    if len(expected) < _fill._OPTIONS:
        assert [tuple(row) for row in found[:count].tolist()] == expected
    assert expected[0] == (keep, w, h, gw, gh, 0)
    for kept, width, height, columns, rows, change in found[:count].tolist():
        assert 1 <= kept <= columns * rows <= max(max_tokens, gw * gh)
        assert kept <= max(keep, cap)
        assert abs(width - w) <= max_scale * w
        assert abs(height - h) <= max_scale * h
        assert change <= max_scale * 1e6
        assert columns % m == rows % m == 0
        if edge == "resize":
            assert (width, height) == (columns * patch, rows * patch)
        else:
            assert abs(width / w - height / h) <= 0.51 * (1 / w + 1 / h)
            whole = (width // (patch * m), height // (patch * m)) if edge == "crop" else (
                -(-width // (patch * m)), -(-height // (patch * m)))  # fmt: skip
            assert (columns, rows) == (whole[0] * m, whole[1] * m)
        if keep == gw * gh:
            assert kept == min(columns * rows, max(keep, cap))


@given(
    edge=st.sampled_from(sorted(EDGES)),
    packs=st.lists(st.lists(_IMAGE, min_size=1, max_size=5), max_size=4),
    share=st.floats(0.93, 1.1),
    cap=st.sampled_from([1, 40, 10**9]),
)
@settings(max_examples=120, deadline=None)
def test_rescale_equals_the_reference(
    edge: str, packs: list[list[tuple[int, int, float]]], share: float, cap: int
) -> None:
    images = [_given(edge, image, 8, 1) for pack in packs for image in pack]
    size = np.array([size for size, _, _ in images], np.int32).reshape(-1, 2)
    grid = np.array([grid for _, grid, _ in images], np.int32).reshape(-1, 2)
    keep, least = np.array([keep for _, _, keep in images], np.int32), np.empty(len(images), np.int64)
    offsets = np.cumsum([0, *map(len, packs)])
    how = (8, 1, EDGES[edge], 0.05, 10**9, cap)
    _fill.fewest(size, grid, keep, *how, least)
    sums = [int(keep[a:b].sum()) for a, b in pairwise(offsets)]
    capacity = max([int(least[a:b].sum()) for a, b in pairwise(offsets)] + [int(share * n) for n in sums] + [1])
    choices = [
        reference_fill.options(tuple(s.tolist()), tuple(g.tolist()), k, 8, 1, edge, 0.05, 10**9, cap)
        for s, g, k in images
    ]
    assert least.tolist() == [min(option[0] for option in found) for found in choices]
    _fill.rescale(size, grid, keep, offsets, capacity, *how)
    for a, b in pairwise(offsets):
        chosen = reference_fill.rescale(choices[a:b], capacity)
        found = np.concatenate([keep[a:b, None], size[a:b], grid[a:b]], 1).tolist()
        assert found == [list(option[:5]) for option in chosen]
