from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchnpack.packer import _detail, _kernels
from patchnpack.packer.policies import reference_draws

# H, W pixels of an image, P patch size, C channels, (gw, gh) patches across and down

_GUARD = 0xA5


@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_compiled_mix_equals_the_reference(base: int, counters: list[int]) -> None:
    out = np.empty(len(counters), np.uint64)
    _kernels.mix_all(np.array(counters, np.uint64), np.uint64(base), out)
    assert out.tolist() == [reference_draws.mix((base ^ c) + 0x9E3779B97F4A7C15 & 2**64 - 1) for c in counters]
    assert [int(_kernels.mix(np.uint64(c))) for c in counters] == [reference_draws.mix(c) for c in counters]


tokens_and_keep = st.integers(1, 300).flatmap(lambda tokens: st.tuples(st.just(tokens), st.integers(1, tokens)))


@given(st.integers(0, 2**64 - 1), tokens_and_keep)
@settings(max_examples=150, deadline=None)
def test_kept_tokens_equal_the_reference_and_are_ascending_distinct_and_of_the_requested_number(
    key: int, drawn: tuple[int, int]
) -> None:
    tokens, keep = drawn
    kept = _kernels.kept_tokens(np.uint64(key), tokens, keep)
    assert kept.dtype == np.int32
    assert kept.shape == (keep,)
    assert (np.diff(kept) > 0).all()
    assert kept[0] >= 0
    assert kept[-1] < tokens
    assert kept.tolist() == reference_draws.kept_tokens(key, tokens, keep)


@given(st.integers(0, 2**64 - 1), st.integers(2, 60))
@settings(max_examples=40, deadline=None)
def test_keeping_one_more_token_only_adds_one(key: int, tokens: int) -> None:
    kept = [set(_kernels.kept_tokens(np.uint64(key), tokens, keep).tolist()) for keep in range(1, tokens + 1)]
    for fewer, more in pairwise(kept):
        assert fewer < more


@pytest.mark.parametrize(("tokens", "keep"), [(20, 1), (20, 5), (20, 19)])
def test_each_token_is_kept_equally_often(tokens: int, keep: int) -> None:
    draws = 20_000
    keys = np.random.default_rng(4).integers(0, 2**64, draws, np.uint64)
    counts = np.bincount(np.concatenate([_kernels.kept_tokens(key, tokens, keep) for key in keys]), minlength=tokens)
    share = keep / tokens
    # One image's tokens exclude each other, which scales the sum by (tokens - 1) / tokens: 19 degrees of freedom, above
    # 50 once in 8,000.
    chi_square = ((counts - draws * share) ** 2).sum() / (draws * share * (1 - share)) * (tokens - 1) / tokens
    assert chi_square < 50


def test_each_pair_of_tokens_is_kept_equally_often() -> None:
    draws, tokens = 20_000, 6
    keys = np.random.default_rng(5).integers(0, 2**64, draws, np.uint64)
    pairs = np.array([_kernels.kept_tokens(key, tokens, 2) for key in keys])
    counts = np.bincount(pairs[:, 0] * tokens + pairs[:, 1])
    counts, expected = counts[counts > 0], draws / 15
    assert len(counts) == 15
    # 14 degrees of freedom: above 45 once in 25,000.
    assert ((counts - expected) ** 2 / expected).sum() < 45


