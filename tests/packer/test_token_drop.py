from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchnpack.packer import ConstantDrop, NoDrop
from patchnpack.packer.token_drop import TokenDrop

_KEYS = np.arange(7, dtype=np.uint64)


@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=20), st.floats(0, 1, exclude_max=True))
@settings(max_examples=100, deadline=None)
def test_constant_drop_keeps_the_nearest_whole_number_of_tokens_and_at_least_one(
    tokens: list[int], rate: float
) -> None:
    kept = ConstantDrop(rate).keep(np.array(tokens), np.zeros(len(tokens), np.uint64))
    assert kept.dtype == np.int64
    for count, of in zip(kept.tolist(), tokens, strict=True):
        exact = of * (1 - Fraction(rate))
        assert 1 <= count <= of
        assert count == 1 or abs(count - exact) <= Fraction(1, 2) + of * Fraction(1, 10**15)


def test_constant_drop_keeps_these_counts() -> None:
    tokens = np.array([1, 2, 3, 4, 5, 10, 1000])
    assert ConstantDrop(0.5).keep(tokens, _KEYS).tolist() == [1, 1, 2, 2, 2, 5, 500]
    assert ConstantDrop(0.9).keep(tokens, _KEYS).tolist() == [1, 1, 1, 1, 1, 1, 100]


@pytest.mark.parametrize("drop", [NoDrop(), ConstantDrop(0), ConstantDrop(0.0)])
def test_dropping_nothing_keeps_every_token(drop: TokenDrop) -> None:
    tokens = np.array([1, 2, 3, 500, 10**6], np.int64)
    kept = drop.keep(tokens, _KEYS[:5])
    assert kept.tolist() == tokens.tolist()
    kept[:] = 0
    assert tokens.all(), "the answer must not be the argument itself"


def test_the_constant_drop_does_not_depend_on_the_key() -> None:
    tokens = np.full(100, 77)
    kept = ConstantDrop(0.3).keep(tokens, np.random.default_rng(0).integers(0, 2**64, 100, np.uint64))
    assert set(kept.tolist()) == {54}


@pytest.mark.parametrize("rate", [1, 1.0, -0.1, 2, float("nan"), float("inf")])
def test_a_rate_out_of_range_is_an_error_that_names_it(rate: float) -> None:
    with pytest.raises(ValueError, match=rf"rate is {rate}; .* at least 0 and below 1"):
        ConstantDrop(rate)
