from __future__ import annotations

from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from patchnpack.packer import pack_lengths
from patchnpack.packer.binpacking.balance import balanced_order, load_imbalance


@given(cost=st.lists(st.integers(0, 50), max_size=60), share=st.integers(1, 12), seed=st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_each_pack_is_in_one_share_of_similar_cost(cost: list[int], share: int, seed: int) -> None:
    drawn = np.random.default_rng(seed).permutation(60)
    order = balanced_order(np.array(cost), share, drawn)
    assert sorted(order.tolist()) == list(range(len(cost)))
    found = np.array(cost)[order].tolist()
    shares = [found[i : i + share] for i in range(0, len(found), share)]
    in_order = sorted(shares, key=lambda s: (-max(s), -min(s)))
    assert list(chain.from_iterable(in_order)) == sorted(cost, reverse=True)
    if len(cost) % share:
        assert shares[-1] == sorted(cost)[: len(cost) % share][::-1]


def test_load_imbalance_of_known_steps() -> None:
    cost = np.array([4, 4, 4, 4, 6, 2, 4, 4, 100])
    assert load_imbalance(cost, 4) == (1 + 1.5) / 2
    assert load_imbalance(cost[:3], 4) == 1


@pytest.mark.parametrize(("capacity", "before", "after"), [(1024, 1.3, 1.02), (4096, 1.5, 1.05), (16384, 1.5, 1.1)])
def test_balance_evens_eight_ranks_and_leaves_the_order_of_steps_random(
    capacity: int, before: float, after: float
) -> None:
    rng = np.random.default_rng(0)
    n = 60 * capacity
    counts = np.where(rng.random(n) < 0.5, 768, rng.lognormal(6.16, 0.8, n)).clip(20, min(15_000, capacity)).astype(int)
    counts = counts[: int(2048 * capacity / counts.mean())]
    order, offsets = pack_lengths(counts, capacity, algorithm="subset_sum")
    cost = np.array([(counts[order[a:b]] ** 2).sum() for a, b in pairwise(offsets)])
    cost = cost[: len(cost) // 256 * 256]
    balanced = np.concatenate([w[balanced_order(w, 8, rng.random(32))] for w in cost.reshape(-1, 256)])
    assert load_imbalance(cost, 8) > before
    assert load_imbalance(balanced, 8) < after
    steps = balanced.reshape(-1, 8).mean(1)
    assert spearmanr(steps, np.arange(len(steps))).pvalue > 0.01
