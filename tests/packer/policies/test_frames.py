from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchnpack.packer import Frames
from patchnpack.packer.policies import reference_draws
from patchnpack.packer.policies.random import Purpose, counter_hash

hows = st.sampled_from(["uniform", "random", "first", "stride:1", "stride:2", "stride:7"])
shorts: Any = st.sampled_from(["keep", "repeat", "skip"])


def chosen(frames: Frames, images: list[int], seed: int = 0) -> list[list[int]]:
    keys = counter_hash(Purpose.FRAMES, seed, 0, np.arange(len(images), dtype=np.uint64))
    numbers, offsets, _ = frames.choose(np.array(images, np.int64), keys)
    return [numbers[a:b].tolist() for a, b in pairwise(offsets)]


@given(st.lists(st.integers(1, 60), max_size=12), st.integers(1, 20), hows, shorts)
@settings(max_examples=300, deadline=None)
def test_chosen_frames_equal_the_reference_and_ascend(images: list[int], count: int, how: str, short: Any) -> None:
    frames = Frames(count, how, short)
    keys = counter_hash(Purpose.FRAMES, 0, 0, np.arange(len(images), dtype=np.uint64))
    _, _, few = frames.choose(np.array(images, np.int64), keys)
    for k, key, own, is_few in zip(images, keys.tolist(), chosen(frames, images), few.tolist(), strict=True):
        assert own == reference_draws.chosen_frames(k, count, how, short, key)
        assert own == sorted(own)
        assert 0 <= own[0] <= own[-1] < k
        assert is_few == (len(set(own)) < count)
        assert len(own) == (count if short == "repeat" else len(set(own)))


def test_uniform_frames_are_the_centres_of_equal_segments() -> None:
    assert chosen(Frames(4), [12, 4, 5, 1]) == [[1, 4, 7, 10], [0, 1, 2, 3], [0, 1, 3, 4], [0]]
    assert chosen(Frames(1), [9, 10]) == [[4], [5]]


def test_random_frames_are_drawn_per_sample_whatever_the_others_and_every_subset_occurs() -> None:
    frames = Frames(2, "random")
    assert chosen(frames, [5] * 9)[:4] == chosen(frames, [5] * 4)
    found = [tuple(own) for seed in range(40) for own in chosen(frames, [5] * 50, seed)]
    times = {pair: found.count(pair) for pair in set(found)}
    assert len(times) == 10
    assert all(140 < count < 260 for count in times.values())  # 200 of each expected, deviation 13


def test_a_short_sample_is_kept_or_its_last_frame_repeated() -> None:
    assert chosen(Frames(4, "first", "keep"), [2]) == [[0, 1]]
    assert chosen(Frames(4, "random", "repeat"), [2]) == [[0, 1, 1, 1]]
    assert chosen(Frames(3, "stride:4", "repeat"), [6]) == [[0, 4, 4]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((0,), "frames.count is 0; it must be at least 1"),
        ((2.0,), "frames.count is 2.0; it must be a whole number: 2"),
        ((2, "unifrom"), "'stride:2': did you mean 'uniform'?"),
        ((2, "stride"), "frames.how is 'stride'; it must be 'uniform', 'random', 'first' or 'stride:N'"),
        ((2, "stride:0"), "frames.how is 'stride:0'"),
        ((2, "stride:-1"), "frames.how is 'stride:-1'"),
        ((2, None), "frames.how is None"),
        ((2, "first", "drop"), "frames.short is 'drop'; it must be one of 'keep', 'repeat', 'skip'"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_it(arguments: Any, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        Frames(*arguments)


def test_random_frames_without_keys_are_an_error() -> None:
    with pytest.raises(ValueError, match="give keys, one uint64 per sample"):
        Frames(2, "random").choose(np.array([3]))


def test_equal_frames_look_equal() -> None:
    assert repr(Frames(np.int64(8), "stride:02")) == repr(Frames(8, "stride:2"))  # type: ignore[arg-type]
