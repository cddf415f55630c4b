from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from patchnpack.packer.policies import _draws, reference_draws
from tests.closeness import assert_near

KEYS = np.random.default_rng(7).integers(0, 2**64, 100_000, np.uint64)


@pytest.mark.parametrize(("a", "b"), [(1.46, 0.88), (0.26, 2.07), (0.047, 2.286), (1.81, 0.52), (1, 1), (3, 5)])
def test_beta_values_follow_the_beta_distribution(a: float, b: float) -> None:
    values = np.empty(len(KEYS))
    _draws.beta(KEYS, a, b, values)
    assert 0 <= values.min() <= values.max() <= 1
    assert stats.kstest(values, stats.beta(a, b).cdf).pvalue > 0.001


@pytest.mark.parametrize(("mean", "std"), [(-0.5, 1.0), (-1.0, 0.1), (1.0, 0.3), (0.0, 20.0)])
def test_truncated_normal_values_follow_the_truncated_normal_distribution(mean: float, std: float) -> None:
    values = np.empty(len(KEYS))
    _draws.truncated_normal(KEYS, np.full(len(KEYS), mean), std, -1.0, 1.0, values)
    assert -1 <= values.min() <= values.max() < 1
    known = stats.truncnorm((-1 - mean) / std, (1 - mean) / std, mean, std)
    assert stats.kstest(values, known.cdf).pvalue > 0.001


def test_values_depend_only_on_their_own_keys_and_neighbouring_keys_are_uncorrelated() -> None:
    near = np.arange(50_000, dtype=np.uint64)
    values, turned = np.empty(len(near)), np.empty(len(near))
    _draws.beta(near, 1.2, 1.2, values)
    _draws.beta(near[::-1].copy(), 1.2, 1.2, turned)
    np.testing.assert_array_equal(values, turned[::-1])
    assert stats.pearsonr(values[1:], values[:-1]).pvalue > 0.001


@pytest.mark.parametrize(("a", "b"), [(1.46, 0.88), (0.047, 2.286), (3, 5)])
def test_beta_values_equal_the_reference(a: float, b: float) -> None:
    values = np.empty(2000)
    _draws.beta(KEYS[:2000], a, b, values)
    np.testing.assert_allclose(
        values, [reference_draws.beta(key, a, b) for key in KEYS[:2000].tolist()], rtol=1e-9, atol=1e-300
    )


@pytest.mark.parametrize(("mean", "std"), [(-0.5, 1.0), (-1.0, 0.1)])
def test_truncated_normal_and_uniform_values_equal_the_reference(mean: float, std: float) -> None:
    values = np.empty(2000)
    _draws.truncated_normal(KEYS[:2000], np.full(2000, mean), std, -1.0, 1.0, values)
    plain = [reference_draws.truncated_normal(key, mean, std, -1.0, 1.0) for key in KEYS[:2000].tolist()]
    assert_near(values, plain, 1e-9)  # the sum of mean and deviation cancels near 0
    _draws.uniform(KEYS[:2000], values)
    assert values.tolist() == [reference_draws.uniform(key)[1] for key in KEYS[:2000].tolist()]
