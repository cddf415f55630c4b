from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from patchnpack.packer import FitTokens, Native, RandomResizedCrop, SampleSide, ScheduledResolution, Square
from patchnpack.packer.policies import _draws, reference_draws
from patchnpack.packer.policies.resolution import Resolution

KEYS = np.random.default_rng(3).integers(0, 2**64, 20_000, np.uint64)
POLICIES: list[Resolution] = [
    SampleSide(low=32, high=300),
    SampleSide(low=32, high=300, dist="uniform", upsample=False),
    SampleSide(low=32, high=300, edge="pad"),
    RandomResizedCrop(),
    RandomResizedCrop(max_tokens=30),
    RandomResizedCrop(scale=(0.01, 0.1), max_tokens=64, upsample=True),
    ScheduledResolution(((0, SampleSide(low=32, high=64)), (100, RandomResizedCrop()), (250, Native()))),
]

every_policy = pytest.mark.parametrize("policy", POLICIES, ids=str)


def _images(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    width, height = np.random.default_rng(seed).integers(20, 900, (2, n)).astype(np.int32)
    return width, height


@every_policy
@pytest.mark.parametrize("m", [1, 2])
def test_the_draws_of_each_image_do_not_depend_on_the_others(policy: Resolution, m: int) -> None:
    width, height = _images(300)
    images_seen, limit = np.arange(300), np.random.default_rng(1).integers(4, 400, 300)
    whole = policy.sizes(width, height, 16, m, keys=KEYS[:300], images_seen=images_seen, limit=limit)
    assert whole.box is None or (str(whole.box.dtype), whole.box.shape) == ("int32", (300, 4))
    assert (whole.grid.prod(1) <= limit).all()
    assert (whole.grid % m == 0).all()
    assert (whole.grid > 0).all()
    for i in range(300):
        one = slice(i, i + 1)
        alone = policy.sizes(
            width[one], height[one], 16, m, keys=KEYS[one], images_seen=images_seen[one], limit=limit[one]
        )
        assert (alone.size.tolist(), alone.grid.tolist()) == (whole.size[one].tolist(), whole.grid[one].tolist())
        if alone.box is not None and whole.box is not None:
            assert alone.box.tolist() == whole.box[one].tolist()


@every_policy
def test_drawing_sizes_without_keys_is_an_error(policy: Resolution) -> None:
    assert policy.draws
    with pytest.raises(ValueError, match="draws each image's size; give keys, one uint64 per image"):
        policy.sizes(np.array([64]), np.array([64]), 16)
    width, height = np.full(50, 640), np.full(50, 480)
    drawn = [policy.sizes(width, height, 16, keys=keys).grid.tolist() for keys in (KEYS[:50], KEYS[50:100])]
    assert drawn[0] != drawn[1]


def test_policies_that_draw_nothing_need_no_keys() -> None:
    fixed = ScheduledResolution(((0, FitTokens(9)), (5, Square(32))))
    assert not any(policy.draws for policy in (Native(), FitTokens(9), Square(32), fixed))
    assert fixed.sizes(np.array([64]), np.array([64]), 16).grid.tolist() == [[3, 3]]


# SampleSide


@pytest.mark.parametrize("dist", ["truncnormal", "uniform"])
def test_sides_follow_their_distribution(dist: Any) -> None:
    sides = SampleSide(low=64, high=256, dist=dist).sides(KEYS)
    unit = (sides - 64) / 192
    known = stats.truncnorm(-0.5, 1.5, -0.5, 1) if dist == "truncnormal" else stats.uniform(-1, 2)
    assert stats.kstest(unit * 2 - 1, known.cdf).pvalue > 0.001


@pytest.mark.parametrize("edge", ["pad", "resize"])
def test_the_area_of_a_sampled_side_is_the_side_squared_and_the_aspect_is_kept(edge: Any) -> None:
    policy = SampleSide(low=256, high=1024, edge=edge)
    width, height = np.random.default_rng(0).integers(200, 800, (2, 2000))
    sizes = policy.sizes(width, height, 4, keys=KEYS[:2000])
    w, h = sizes.size.T.astype(float)
    # Each side is at most half a pixel or half a patch off.
    off = 0.5 if edge == "pad" else 2
    np.testing.assert_allclose(np.sqrt(w * h), policy.sides(KEYS[:2000]), rtol=2.2 * off / 128)
    np.testing.assert_allclose(w / h, width / height, rtol=2.2 * off / 128)
    assert sizes.grid.tolist() == (-(-sizes.size // 4)).tolist()


def test_without_upsampling_no_image_grows() -> None:
    width, height = _images(2000)
    small = SampleSide(low=64, high=1000, upsample=False, edge="pad").sizes(width, height, 16, keys=KEYS[:2000]).size
    assert (small[:, 0] <= width).all()
    assert (small[:, 1] <= height).all()
    assert (small[:, 0] == width).mean() > 0.2
    grown = SampleSide(low=64, high=1000, edge="pad").sizes(width, height, 16, keys=KEYS[:2000]).size
    assert (grown[:, 0] > width).mean() > 0.2


# RandomResizedCrop

_KEY = st.integers(0, 2**64 - 1)
_SIDE = st.integers(1, 3000)


@given(_KEY, _SIDE, _SIDE, st.sampled_from([((0.08, 1.0), (3 / 4, 4 / 3)), ((0.5, 1.0), (4.0, 9.0)), ((1, 1), (1, 1))]))
@settings(max_examples=300, deadline=None)
def test_crops_equal_the_reference(key: int, width: int, height: int, ranges: Any) -> None:
    out = np.empty((1, 4), np.int32)
    scale, ratio = (np.array(pair, np.float64) for pair in ranges)
    _draws.crops(np.array([key], np.uint64), np.array([width]), np.array([height]), scale, ratio, out)
    left, top, w, h = out[0].tolist()
    assert (left, top, w, h) == reference_draws.random_crop(key, width, height, *ranges)
    assert 0 <= left <= left + w <= width
    assert 0 <= top <= top + h <= height
    assert min(w, h) >= 1


def test_crops_have_the_requested_area_aspect_and_position() -> None:
    n, side = len(KEYS), 16_000  # large, so that rounding to pixels is negligible
    policy = RandomResizedCrop(scale=(0.1, 0.4), ratio=(1 / 2, 2))
    sizes = policy.sizes(np.full(n, side), np.full(n, side), 16, keys=KEYS ^ np.uint64(5))
    assert sizes.box is not None
    left, top, w, h = sizes.box.T.astype(float)
    for value in ((w * h / side**2 - 0.1) / 0.3, (np.log2(w / h) + 1) / 2, left / (side - w), top / (side - h)):
        assert stats.kstest(value, stats.uniform(0, 1).cdf).pvalue > 0.001


def test_an_image_too_long_for_any_aspect_gives_the_largest_centre_crop() -> None:
    sizes = RandomResizedCrop(scale=(0.9, 1.0)).sizes(
        np.array([1000, 30]), np.array([30, 1000]), 16, keys=np.zeros(2, np.uint64)
    )
    assert sizes.box is not None
    # 40 pixels are 2.5 patches, rounded to 2; 30 are rounded to 1, since a second patch would leave the image.
    assert sizes.box.tolist() == [[484, 7, 32, 16], [7, 484, 16, 32]]


@given(_KEY, _SIDE, _SIDE, st.sampled_from([4, 16, 32]), st.sampled_from([1, 2]))
@settings(max_examples=300, deadline=None)
def test_a_crop_is_cut_at_whole_patches_within_the_image_and_never_resized(
    key: int, width: int, height: int, P: int, m: int
) -> None:
    sizes = RandomResizedCrop().sizes(np.array([width]), np.array([height]), P, m, keys=np.array([key], np.uint64))
    assert sizes.box is not None
    left, top, w, h = sizes.box[0].tolist()
    drawn = reference_draws.random_crop(key, width, height, (0.08, 1.0), (3 / 4, 4 / 3))
    assert sizes.size[0].tolist() == [w, h]
    assert 0 <= left <= left + w <= width
    assert 0 <= top <= top + h <= height
    unit = P * m
    for image, side, own, begin, first, cells in zip(
        (width, height), (w, h), drawn[2:], (left, top), drawn[:2], sizes.grid[0].tolist(), strict=True
    ):
        if image < unit:  # the rest of the only patch is padding
            assert (side, cells) == (own, m)
            continue
        assert (side, side // P) == (cells * P, cells)
        assert side == min(image // unit, max(1, round(own / unit))) * unit
        assert abs((begin + side / 2) - (first + own / 2)) <= unit  # the same place


def test_a_crop_shrinks_above_max_tokens_and_is_enlarged_only_with_upsample() -> None:
    n = 3000
    width, height = _images(n)
    drawn = np.empty((n, 4), np.int32)
    _draws.crops(KEYS[:n], width, height, np.array([0.08, 1.0]), np.array([3 / 4, 4 / 3]), drawn)
    free = RandomResizedCrop().sizes(width, height, 16, keys=KEYS[:n])
    small = free.grid.prod(1) <= 100
    assert 0.1 < small.mean() < 0.9
    shrunk = RandomResizedCrop(max_tokens=100).sizes(width, height, 16, keys=KEYS[:n])
    assert shrunk.box is not None
    assert free.box is not None
    for name in ("size", "grid", "box"):
        np.testing.assert_array_equal(getattr(shrunk, name)[small], getattr(free, name)[small])
    # A drawn part is used whole where it shrinks.
    np.testing.assert_array_equal(shrunk.box[~small], drawn[~small])
    fitted = FitTokens(100, upsample=True).sizes(drawn[:, 2], drawn[:, 3], 16)
    np.testing.assert_array_equal(shrunk.size[~small], fitted.size[~small])
    grown = RandomResizedCrop(max_tokens=100, upsample=True).sizes(width, height, 16, keys=KEYS[:n])
    np.testing.assert_array_equal(grown.size, fitted.size)
    assert (grown.grid.prod(1) <= 100).all()


def test_whole_patches_keep_the_mean_area_of_the_crops() -> None:
    n, side = len(KEYS), np.full(len(KEYS), 224)
    sizes = RandomResizedCrop(scale=(0.08, 1.0)).sizes(side, side, 16, keys=KEYS ^ np.uint64(9))
    drawn = np.empty((n, 4), np.int32)
    _draws.crops(KEYS ^ np.uint64(9), side, side, np.array([0.08, 1.0]), np.array([3 / 4, 4 / 3]), drawn)
    assert sizes.size.prod(1).mean() == pytest.approx(drawn[:, 2:].prod(1, dtype=np.int64).mean(), rel=0.02)


# ScheduledResolution


@given(st.lists(st.integers(0, 30), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_each_image_gets_the_policy_of_its_stage(images_seen: list[int]) -> None:
    stages = ((0, FitTokens(4)), (10, SampleSide(low=40, high=90)), (11, RandomResizedCrop()), (20, Native()))
    n = len(images_seen)
    width, height = _images(n)
    found = ScheduledResolution(stages).sizes(width, height, 16, keys=KEYS[:n], images_seen=np.array(images_seen))
    for i, count in enumerate(images_seen):
        one = slice(i, i + 1)
        policy = [policy for start, policy in stages if start <= count][-1]
        alone = policy.sizes(width[one], height[one], 16, keys=KEYS[one])
        assert alone.grid.tolist() == found.grid[one].tolist()
        box = [[0, 0, width[i], height[i]]] if alone.box is None else alone.box.tolist()
        assert found.box is None or found.box[one].tolist() == box


# Errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SampleSide(low=64, high=64), "low is 64 and high is 64; low must be below high"),
        (lambda: SampleSide(low=0, high=64), "low is 0"),
        (lambda: SampleSide(low=8, high=64, dist="normal"), "dist is 'normal'; it must be 'truncnormal' or 'uniform'"),  # type: ignore[arg-type]
        (lambda: SampleSide(low=8, high=64, edge="crop"), "edge is 'crop'"),  # type: ignore[arg-type]
        (lambda: RandomResizedCrop(scale=(0.5, 1.5)), r"scale is \(0.5, 1.5\); it must be \(low, high\), 0 < low <= h"),
        (lambda: RandomResizedCrop(scale=0.5), "scale is 0.5"),  # type: ignore[arg-type]
        (lambda: RandomResizedCrop(ratio=(2, 1)), r"ratio is \(2, 1\)"),
        (lambda: RandomResizedCrop(ratio=(1, math.inf)), r"ratio is \(1, inf\)"),
        (lambda: RandomResizedCrop(max_tokens=0), "max_tokens is 0"),
        (lambda: RandomResizedCrop(upsample=True), "upsample is True and max_tokens is None; give max_tokens"),
        (lambda: ScheduledResolution(()), "stages is"),
        (lambda: ScheduledResolution(((5, Native()),)), "growing from 0"),
        (lambda: ScheduledResolution(((0, Native()), (0, FitTokens(4)))), "growing from 0"),
        (lambda: ScheduledResolution(((0, 16),)), "with a resolution policy"),  # type: ignore[arg-type]
    ],
)
def test_an_invalid_policy_is_a_value_error_with_the_value(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