def _canvas(pixels: np.ndarray, P: int, gw: int, gh: int) -> np.ndarray:
    """The part of an image in its grid: the centre of a larger one, or a smaller one with zeros right and below."""
    H, W, C = pixels.shape
    top, left = max(0, (H - gh * P) // 2), max(0, (W - gw * P) // 2)
    canvas = np.zeros((gh * P, gw * P, C), np.uint8)
    shown = pixels[top : top + gh * P, left : left + gw * P]
    canvas[: shown.shape[0], : shown.shape[1]] = shown
    return canvas


def _patches(canvas: np.ndarray, P: int) -> Iterator[np.ndarray]:
    for y, x in product(range(0, canvas.shape[0], P), range(0, canvas.shape[1], P)):
        yield canvas[y : y + P, x : x + P].reshape(-1)


def _check_placing(H: int, W: int, C: int, P: int, gw: int, gh: int, kept: list[int], shift: int) -> None:
    rng = np.random.default_rng(H * 1000 + W)
    pixels = rng.integers(0, 256, (H, W, C), np.uint8)
    before, n = 3, len(kept)  # slots of other images on either side
    slots = slice(before, before + n)
    memory = np.full((before + n + before) * P * P * C + 128, _GUARD, np.uint8)
    begin = -memory.ctypes.data % 64 + shift  # streaming needs addresses that are multiples of 64
    patches = memory[begin : begin + memory.size - 128].reshape(-1, P * P * C)
    patches[slots] = 0
    coords = np.full((len(patches), 2), _GUARD, np.int32)
    coords[slots] = [[token % gw, token // gw] for token in kept]
    _kernels.place_image(pixels, P, gw, gh, coords, patches, before, n)
    whole = list(_patches(_canvas(pixels, P, gw, gh), P))
    np.testing.assert_array_equal(patches[slots], np.array([whole[token] for token in kept]))
    assert (memory[:begin] == _GUARD).all()
    assert (memory[begin + patches.size :] == _GUARD).all()
    assert (patches[:before] == _GUARD).all()
    assert (patches[before + n :] == _GUARD).all()


@given(
    sides=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    P=st.integers(1, 9),
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    C=st.sampled_from([1, 3, 4]),
    levels=st.sampled_from([1, 2, 256]),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_the_patches_with_the_largest_variance_are_chosen_in_raster_order(
    sides: tuple[int, int], P: int, grid: tuple[int, int], C: int, levels: int, data: st.DataObject
) -> None:
    (H, W), (gw, gh) = sides, grid
    pixels = np.random.default_rng(H * 100 + W).integers(0, levels, (H, W, C), np.uint8)
    inside = _canvas(np.ones((H, W, 1), np.uint8), P, gw, gh)
    exact = []  # variances as fractions; -1 for padding alone
    for patch, shown in zip(_patches(_canvas(pixels, P, gw, gh), P), _patches(inside, P), strict=True):
        values, count = patch.reshape(-1, C)[shown > 0].astype(object), int(shown.sum())
        spread = sum(count * int((values[:, c] ** 2).sum()) - int(values[:, c].sum()) ** 2 for c in range(C))
        exact.append(Fraction(spread, count**2) if count else Fraction(-1))
    keep = data.draw(st.integers(1, gw * gh))
    kept = sorted(sorted(range(gw * gh), key=lambda token: (-exact[token], token))[:keep])
    coords = np.full((keep + 4, 2), _GUARD, np.int32)
    _detail.choose_detailed(pixels, P, gw, gh, coords, 2, keep)
    assert coords[2:-2].tolist() == [[token % gw, token // gw] for token in kept]
    assert (coords[:2] == _GUARD).all()
    assert (coords[-2:] == _GUARD).all()


@pytest.mark.parametrize(
    ("dtype", "shift", "scale"),
    [
        ("uint16", 0, 1),
        ("uint16", 65_000, 1),
        ("int16", -32_000, 100),
        ("float32", 0.0, 1e-3),
        ("float32", 0.5, 0.1),
        ("float32", 1e4, 0.01),
    ],
)
def test_detail_is_the_variance_of_values_of_any_type(dtype: str, shift: float, scale: float) -> None:
    P, gw, gh, keep = 32, 4, 3, 5
    rng = np.random.default_rng(0)
    contrast = rng.permutation(gw * gh).reshape(gh, gw).repeat(P, 0).repeat(P, 1)[..., None]  # of each patch
    pixels = (shift + scale * contrast * rng.random((gh * P, gw * P, 2))).astype(dtype)
    variances = [patch.reshape(-1, 2).astype(np.float64).var(0).sum() for patch in _patches(pixels, P)]
    kept = sorted(np.argsort(variances)[-keep:].tolist())
    coords = np.zeros((keep, 2), np.int32)
    choose = _detail.choose_detailed_fractions if dtype == "float32" else _detail.choose_detailed
    choose(pixels, P, gw, gh, coords, 0, keep)
    assert coords.tolist() == [[token % gw, token // gw] for token in kept]


@given(
    seed=st.integers(0, 2**32),
    grids=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=6),
    padding=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_layout_numbers_and_locates_the_kept_tokens_and_clears_every_other_slot(
    seed: int, grids: list[tuple[int, int]], padding: int
) -> None:
    rng = np.random.default_rng(seed)
    grid = np.array(grids, np.int32).reshape(-1, 2)
    key = rng.integers(0, 2**64, len(grid), np.uint64)
    keep = np.array([rng.integers(1, gw * gh + 1) for gw, gh in grids], np.int32)
    segment = rng.integers(1, 65, len(grid))
    gaps = rng.integers(0, padding + 1, len(grid))
    first = np.cumsum(keep + gaps) - keep
    slots = int((keep + gaps).sum()) + padding
    segment_ids, coords = np.full(slots, _GUARD, np.int32), np.full((slots, 2), _GUARD, np.int32)
    token_index = np.full(int(keep.sum()), -1)
    _kernels.lay_out(key, grid, keep, segment, first, segment_ids, coords, token_index)
    slots_of = [np.arange(begin, begin + n) for begin, n in zip(first, keep, strict=True)]
    assert token_index.tolist() == [slot for slots in slots_of for slot in slots.tolist()]
    for i, (gw, gh) in enumerate(grids):
        here = slice(first[i], first[i] + keep[i])
        kept = _kernels.kept_tokens(key[i], gw * gh, keep[i])
        assert coords[here].tolist() == [[token % gw, token // gw] for token in kept]
        assert (segment_ids[here] == segment[i]).all()
        segment_ids[here], coords[here] = 0, 0
    assert not segment_ids.any()
    assert not coords.any()


@pytest.mark.parametrize("shift", [0, 16])
@pytest.mark.parametrize("size", [27, 64, 192])
def test_padding_is_cleared_and_nothing_else(size: int, shift: int) -> None:
    memory = np.full(3 * 4 * size + 128, _GUARD, np.uint8)
    begin = -memory.ctypes.data % 64 + shift
    patches = memory[begin : begin + 3 * 4 * size].reshape(3, 4, size)
    _kernels.clear_padding(patches, np.array([4, 0, 3]))
    assert (patches[0] == _GUARD).all()
    assert not patches[1].any()
    assert (patches[2, :3] == _GUARD).all()
    assert not patches[2, 3].any()
    assert (memory[:begin] == _GUARD).all()
    assert (memory[begin + patches.size :] == _GUARD).all()


@given(
    data=st.data(),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    C=st.sampled_from([1, 3, 4]),
    P=st.sampled_from([1, 2, 3, 4, 5, 8, 16]),
    shift=st.sampled_from([0, 1, 16]),
)
@settings(max_examples=200, deadline=None)
def test_assembled_patches_are_the_image_and_nothing_else_is_written(
    data: st.DataObject, size: tuple[int, int], C: int, P: int, shift: int
) -> None:
    H, W = size
    gh, gw = (data.draw(st.integers(1, min(12, -(-side // P) + 2))) for side in size)
    kept = data.draw(st.lists(st.integers(0, gw * gh - 1), min_size=1, max_size=30, unique=True).map(sorted))
    _check_placing(H, W, C, P, gw, gh, kept, shift)


@pytest.mark.parametrize("C", [1, 3, 4])
@pytest.mark.parametrize(
    ("H", "W", "gw", "gh"),
    [
        pytest.param(32, 48, 3, 2, id="whole patches"),
        pytest.param(33, 47, 3, 3, id="edges part empty"),
        pytest.param(33, 33, 4, 4, id="last column and row all empty, as grid_multiple makes them"),
        pytest.param(1, 5, 2, 2, id="smaller than a patch"),
        pytest.param(50, 71, 2, 3, id="larger than the grid"),
        pytest.param(50, 20, 3, 2, id="larger one way, smaller the other"),
    ],
)
def test_every_kind_of_edge_is_placed_correctly(H: int, W: int, C: int, gw: int, gh: int) -> None:
    _check_placing(H, W, C, 16, gw, gh, list(range(gw * gh)), shift=0)
