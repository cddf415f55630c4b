from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from patchnpack.packer import FitTokens, Native, Square
from patchnpack.packer.policies.resolution import Resolution

# P patch size in pixels, m grid_multiple, unit = P * m; sides in pixels, grids in patches

Pair = tuple[int, int]

sides = st.one_of(st.integers(1, 60), st.integers(1, 5000))
images = st.tuples(sides, sides)
patches = st.sampled_from([1, 4, 14, 16, 32])
multiples = st.sampled_from([1, 2, 3])
EXTREME: list[Pair] = [(1, 5000), (5000, 1), (5000, 16), (16, 5000), (1, 1), (4999, 4999)]


def _sizes(policy: Resolution, image: Pair, P: int, m: int) -> tuple[Pair, Pair]:
    found = policy.sizes(np.array([image[0]]), np.array([image[1]]), P, m)
    assert found.size.dtype == found.grid.dtype == np.int32
    assert found.size.shape == found.grid.shape == (1, 2)
    (w, h), (gw, gh) = found.size[0].tolist(), found.grid[0].tolist()
    return (w, h), (gw, gh)


def _largest_scale(image: Pair, unit: int, cells: int) -> Fraction:
    """The largest scale at which the image covers at most `cells` cells, found by trying every grid."""
    w, h = image
    return max(min(Fraction(a * unit, w), Fraction(cells // a * unit, h)) for a in range(1, cells + 1))


def _covered(image: Pair, scale: Fraction, unit: int) -> Pair:
    return math.ceil(image[0] * scale / unit), math.ceil(image[1] * scale / unit)


def _half_up(x: Fraction) -> int:
    return math.floor(x + Fraction(1, 2))


def _exactly(message: str) -> str:
    return f"^{re.escape(message)}$"


# Native


@given(images, patches, multiples)
@settings(max_examples=150, deadline=None)
def test_native_pad_keeps_the_size_and_rounds_the_grid_up(image: Pair, P: int, m: int) -> None:
    unit = P * m
    if max(image) < unit:
        image = (unit, image[1])
    size, grid = _sizes(Native(), image, P, m)
    assert size == image
    assert grid == tuple(math.ceil(Fraction(side, unit)) * m for side in image)


@given(images, patches, multiples)
@settings(max_examples=150, deadline=None)
def test_native_crop_keeps_the_size_and_rounds_the_grid_down(image: Pair, P: int, m: int) -> None:
    unit = P * m
    image = (max(unit, image[0]), max(unit, image[1]))
    size, grid = _sizes(Native(edge="crop"), image, P, m)
    assert size == image
    assert grid == tuple(math.floor(Fraction(side, unit)) * m for side in image)


@given(images, patches, multiples)
@settings(max_examples=150, deadline=None)
def test_native_resize_rounds_to_the_nearest_cell_ties_to_even_but_never_to_0(image: Pair, P: int, m: int) -> None:
    unit = P * m
    size, grid = _sizes(Native(edge="resize"), image, P, m)
    assert size == (grid[0] * P, grid[1] * P)
    for side, patches_along in zip(image, grid, strict=True):
        assert patches_along == max(1, round(Fraction(side, unit))) * m


@given(st.integers(28, 4000), st.integers(28, 4000), st.sampled_from([14, 16]), st.sampled_from([1, 2]))
@example(400, 533, 16, 2)  # 12.5 cells across
@example(42, 70, 14, 2)
@settings(max_examples=300, deadline=None)
def test_native_resize_gives_the_sizes_of_qwens_processor(width: int, height: int, P: int, m: int) -> None:
    # Its rule, without the limits on pixels: Python's round, which takes ties to the even number.
    wanted = tuple(max(1, round(side / (P * m))) * P * m for side in (width, height))
    assert _sizes(Native(edge="resize"), (width, height), P, m)[0] == wanted


@pytest.mark.parametrize(("edge", "grid"), [("pad", (3, 4)), ("crop", (2, 3)), ("resize", (2, 3))])
def test_an_image_of_40_by_50_pixels_at_patch_16(edge: Any, grid: Pair) -> None:
    assert _sizes(Native(edge=edge), (40, 50), 16, 1)[1] == grid


@given(images, patches, multiples, st.integers(9, 200), st.sampled_from(["pad", "crop", "resize"]))
@settings(max_examples=150, deadline=None)
def test_native_max_tokens_changes_only_images_above_it(
    image: Pair, P: int, m: int, max_tokens: int, edge: Literal["pad", "crop", "resize"]
) -> None:
    image = (max(P * m, image[0]), max(P * m, image[1]))
    free = _sizes(Native(edge=edge), image, P, m)
    size, grid = _sizes(Native(max_tokens=max_tokens, edge=edge), image, P, m)
    if math.prod(free[1]) <= max_tokens:
        assert (size, grid) == free
    else:
        fitted = FitTokens(max_tokens, edge="pad" if edge == "pad" else "resize")
        assert (size, grid) == _sizes(fitted, image, P, m)


# FitTokens


@given(images, patches, multiples, st.integers(9, 120), st.booleans())
@example((300, 200), 16, 1, 24, False)
@example((1, 5000), 16, 2, 9, True)
@settings(max_examples=250, deadline=None)
def test_fit_tokens_is_the_largest_scale_of_any_grid_that_fits(
    image: Pair, P: int, m: int, max_tokens: int, upsample: bool
) -> None:
    unit, cells = P * m, max_tokens // m**2
    scale = _largest_scale(image, unit, cells)
    if not upsample:
        scale = min(scale, Fraction(1))
    size, grid = _sizes(FitTokens(max_tokens, upsample=upsample), image, P, m)
    gw, gh = _covered(image, scale, unit)
    assert grid == (gw * m, gh * m)
    assert math.prod(grid) <= max_tokens
    assert size == (grid[0] * P, grid[1] * P)
    # The aspect is kept except for rounding up, which adds less than a cell.
    for native, side in zip(image, size, strict=True):
        assert 0 <= side - native * scale < unit


@given(images, patches, multiples, st.integers(9, 120), st.booleans())
@settings(max_examples=250, deadline=None)
def test_fit_tokens_with_padding_keeps_the_aspect_within_half_a_pixel_and_leaves_no_column_empty(
    image: Pair, P: int, m: int, max_tokens: int, upsample: bool
) -> None:
    unit = P * m
    scale = _largest_scale(image, unit, max_tokens // m**2)
    if not upsample:
        scale = min(scale, Fraction(1))
    size, grid = _sizes(FitTokens(max_tokens, upsample=upsample, edge="pad"), image, P, m)
    assert size == tuple(max(1, _half_up(native * scale)) for native in image)
    assert grid == tuple(math.ceil(Fraction(side, unit)) * m for side in size)
    assert math.prod(grid) <= max_tokens


@given(images, patches, st.integers(1, 120))
@settings(max_examples=150, deadline=None)
def test_no_grid_that_fits_shows_the_image_larger(image: Pair, P: int, max_tokens: int) -> None:
    _, (gw, gh) = _sizes(FitTokens(max_tokens, upsample=True), image, P, 1)
    w, h = image

    def scale(a: int, b: int) -> Fraction:
        return min(Fraction(a * P, w), Fraction(b * P, h))

    every = (scale(a, b) for a in range(1, max_tokens + 1) for b in range(1, max_tokens // a + 1))
    assert scale(gw, gh) == max(every)


@given(images, patches, multiples, st.integers(9, 5000), st.sampled_from(["pad", "resize"]))
@settings(max_examples=150, deadline=None)
def test_an_image_that_fits_is_enlarged_only_with_upsample(
    image: Pair, P: int, m: int, max_tokens: int, edge: Literal["pad", "resize"]
) -> None:
    unit = P * m
    native = _covered(image, Fraction(1), unit)
    size, grid = _sizes(FitTokens(max_tokens, edge=edge), image, P, m)
    assert grid[0] <= native[0] * m
    assert grid[1] <= native[1] * m
    if math.prod(native) * m * m <= max_tokens:
        assert grid == (native[0] * m, native[1] * m)
        assert size == (image if edge == "pad" else (grid[0] * P, grid[1] * P))


def test_a_small_image_is_enlarged_with_upsample() -> None:
    assert _sizes(FitTokens(64, upsample=True), (32, 32), 16, 1) == ((128, 128), (8, 8))
    assert _sizes(FitTokens(64), (32, 32), 16, 1) == ((32, 32), (2, 2))


def _naflex(image: Pair, P: int, max_tokens: int) -> Pair:
    """NaFlex's rule in floating point: halve the interval of scales until it is 1e-5 wide, sides rounded up."""

    def grid(scale: float) -> Pair:
        gw, gh = (max(P, math.ceil(side * scale / P) * P) // P for side in image)
        return gw, gh

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        if math.prod(grid(middle)) <= max_tokens:
            low = middle
        else:
            high = middle
    return grid(low)


@given(
    st.tuples(st.integers(16, 4000), st.integers(16, 4000)),
    st.sampled_from([14, 16, 32]),
    st.sampled_from([16, 64, 256, 576, 1024]),
)
@settings(max_examples=200, deadline=None)
def test_naflexs_bisection_ends_just_below_the_exact_scale(image: Pair, P: int, max_tokens: int) -> None:
    exact = _sizes(FitTokens(max_tokens, upsample=True), image, P, 1)[1]
    bisected = _naflex(image, P, max_tokens)
    # Where a side crosses into another patch within the bisection's last step, the exact answer is the larger one.
    below = _covered(image, _largest_scale(image, P, max_tokens) - Fraction(2, 100_000), P)
    for least, found, most in zip(below, bisected, exact, strict=True):
        assert least <= found <= most


def test_fit_tokens_with_upsample_is_the_rule_of_naflex() -> None:
    rng = np.random.default_rng(0)
    total, equal = 2000, 0
    for w, h, P, max_tokens in zip(
        rng.integers(32, 2000, total).tolist(),
        rng.integers(32, 2000, total).tolist(),
        rng.choice([14, 16, 32], total).tolist(),
        rng.choice([64, 256, 576, 1024], total).tolist(),
        strict=True,
    ):
        exact = _sizes(FitTokens(max_tokens, upsample=True), (w, h), P, 1)[1]
        bisected = _naflex((w, h), P, max_tokens)
        equal += exact == bisected
        assert exact == bisected or math.prod(exact) > math.prod(bisected)
    assert equal >= 0.99 * total


# Square


@given(images, st.sampled_from([(224, 16, 1), (224, 16, 2), (224, 14, 1), (96, 16, 3), (32, 32, 1)]))
@settings(max_examples=60, deadline=None)
def test_square_gives_every_image_the_same_grid(image: Pair, square: tuple[int, int, int]) -> None:
    side, P, m = square
    assert _sizes(Square(side), image, P, m) == ((side, side), (side // P, side // P))


# All of them

POLICIES: list[Resolution] = [
    Native(),
    Native(edge="crop"),
    Native(edge="resize"),
    Native(max_tokens=50),
    Native(max_tokens=50, edge="crop"),
    FitTokens(50),
    FitTokens(50, upsample=True),
    FitTokens(50, edge="pad"),
    FitTokens(50, upsample=True, edge="pad"),
    Square(96),
]

every_policy = pytest.mark.parametrize("policy", POLICIES, ids=str)


@every_policy
@pytest.mark.parametrize("m", [1, 2, 3])
def test_sizes_of_many_images_equal_those_of_each_alone(policy: Resolution, m: int) -> None:
    rng = np.random.default_rng(0)
    w, h = rng.integers(48, 1000, (2, 300)).astype(np.int32)
    size, grid, _ = policy.sizes(w, h, 16, m)
    for i, image in enumerate(zip(w.tolist(), h.tolist(), strict=True)):
        assert (tuple(size[i].tolist()), tuple(grid[i].tolist())) == _sizes(policy, image, 16, m)


@every_policy
@pytest.mark.parametrize("m", [1, 2, 3])
def test_both_sides_of_every_grid_are_multiples_of_grid_multiple(policy: Resolution, m: int) -> None:
    w, h = np.random.default_rng(1).integers(48, 1000, (2, 500))
    grid = policy.sizes(w, h, 16, m).grid
    assert (grid % m == 0).all()
    assert (grid >= m).all()


@every_policy
def test_the_arguments_are_not_modified_and_no_images_give_no_sizes(policy: Resolution) -> None:
    w, h = np.array([500, 64, 2000]), np.array([375, 64, 100])
    policy.sizes(w, h, 16, 1)
    assert (w.tolist(), h.tolist()) == ([500, 64, 2000], [375, 64, 100])
    none = np.empty(0, np.int32)
    size, grid, box = policy.sizes(none, none, 16, 1)
    assert (size.shape, grid.shape, box) == ((0, 2), (0, 2), None)


@every_policy
@pytest.mark.parametrize("m", [1, 2, 3])
def test_a_limit_per_image_shrinks_only_the_images_above_it(policy: Resolution, m: int) -> None:
    rng = np.random.default_rng(2)
    w, h = rng.integers(48, 1000, (2, 200))
    w[:2], h[:2] = [48, 5000], [5000, 48]
    limit = rng.integers(9, 1500, 200)
    before, after = policy.sizes(w, h, 16, m), policy.sizes(w, h, 16, m, limit=limit)
    over = before.grid.prod(1) > limit
    assert 0 < over.sum() < 200
    assert (after.grid.prod(1) <= limit).all()
    assert (after.grid >= m).all()
    assert (after.size >= 1).all()
    np.testing.assert_array_equal(after.grid[~over], before.grid[~over])
    np.testing.assert_array_equal(after.size[~over], before.size[~over])


def test_a_square_stays_square_under_a_limit() -> None:
    image, limit = np.full(4, 500), np.array([100, 49, 48, 4])
    assert Square(96).sizes(image, image, 16, limit=limit).grid.tolist() == [[6, 6], [6, 6], [6, 6], [2, 2]]
    assert Square(96).sizes(image, image, 16, 2, limit=limit).grid.tolist() == [[6, 6], [6, 6], [6, 6], [2, 2]]


def test_an_enlarged_image_shrinks_to_the_limit_and_not_back_to_its_own_size() -> None:
    image = np.array([32])
    sizes = FitTokens(1024, upsample=True).sizes(image, image, 16, limit=np.array([256]))
    assert sizes.grid.tolist() == [[16, 16]]


@pytest.mark.parametrize("image", EXTREME)
@pytest.mark.parametrize("edge", ["pad", "resize"])
@pytest.mark.parametrize("m", [1, 2, 3])
def test_extreme_aspects_fill_one_line_of_cells(image: Pair, edge: Any, m: int) -> None:
    size, grid = _sizes(FitTokens(100, edge=edge), image, 16, m)
    assert math.prod(grid) <= 100
    assert min(grid) >= m
    assert min(size) >= 1
    if max(image) / min(image) > 1000:
        assert min(grid) == m
        assert max(grid) == 100 // m // m * m


# Errors


def test_native_pad_accepts_an_image_with_one_side_of_a_patch() -> None:
    assert _sizes(Native(), (16, 1), 16, 1) == ((16, 1), (1, 1))
    assert _sizes(Native(edge="resize"), (16, 1), 16, 1) == ((16, 16), (1, 1))


@pytest.mark.parametrize(
    ("policy", "arguments", "message"),
    [
        (FitTokens, {"max_tokens": 0}, "max_tokens is 0; it must be at least 1"),
        (FitTokens, {"max_tokens": 24.5}, "max_tokens is 24.5; it must be a whole number"),
        (FitTokens, {"max_tokens": None}, "max_tokens is None; it must be a whole number"),
        (FitTokens, {"max_tokens": 9, "edge": "crop"}, "edge is 'crop'; it must be one of 'pad', 'resize'"),
        (Native, {"max_tokens": -1}, "max_tokens is -1; it must be at least 1"),
        (Native, {"edge": "wrap"}, "edge is 'wrap'; it must be one of 'pad', 'crop', 'resize'"),
        (Square, {"size": 0}, "size is 0; it must be at least 1"),
        (Square, {"size": 224.0}, "size is 224.0; it must be a whole number: 224"),
    ],
)
def test_a_policy_out_of_range_names_the_value_and_the_limit(
    policy: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=_exactly(message)):
        policy(**arguments)


def test_a_square_that_is_not_a_multiple_of_the_patch_size_is_an_error_that_names_one() -> None:
    image = np.array([64])
    with pytest.raises(ValueError, match=r"Square\(100\) is not .* patch_size \* grid_multiple = 32; use Square\(96\)"):
        Square(100).sizes(image, image, 16, 2)
    with pytest.raises(ValueError, match=r"Square\(10\) .* = 16; use Square\(16\)"):
        Square(10).sizes(image, image, 16)


def test_max_tokens_below_one_cell_is_an_error() -> None:
    image = np.array([64])
    with pytest.raises(ValueError, match="max_tokens is 3, less than one grid_multiple cell of 2x2 patches"):
        FitTokens(3).sizes(image, image, 16, 2)
