from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from patchnpack.packer import (
    BetaDrop,
    ComplexityDrop,
    ConstantDrop,
    DropToTokens,
    NoDrop,
    Packing,
    ResolutionDrop,
    Rows,
    ScheduledDrop,
    plan,
)
from patchnpack.packer.policies import _draws
from patchnpack.packer.policies.token_drop import TokenDrop

_KEYS = np.arange(7, dtype=np.uint64)


@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=20), st.floats(0, 1, exclude_max=True))
@settings(max_examples=100, deadline=None)
def test_constant_drop_keeps_the_nearest_whole_number_of_tokens_and_at_least_one(
    tokens: list[int], rate: float
) -> None:
    kept = ConstantDrop(rate).keep(np.array(tokens), np.zeros(len(tokens), np.uint64), 64)
    assert kept.dtype == np.int64
    for count, of in zip(kept.tolist(), tokens, strict=True):
        exact = of * (1 - Fraction(rate))
        assert 1 <= count <= of
        assert count == 1 or abs(count - exact) <= Fraction(1, 2) + of * Fraction(1, 10**15)


def test_constant_drop_keeps_the_recorded_counts() -> None:
    tokens = np.array([1, 2, 3, 4, 5, 10, 1000])
    assert ConstantDrop(0.5).keep(tokens, _KEYS, 64).tolist() == [1, 1, 2, 2, 2, 5, 500]
    assert ConstantDrop(0.9).keep(tokens, _KEYS, 64).tolist() == [1, 1, 1, 1, 1, 1, 100]


@pytest.mark.parametrize("drop", [NoDrop(), ConstantDrop(0), ConstantDrop(0.0)])
def test_dropping_nothing_keeps_every_token(drop: TokenDrop) -> None:
    tokens = np.array([1, 2, 3, 500, 10**6], np.int64)
    kept = drop.keep(tokens, _KEYS[:5], 64)
    assert kept.tolist() == tokens.tolist()
    kept[:] = 0
    assert tokens.all(), "the answer must not be the argument itself"


def test_the_constant_drop_does_not_depend_on_the_key() -> None:
    tokens = np.full(100, 77)
    kept = ConstantDrop(0.3).keep(tokens, np.random.default_rng(0).integers(0, 2**64, 100, np.uint64), 64)
    assert set(kept.tolist()) == {54}


@pytest.mark.parametrize("rate", [1, 1.0, -0.1, 2, float("nan"), float("inf")])
def test_a_rate_out_of_range_is_an_error_that_names_it(rate: float) -> None:
    with pytest.raises(ValueError, match=rf"rate is {rate}; .* at least 0 and below 1"):
        ConstantDrop(rate)


_MANY = np.random.default_rng(7).integers(0, 2**64, 100_000, np.uint64)
_FINE = np.full(len(_MANY), 10**9)  # enough tokens that rounding does not affect the rate


def _rates(drop: TokenDrop, tokens: np.ndarray = _FINE, seq_len: int = 1024) -> np.ndarray:
    rates: np.ndarray = 1 - drop.keep(tokens, _MANY[: len(tokens)], seq_len) / tokens
    return rates


@pytest.mark.parametrize(("mean", "most"), [(0.5, 0.8), (0.1, 0.9), (0.02, 0.99), (0.7, 0.9)])
def test_beta_drop_has_the_papers_shapes_mean_and_variance(mean: float, most: float) -> None:
    m = mean / most
    u = np.empty(len(_MANY))
    _draws.beta(_MANY, 7 * m / 3, 7 * (1 - m) / 3, u)
    rates = _rates(BetaDrop(mean, most))
    np.testing.assert_allclose(rates, u * most, atol=1e-9)
    # Within four standard errors, of 100,000 draws.
    variance = 0.3 * m * (1 - m)
    assert abs(rates.mean() - mean) < 4 * most * (variance / len(u)) ** 0.5
    assert abs((rates / most).var() - variance) < 4 * np.std((u - m) ** 2) / len(u) ** 0.5


