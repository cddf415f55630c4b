from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchnpack.packer.policies import reference_draws
from patchnpack.packer.policies.random import Purpose, counter_hash

_WORD = 1 << 64
_GOLDEN = 0x9E3779B97F4A7C15

seeds = st.one_of(st.integers(0, 10), st.integers(-(2**80), 2**80))
words = st.lists(st.integers(0, _WORD - 1), min_size=1, max_size=30)


def _by_hand(purpose: int, seed: int, epoch: int, counter: int) -> int:
    base = 0
    for word in (purpose, seed, epoch, counter):
        base = reference_draws.mix((base ^ word % _WORD) + _GOLDEN & _WORD - 1)
    return base


@given(st.sampled_from(Purpose), seeds, seeds, words)
@settings(max_examples=60, deadline=None)
def test_a_key_is_four_rounds_of_splitmix64(purpose: Purpose, seed: int, epoch: int, counters: list[int]) -> None:
    found = counter_hash(purpose, seed, epoch, np.array(counters, np.uint64))
    assert found.dtype == np.uint64
    assert found.tolist() == [_by_hand(purpose, seed, epoch, c) for c in counters]


def test_keys_are_the_same_in_every_release() -> None:
    # A change here changes every order and every draw of every user: recorded from the plain formula above.
    counters = np.array([0, 1, _WORD - 1], np.uint64)
    assert counter_hash(Purpose.TOKEN_DROP, 7, 2, counters).tolist() == [
        15492766073501324803,
        6528548538238932854,
        10283941246851591148,
    ]


@given(words, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_a_key_does_not_depend_on_the_other_counters(counters: list[int], random) -> None:  # type: ignore[no-untyped-def]
    together = dict(
        zip(counters, counter_hash(Purpose.ROW_ORDER, 3, 1, np.array(counters, np.uint64)).tolist(), strict=True)
    )
    random.shuffle(counters)
    for counter in counters:
        assert counter_hash(Purpose.ROW_ORDER, 3, 1, np.array([counter], np.uint64)).tolist() == [together[counter]]


def test_purposes_seeds_and_epochs_share_no_key() -> None:
    counters = np.arange(500, dtype=np.uint64)
    drawn = [
        counter_hash(purpose, seed, epoch, counters)
        for purpose in Purpose
        for seed in (-(2**40), -1, 0, 1, 2, 2**63, 2**64 - 2)
        for epoch in (0, 1, 2, 1000)
    ]
    assert len(np.unique(np.concatenate(drawn))) == len(drawn) * len(counters)


def test_seeds_count_modulo_2_to_the_64() -> None:
    counters = np.arange(9, dtype=np.uint64)
    for seed, same in ((-1, 2**64 - 1), (2**100 + 5, 5)):
        np.testing.assert_array_equal(
            counter_hash(Purpose.ROW_ORDER, seed, 0, counters), counter_hash(Purpose.ROW_ORDER, same, 0, counters)
        )


def test_swapping_seed_and_epoch_changes_the_keys() -> None:
    counters = np.arange(100, dtype=np.uint64)
    assert not np.isin(
        counter_hash(Purpose.TRANSFORM, 1, 2, counters), counter_hash(Purpose.TRANSFORM, 2, 1, counters)
    ).any()


@pytest.mark.parametrize("bit", [0, 1, 17, 63])
def test_each_bit_of_a_counter_flips_half_of_the_keys_bits(bit: int) -> None:
    counters = np.arange(4000, dtype=np.uint64)
    flipped = counter_hash(Purpose.TRANSFORM, 5, 0, counters) ^ counter_hash(
        Purpose.TRANSFORM, 5, 0, counters ^ np.uint64(1 << bit)
    )
    share = np.unpackbits(flipped.view(np.uint8).reshape(-1, 8), axis=1).mean(0)
    # 4000 fair coins: a standard deviation of 0.008
    assert np.abs(share - 0.5).max() < 0.05


def test_argsort_of_keys_shuffles_evenly() -> None:
    # Where item 0 of 6 lands in 6000 shuffles; chi-square with 5 degrees of freedom is above 30 once in 70,000.
    row_ids = np.arange(6, dtype=np.uint64)
    places = [
        int(np.argsort(counter_hash(Purpose.ROW_ORDER, 0, epoch, row_ids)).tolist().index(0)) for epoch in range(6000)
    ]
    counts = np.bincount(places, minlength=6)
    assert ((counts - 1000) ** 2 / 1000).sum() < 30


def test_the_numbers_of_purposes_do_not_change() -> None:
    assert [(p.name, p.value) for p in Purpose] == [
        ("SHARD_ORDER", 1),
        ("ROW_ORDER", 2),
        ("TOKEN_DROP", 3),
        ("TRANSFORM", 4),
        ("DROP_RATE", 5),
        ("BALANCE", 6),
        ("RESOLUTION", 7),
        ("PATCH_SIZE", 8),
        ("MIXTURE", 9),
        ("FRAMES", 10),
        ("FLIP", 11),
    ]
