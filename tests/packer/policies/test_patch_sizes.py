from __future__ import annotations

from collections import Counter
from dataclasses import fields
from itertools import groupby, pairwise
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchnpack.packer import ConstantDrop, FitTokens, Images, Packing, PatchSizes, Planner, Rows, plan
from patchnpack.packer.binpacking.algorithms import CHOICES, Algorithm
from patchnpack.packer.binpacking.pack_lengths import SAMPLE
from patchnpack.packer.binpacking.pricing.prices import Prices
from patchnpack.packer.planning.measure import measure
from patchnpack.packer.planning.planner import images_per_pack

SIZES = PatchSizes((8, 16, 24))

# The draw


def test_each_block_draws_by_the_weights_from_seed_epoch_and_block_alone() -> None:
    sizes = PatchSizes((8, 16, 32), weights=(1, 0, 3))
    drawn = [sizes.draw(seed=5, epoch=1, block=block) for block in range(4000)]
    assert drawn == [sizes.draw(seed=5, epoch=1, block=block) for block in range(4000)]
    assert set(Counter(drawn)) == {8, 32}
    assert abs(drawn.count(8) / 4000 - 0.25) < 0.02
    for seed, epoch in ((6, 1), (5, 2)):
        assert [sizes.draw(seed=seed, epoch=epoch, block=block) for block in range(50)] != drawn[:50]