@pytest.mark.parametrize("std", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("share", [0, 0.5, 1, 3])
def test_resolution_drop_is_a_truncated_normal_whose_mean_grows_with_the_tokens(std: float, share: float) -> None:
    seq_len = 10**9
    tokens = np.full(len(_MANY), max(10**6, int(share * seq_len)))
    mean = 0.1 + 0.6 * min(tokens[0] / seq_len, 1)
    rates = _rates(ResolutionDrop(0.1, 0.7, std), tokens, seq_len)
    known = stats.truncnorm(-mean / std, (1 - mean) / std, mean, std)
    assert 0 <= rates.min() <= rates.max() < 1
    assert abs(rates.mean() - known.mean()) < 4 * known.std() / len(rates) ** 0.5
    assert stats.kstest(rates, known.cdf).pvalue > 0.001


def test_drop_to_tokens_keeps_at_most_its_number_of_tokens() -> None:
    assert DropToTokens(5).keep(np.array([1, 4, 5, 6, 500]), _KEYS[:5], 64).tolist() == [1, 4, 5, 5, 5]


@pytest.mark.parametrize("drop", [BetaDrop(0.5, 0.8), ResolutionDrop(0.2, 0.6, 0.1)])
def test_rates_do_not_depend_on_the_order_or_batch_of_the_images(drop: TokenDrop) -> None:
    tokens = np.random.default_rng(0).integers(1, 2000, 500)
    whole = drop.keep(tokens, _MANY[:500], 1024)
    order = np.random.default_rng(1).permutation(500)
    np.testing.assert_array_equal(drop.keep(tokens[order], _MANY[:500][order], 1024), whole[order])
    alone = [drop.keep(tokens[i : i + 1], _MANY[i : i + 1], 1024)[0] for i in range(500)]
    assert alone == whole.tolist()


def test_scheduled_rates_are_the_drops_own_times_a_sigmoid_over_the_images_seen() -> None:
    fall = ScheduledDrop(drop=BetaDrop(0.5, 0.8), start=1, end=0.2, midpoint=10_000, tau=1000)
    tokens, images_seen = np.full(500, 1000), np.linspace(0, 20_000, 500)
    own = fall.drop.rates(tokens, _MANY[:500], 1024)
    expected = own * (1 + (0.2 - 1) / (1 + np.exp((10_000 - images_seen) / 1000)))
    np.testing.assert_allclose(fall.rates(tokens, _MANY[:500], 1024, images_seen), expected, rtol=1e-12)
    factors = fall.factors(np.array([-1e9, 0, 8000, 10_000, 12_000, 1e9]))
    np.testing.assert_allclose(factors, [1, 1, 0.905, 0.6, 0.295, 0.2], atol=1e-3)
    np.testing.assert_array_equal(
        fall.rates(tokens, _MANY[:500], 1024), fall.rates(tokens, _MANY[:500], 1024, 0 * images_seen)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drop": 0.5}, r"drop is 0\.5; it must be one of NoDrop\(\.\.\.\), "),
        ({"drop": ScheduledDrop(drop=NoDrop(), start=0, end=1, midpoint=1, tau=1)}, "drop is ScheduledDrop"),
        ({"start": 1.5}, r"start is 1\.5; a factor of the drop's rates must be from 0 to 1"),
        ({"end": -1}, "end is -1; a factor"),
        ({"midpoint": -1}, "midpoint is -1; it must be a number of images, at least 0"),
        ({"tau": 0}, "tau is 0; it must be a number of images above 0"),
    ],
)
def test_an_invalid_schedule_is_a_value_error(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScheduledDrop(**({"drop": ConstantDrop(0.5), "start": 1, "end": 0, "midpoint": 10, "tau": 1} | changes))


@given(
    tokens=st.lists(st.integers(1, 5000), min_size=1, max_size=20),
    drop=st.sampled_from([BetaDrop(0.01, 0.999), BetaDrop(0.9, 0.99), ResolutionDrop(0, 0.99, 1), DropToTokens(1)]),
    seed=st.integers(0, 2**64 - 1),
)
@settings(max_examples=100, deadline=None)
def test_at_least_one_token_stays_and_none_is_added(tokens: list[int], drop: TokenDrop, seed: int) -> None:
    keys = np.full(len(tokens), seed, np.uint64) + np.arange(len(tokens), dtype=np.uint64)
    kept = drop.keep(np.array(tokens), keys, 1024)
    assert ((kept >= 1) & (kept <= tokens)).all()


# Many of these images take all of 256 slots; slots left by a large one that lost few tokens stay empty.
@pytest.mark.parametrize(("seq_len", "full"), [(256, 0.9995), (1024, 0.9999), (4096, 0.9999), (16384, 0.9999)])
def test_beta_drop_with_undrop_fills_packs_and_stays_near_its_mean(seq_len: int, full: float) -> None:
    sides = np.random.default_rng(0).integers(64, 700, (2, 20_000))
    packing = Packing(seq_len=seq_len, token_drop=BetaDrop(0.5, 0.8), max_images=256)
    made = plan(Rows.of_sizes(*sides), packing, seed=1)
    tokens = made.images.grid.prod(1, dtype=np.int64)
    assert made.tokens()[:-1].mean() / seq_len > full
    drawn = plan(Rows.of_sizes(*sides), packing.replace(fill="none"), seed=1)
    before = 1 - drawn.images.keep / drawn.images.grid.prod(1)
    assert abs(before.mean() - 0.5) < 0.02
    assert abs((1 - made.images.keep / tokens).mean() - before.mean()) < 0.02


@pytest.mark.parametrize(("mean", "most"), [(0.5, 0.5), (0.8, 0.5), (0, 0.5), (0.5, 1)])
def test_beta_drop_out_of_range_is_an_error_that_names_both(mean: float, most: float) -> None:
    with pytest.raises(ValueError, match=rf"mean is {mean} and max is {most}; it must be 0 < mean < max < 1"):
        BetaDrop(mean, most)


def test_resolution_drop_and_drop_to_tokens_out_of_range_are_errors_that_name_the_value() -> None:
    with pytest.raises(ValueError, match=r"low is -0\.1; .* at least 0 and below 1"):
        ResolutionDrop(-0.1, 0.5)
    with pytest.raises(ValueError, match=r"high is 1; .* at least 0 and below 1"):
        ResolutionDrop(0.1, 1)
    with pytest.raises(ValueError, match=r"std is 0; it must be above 0 and at most 1"):
        ResolutionDrop(0.1, 0.5, 0)
    with pytest.raises(ValueError, match=r"tokens is 0; it must be at least 1"):
        DropToTokens(0)


def test_complexity_drop_falls_with_the_bytes_per_pixel_and_is_the_same_for_every_key() -> None:
    encoded = np.array([0.001, 0.05, 0.05 * 10**0.25, 0.05 * 10**0.5, 0.5, 3])
    drop = ComplexityDrop(0.1, 0.9)
    for keys in (_KEYS[:6], _MANY[:6]):
        rates = drop.rates(np.full(6, 100), keys, 64, None, encoded)
        np.testing.assert_allclose(rates, [0.9, 0.9, 0.7, 0.5, 0.1, 0.1], atol=1e-12)
    half = ScheduledDrop(drop=drop, start=0.5, end=0.5, midpoint=1, tau=1)
    assert half.needs_bytes
    np.testing.assert_allclose(half.rates(np.full(6, 100), _KEYS[:6], 64, None, encoded), rates / 2)
    with pytest.raises(ValueError, match=r"ComplexityDrop\(low=0.1, .* needs the encoded bytes per pixel"):
        drop.keep(np.full(6, 100), _KEYS[:6], 64)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.5, 0.5), r"low is 0.5 and high is 0.5; .* 0 <= low < high < 1"),
        ((-0.1, 0.5), r"low is -0.1 and high is 0.5"),
        ((0.1, 1), r"low is 0.1 and high is 1"),
        ((0.1, 0.5, 1, 0.5), r"simple is 1 and detailed is 0.5; .* 0 < simple < detailed"),
        ((0.1, 0.5, 0, 0.5), r"simple is 0 and"),
        ((0.1, "half"), r"high is 'half'"),
    ],
)
def test_complexity_drop_out_of_range_is_an_error_that_names_the_values(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ComplexityDrop(*values)


def _rows_of_bytes(encoded: list[float], offsets: list[int] | None = None) -> Rows:
    rows = Rows.of_sizes([160] * len(encoded), [160] * len(encoded))
    if offsets is not None:
        one = np.ones(len(encoded), np.int32)
        rows = dataclasses.replace(rows, page=0 * one, frames=one, offsets=np.array(offsets))
    return dataclasses.replace(rows, bytes_per_pixel=np.array(encoded))


def test_a_plan_keeps_more_tokens_of_images_of_more_bytes() -> None:
    packing = Packing(seq_len=1024, token_drop=ComplexityDrop(0.2, 0.8), fill="none")
    images = plan(_rows_of_bytes([0.5, 0.05, 0.01, 0.05 * 10**0.5]), packing).images
    assert dict(zip(images.row.tolist(), images.keep.tolist(), strict=True)) == {0: 80, 1: 20, 2: 20, 3: 50}


def test_images_of_a_sample_have_the_rate_of_their_mean_bytes() -> None:
    packing = Packing(seq_len=1024, token_drop=ComplexityDrop(0.2, 0.8), fill="none")
    middle = 0.05 * 10**0.5
    rows = _rows_of_bytes([middle - 0.1, middle + 0.1, 0.5], [0, 2, 3])
    images = plan(rows, packing).images
    assert dict(zip(images.row.tolist(), images.keep.tolist(), strict=True)) == {0: 50, 1: 50, 2: 80}


@pytest.mark.parametrize("offsets", [None, [0, 1, 3]])
def test_images_of_unknown_bytes_are_refused_where_the_drop_follows_bytes(offsets: list[int] | None) -> None:
    packing = Packing(seq_len=1024, token_drop=ComplexityDrop(0.2, 0.8))
    with pytest.raises(ValueError, match=r"those of row 1 are not known \(1 of [23] rows\): .* or another drop"):
        plan(_rows_of_bytes([0.1, 0.3, 0], offsets) if offsets else _rows_of_bytes([0.1, 0, 0.3]), packing)
    with pytest.raises(ValueError, match=r"those of row 0 are not known \(2 of 2 rows\)"):
        plan(Rows.of_sizes([64, 64], [64, 64]), packing)
    assert len(plan(Rows.of_sizes([], []), packing)) == 0
