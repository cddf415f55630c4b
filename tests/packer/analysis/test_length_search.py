from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchnpack.packer import BetaDrop, Packing, Rows, advise, sweep
from patchnpack.packer.analysis.length_search import EQUAL_PADDING, TOLERANCE, Trial, search_lengths
from patchnpack.packer.analysis.sweep import ALGORITHMS, LOOKAHEADS, length_range
from patchnpack.packer.analysis.trial import measure_rows, try_packing


def _of(tokens: np.ndarray) -> Rows:
    """Images of the given token counts at patch size 16, one row of patches each."""
    return Rows.of_sizes(16 * tokens, np.full(len(tokens), 16))


def _least_padding(rows: Rows, packing: Packing, lengths: range) -> float:
    """The least padding of all lengths, each with the best algorithm and lookahead of a sweep."""

    def padding(length: int) -> float:
        tried = packing.replace(seq_len=length)
        trial = try_packing(measure_rows(rows, tried, 0), tried, ALGORITHMS, LOOKAHEADS)
        return 1 - trial.tokens / (trial.packs * length)

    return min(map(padding, lengths))


@st.composite
def _data_sets(draw: st.DrawFn) -> np.ndarray:
    """Few common sizes beside a long tail, as data sets have them."""
    common = draw(st.lists(st.integers(20, 120), max_size=3))
    shares = draw(st.lists(st.integers(20, 200), min_size=len(common), max_size=len(common)))
    tail = np.random.default_rng(draw(st.integers(0, 99))).integers(8, 150, draw(st.integers(20, 150)))
    tokens = np.concatenate([np.repeat(common, shares).astype(np.int64), tail])
    return np.random.default_rng(0).permutation(tokens)


@given(_data_sets(), st.sampled_from([1, 1, 8]))
@settings(max_examples=15, deadline=None)
def test_no_length_in_the_range_beats_the_advice_by_half_a_point(tokens: np.ndarray, multiple: int) -> None:
    rows, packing = _of(tokens), Packing(seq_len=150)
    swept = sweep(rows, packing, multiple=multiple)
    (search,), best = swept.searches, advise(swept).best
    shortest, power = length_range(tokens, packing)
    assert search.shortest - shortest in range(multiple)
    least = _least_padding(rows, packing, range(search.shortest, 4 * power + 1, multiple))
    assert best.padding <= least + 0.005


def test_images_of_one_size_get_a_length_that_they_fill() -> None:
    rows = Rows.of_sizes(np.full(500, 720), np.full(500, 960))  # 690 tokens
    found = advise(sweep(rows, Packing(patch_size=32))).best
    assert (found.seq_len, found.padding) == (690, 0)
    no_single = advise(sweep(rows, Packing(patch_size=32), seq_lens=[1536, 2070])).best
    assert (no_single.seq_len, f"{no_single.padding:.2%}") == (2070, "0.20%")
    assert advise(sweep(rows, Packing(patch_size=32), multiple=128)).best.padding < 0.005


@pytest.mark.parametrize("multiple", [1, 3, 64])
def test_the_gap_bounds_the_lengths_that_were_not_tried(multiple: int) -> None:
    tokens = np.random.default_rng(1).choice([300, 310, 520], 400)

    @cache
    def pack(length: int) -> Trial:
        packing = Packing(seq_len=length)
        return try_packing(measure_rows(_of(tokens), packing, 0), packing, ALGORITHMS, LOOKAHEADS)

    found = search_lengths(pack, 520, 4096, patch_size=16, multiple=multiple)
    assert found.gap <= TOLERANCE
    tried = dict(found.padding)
    lengths = range(found.shortest, found.longest + 1, multiple)
    assert len(tried) < len(lengths) or multiple == 64
    padding = {length: 1 - pack(length).tokens / (pack(length).packs * length) for length in lengths}
    assert tried == {length: padding[length] for length in tried}
    assert tried[found.best] - min(padding.values()) <= found.gap + 0.0005  # packers have luck
    assert tried[found.advised] <= tried[found.best] + EQUAL_PADDING
    assert found.advised == min(n for n in tried if tried[n] <= tried[found.best] + EQUAL_PADDING)


@pytest.mark.parametrize(
    "packing",
    [
        Packing(fill="trim"),
        Packing(fill="rescale"),
        Packing(fill="none", token_drop=BetaDrop(0.4, 0.8)),
        Packing(token_drop=BetaDrop(0.4, 0.8)),
        Packing(oversize="skip", max_images=3),
    ],
    ids=["trim", "rescale", "drop", "undrop", "skip"],
)
def test_the_advice_holds_for_packings_that_change_or_skip_images(packing: Packing) -> None:
    rng = np.random.default_rng(4)
    tokens = rng.permutation(np.concatenate([np.full(150, 48), np.full(80, 80), rng.integers(20, 110, 120)]))
    rows, packing = _of(tokens), packing.replace(seq_len=110)
    swept = sweep(rows, packing)
    (search,) = swept.searches
    least = _least_padding(rows, packing, range(search.shortest, search.longest + 1, 3))
    assert advise(swept).best.padding <= least + 0.005


def test_the_search_ends_where_nothing_packs_well() -> None:
    trials = itertools.count()

    def pack(length: int) -> Trial:
        next(trials)
        half = 1000 * length // 2  # half empty everywhere
        return Trial(packs=1000, tokens=half, oversize=0, samples=500_000, most_tokens=half)

    found = search_lengths(pack, 1000, 100_000, patch_size=16)
    assert found.gap > 0.4  # unproved, and said so
    assert next(trials) < 100


def test_a_range_of_one_length_is_that_length() -> None:
    found = search_lengths(lambda _: Trial(10, 640, 0, 10, 640), 64, 64, patch_size=16)
    assert (found.padding, found.best, found.advised, found.gap) == (((64, 0.0),), 64, 64, 0.0)