def test_a_curriculum_is_linear_from_the_first_weights_to_the_last() -> None:
    sizes = PatchSizes((8, 32), weights=(0, 1), end_weights=(3, 1), images=1000)
    assert [sizes.shares(images_seen).tolist() for images_seen in (0, 500, 1000, 9999)] == [
        [0, 1], [0.375, 0.625], [0.75, 0.25], [0.75, 0.25],
    ]  # fmt: skip
    assert {sizes.draw(seed=0, epoch=0, block=block, images_seen=0) for block in range(100)} == {32}
    late = [sizes.draw(seed=0, epoch=0, block=block, images_seen=1000) for block in range(2000)]
    assert abs(late.count(8) / 2000 - 0.75) < 0.04


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": ()}, r"sizes is \(\); it must be different patch sizes in pixels"),
        ({"sizes": 16}, "sizes is 16"),
        ({"sizes": (8, 8)}, "must be different patch sizes"),
        ({"sizes": (8, 0)}, "sizes is 0; it must be at least 1"),
        ({"sizes": (8, 16), "weights": (1,)}, r"weights is \(1,\); it must be 2 numbers"),
        ({"sizes": (8, 16), "weights": (0, 0)}, "none below 0 and at least one above 0"),
        ({"sizes": (8, 16), "weights": (-1, 2)}, "none below 0 and at least one above 0"),
        ({"sizes": (8, 16), "end_weights": (1, 2)}, "a curriculum needs both"),
        ({"sizes": (8, 16), "images": 5}, "a curriculum needs both"),
        ({"sizes": (8, 16), "end_weights": (1, 2), "images": 0}, "images is 0"),
    ],
)
def test_invalid_patch_sizes_are_a_value_error(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatchSizes(**options)


def test_equal_patch_sizes_compare_and_hash_equal_whatever_their_types() -> None:
    sizes: Any = [8, np.int64(16)]
    assert PatchSizes(sizes, weights=[1, 2]) == PatchSizes((8, 16), weights=(1.0, 2.0))
    assert hash(PatchSizes([8, 16])) == hash(PatchSizes((8, 16)))


# The plan


def _rows(n: int, seed: int = 0) -> Rows:
    return Rows.of_sizes(*np.random.default_rng(seed).integers(24, 200, (2, n)))


packings = st.builds(
    Packing,
    seq_len=st.integers(81, 200),
    patch_size=st.sampled_from([SIZES, PatchSizes((24, 8), weights=(1, 9))]),
    resolution=st.sampled_from([FitTokens(80), FitTokens(500)]),
    token_drop=st.sampled_from([ConstantDrop(0), ConstantDrop(0.6)]),
    oversize=st.sampled_from(["shrink", "drop", "skip"]),
    algorithm=st.sampled_from(get_args(Algorithm)),
    lookahead=st.sampled_from([1, 4, 32]),
    max_images=st.sampled_from([2, 64]),
    fill=st.just("none"),
)


@given(packings, st.integers(0, 150), st.integers(1, 5), st.integers(0, 2))
@settings(max_examples=80, deadline=None)
def test_each_block_has_its_drawn_patch_size_and_its_images_the_tokens_at_that_size(
    packing: Packing, n: int, block: int, epoch: int
) -> None:
    rows = _rows(n)
    made = plan(rows, packing, seed=2, epoch=epoch, block=block)
    assert isinstance(packing.patch_size, PatchSizes)
    drawn = [packing.patch_size.draw(seed=2, epoch=epoch, block=i // block) for i in range(len(made))]
    assert made.patch_size.tolist() == drawn
    assert sorted([*made.images.row.tolist(), *made.skipped.tolist()]) == list(range(n))
    assert (made.tokens() <= packing.seq_len).all()
    at = {P: measure(rows, packing, seed=2, epoch=epoch, patch_size=P)[0] for P in packing.patch_sizes}
    for i in range(len(made)):
        pack = made.pack(i)
        assert 1 <= len(pack) <= packing.max_images
        expected = at[drawn[i]].take(pack.row)
        assert all(np.array_equal(getattr(pack, f.name), getattr(expected, f.name)) for f in fields(Images))


@given(packings, st.integers(0, 120), st.integers(1, 4), st.lists(st.integers(0, 120), max_size=8))
@settings(max_examples=80, deadline=None)
def test_rows_added_in_parts_make_the_packs_of_one_plan(packing: Packing, n: int, block: int, cuts: list[int]) -> None:
    rows = _rows(n)
    ends = [0, *sorted(min(cut, n) for cut in cuts), n]
    planner = Planner(packing, share=block)
    parts = [planner.add(rows.take(slice(a, b))) for a, b in pairwise(ends)]
    parts.append(planner.finish())
    whole = plan(rows, packing, block=block)
    assert [size for part in parts for size in part.patch_size.tolist()] == whole.patch_size.tolist()
    packs = [part.pack(i).row.tolist() for part in parts for i in range(len(part))]
    assert packs == [whole.pack(i).row.tolist() for i in range(len(whole))]


@pytest.mark.parametrize("algorithm", [*CHOICES, "first_fit", "best_fit_decreasing"])
def test_no_image_waits_forever(algorithm: Any) -> None:
    packing = Packing(seq_len=256, patch_size=SIZES, algorithm=algorithm, lookahead=16, resolution=FitTokens(200))
    made = plan(_rows(4000), packing, block=4)
    place = np.empty(4000, np.int64)
    place[made.images.row] = np.arange(4000)
    assert np.abs(place - np.arange(4000)).max() < 600


def test_a_patch_size_costs_little_fill() -> None:
    rows = Rows.of_sizes(*np.random.default_rng(0).integers(64, 500, (2, 20_000)))
    fills = {}
    for size in (16, 32, PatchSizes((16, 32))):
        made = plan(rows, Packing(seq_len=1024, patch_size=size, algorithm="subset_sum"), block=8)
        fills[size] = made.tokens().mean() / 1024
    assert fills[PatchSizes((16, 32))] > min(fills[16], fills[32]) - 0.002


def test_the_curriculum_follows_the_number_of_images_seen() -> None:
    rows = _rows(20_000)
    sizes = PatchSizes((8, 24), weights=(0, 1), end_weights=(1, 0), images=20_000)
    packing = Packing(seq_len=512, patch_size=sizes, algorithm="largest_fit")
    made = plan(rows, packing, block=4)
    large = made.patch_size == 24
    thirds = np.array_split(large, 3)
    assert thirds[0].mean() > 0.6 > thirds[1].mean() > thirds[2].mean()
    later = plan(rows, packing, start=20_000, block=4)
    assert (later.patch_size == 8).all()
    # Halfway through the rows, both sizes are equally frequent.
    middle = np.searchsorted(made.offsets, 10_000)
    assert 0.3 < large[middle - 100 : middle + 100].mean() < 0.7
    # Estimated from the first rows alone, so that streams of different images agree.
    assert images_per_pack(rows, packing, seed=0) == images_per_pack(rows.take(slice(SAMPLE)), packing, seed=0)


@pytest.mark.parametrize("algorithm", [*CHOICES, "first_fit", "next_fit"])
@pytest.mark.parametrize(("side", "lookahead", "block"), [(200, 256, 7), (60, 3, 7), (60, 3, 1)])
def test_a_single_patch_size_packs_like_a_plain_patch_size(
    algorithm: Any, side: int, lookahead: int, block: int
) -> None:
    rows = Rows.of_sizes(*np.random.default_rng(0).integers(17, side, (2, 3000)))
    packing = Packing(seq_len=512, patch_size=16, algorithm=algorithm, lookahead=lookahead)
    alone = plan(rows, packing.replace(patch_size=PatchSizes((16,))), block=block)
    plain = plan(rows, packing)
    assert [len(list(run)) for _, run in groupby(alone.patch_size.tolist())] == [len(alone)]
    np.testing.assert_array_equal(alone.offsets, plain.offsets)
    np.testing.assert_array_equal(alone.images.row, plain.images.row)


def test_each_patch_size_is_packed_by_its_own_prices() -> None:
    rows = Rows.of_sizes(*np.random.default_rng(0).integers(17, 200, (2, 3000)))
    prices = (Prices((1, 200), (1, 1000)), Prices((1, 30, 90), (20, 300, 700)))
    several = Packing(seq_len=512, patch_size=PatchSizes((8, 16), (0, 1)), algorithm="priced", prices=prices)
    alone = Packing(seq_len=512, patch_size=16, algorithm="priced", prices=prices[1:])
    np.testing.assert_array_equal(plan(rows, several).images.row, plan(rows, alone).images.row)
    other = alone.replace(prices=prices[:1])
    assert plan(rows, other).images.row.tolist() != plan(rows, alone).images.row.tolist()


def test_an_image_that_is_oversize_at_any_patch_size_is_skipped_at_all_of_them() -> None:
    rows = Rows.of_sizes([64] * 20, [64] * 19 + [160])
    packing = Packing(seq_len=64, patch_size=PatchSizes((8, 16)), oversize="skip")
    made = plan(rows, packing, block=1)
    assert made.skipped.tolist() == made.oversize.tolist() == [19]
    with pytest.raises(ValueError, match="row 19 of 64x160 pixels has 160 tokens, more than seq_len 64"):
        plan(rows, packing.replace(oversize="error"))
