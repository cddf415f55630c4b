"""Planning samples of several images: what `Planner` promises for pages, frames and views."""

from __future__ import annotations

import itertools
from dataclasses import fields
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchnpack.packer import (
    BetaDrop,
    ConstantDrop,
    FitTokens,
    Frames,
    Images,
    Native,
    Packing,
    PatchSizes,
    Plan,
    Planner,
    RandomResizedCrop,
    ScheduledResolution,
    plan,
)
from patchnpack.packer.binpacking.algorithms import CHOICES
from tests.packer.planning.plans import (
    ALGORITHMS,
    assert_same_plan,
    joined,
    random_rows,
    random_samples,
    sample_packings,
    sample_sizes,
    samples_of,
)


def packed_samples(made: Plan) -> list[tuple[int, list[int]]]:
    """The number of the pack and the rows of each sample, in order; checks that frames count from 0."""
    found = []
    for i in range(len(made)):
        pack = made.pack(i)
        frame = np.zeros(len(pack), np.int32) if pack.frame is None else pack.frame
        ends = [*np.flatnonzero(frame == 0).tolist(), len(pack)]
        assert ends[0] == 0
        for low, high in itertools.pairwise(ends):
            assert frame[low:high].tolist() == list(range(high - low))
            found.append((i, pack.row[low:high].tolist()))
    return found


@given(sample_sizes, sample_packings())
@settings(max_examples=200, deadline=None)
def test_each_sample_is_whole_and_in_order_in_exactly_one_pack_or_skipped(
    sizes: list[list[tuple[int, int]]], packing: Packing
) -> None:
    rows = samples_of(sizes, start=50)
    made = plan(rows, packing, epoch=1)
    assert rows.offsets is not None
    own = {int(rows.row[low]): rows.row[low:high].tolist() for low, high in pairwise(rows.offsets)}
    packed = packed_samples(made)
    assert len(packed) == made.num_samples == made.samples_per_pack().sum()
    found = []
    views = 1 if packing.views is None else packing.views.count
    for _, of_sample in packed:
        (first,) = [first for first, its in own.items() if of_sample[0] in its]
        found.append(first)
        pictures = of_sample[::views]
        assert np.repeat(pictures, views).tolist() == of_sample
        assert pictures == sorted(pictures)
        assert set(pictures) <= set(own[first])
        if packing.frames is None and packing.oversize == "shrink":
            assert pictures == own[first]
        if packing.frames is not None and packing.frames.short == "repeat":
            assert len(pictures) == packing.frames.count
    assert sorted([*found, *made.skipped.tolist()]) == sorted(own)
    reasons = {row for rows in made.skipped_by_reason().values() for row in rows.tolist()}
    assert reasons == set(made.skipped.tolist())
    for i in range(len(made)):
        assert 1 <= len(made.pack(i)) <= packing.max_images
        assert made.pack(i).keep.sum() == made.tokens()[i] <= packing.seq_len
    assert (made.images.keep >= 1).all()
    assert (made.images.keep <= made.images.grid.prod(1)).all()


@given(sample_sizes, sample_packings(), st.lists(st.integers(0, 25), max_size=4))
@settings(max_examples=120, deadline=None)
def test_packs_are_the_same_however_samples_are_split_into_calls(
    sizes: list[list[tuple[int, int]]], packing: Packing, cuts: list[int]
) -> None:
    rows = samples_of(sizes)
    whole = Planner(packing, seed=3, share=2)
    expected = joined([whole.add(rows), whole.finish()])
    planner = Planner(packing, seed=3, share=2)
    ends = sorted({0, len(rows), *(min(cut, len(rows)) for cut in cuts)})
    parts = [planner.add(rows.take(slice(low, high))) for low, high in itertools.pairwise(ends)]
    assert_same_plan(joined([*parts, planner.finish()]), expected)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"resolution": RandomResizedCrop(max_tokens=60), "token_drop": BetaDrop(0.5, 0.9)},
        {"fill": "trim"},
        {"fill": "rescale"},
        {"oversize": "skip", "undersize": "skip"},
        {"resolution": ScheduledResolution(((0, FitTokens(20)), (15, Native())))},
        {"patch_size": PatchSizes((16, 32))},
        {"frames": Frames(1)},
        {"frames": Frames(3)},
    ],
)
def test_a_sample_of_one_image_is_planned_as_a_row_alone(algorithm: Any, changes: dict[str, Any]) -> None:
    if changes.get("fill") in ("trim", "rescale") and algorithm not in ("auto", *CHOICES):
        pytest.skip("this fill needs an algorithm that chooses")
    alone = random_rows(400, 8, 300)
    samples = samples_of([[size] for size in zip(alone.width.tolist(), alone.height.tolist(), strict=True)])
    np.testing.assert_array_equal(samples.row_id, alone.row_id)
    packing = Packing(seq_len=256, max_images=6, algorithm=algorithm, lookahead=50, **changes)
    one, other = plan(samples, packing, seed=2, epoch=1), plan(alone, packing, seed=2, epoch=1)
    for name in ("offsets", "patch_size", "skipped", "oversize", "undersize"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for f in fields(Images):
        if f.name not in ("page", "frame"):
            np.testing.assert_array_equal(getattr(one.images, f.name), getattr(other.images, f.name))
    assert other.images.frame is None
    assert other.images.page is None
    assert one.images.frame is not None
    assert not one.images.frame.any()
    assert one.algorithm == other.algorithm


def test_undrop_gives_slots_back_to_images_of_samples() -> None:
    packing = Packing(seq_len=512, token_drop=ConstantDrop(0.3), algorithm="next_fit")
    made, bare = (plan(random_samples(300, 4), packing.replace(fill=fill)) for fill in ("undrop", "none"))
    np.testing.assert_array_equal(made.images.row, bare.images.row)
    assert made.tokens()[:-1].min() > bare.tokens()[:-1].min()
    assert made.tokens().max() == 512


def test_trim_closes_a_pack_with_a_sample_that_is_slightly_too_long() -> None:
    rows = samples_of([[(80, 80)] * 2] * 40)  # 50 tokens each, of which 2 may go
    packing = Packing(seq_len=96)
    assert len(plan(rows, packing)) == 40
    made = plan(rows, packing.replace(fill="trim"))
    assert len(made) == 20
    assert set(made.images.keep.tolist()) == {24}


def test_schedules_count_samples() -> None:
    stages = ScheduledResolution(((0, FitTokens(4)), (2, FitTokens(1))))
    rows = samples_of([[(64, 64)] * 3] * 3)
    made = plan(rows, Packing(resolution=stages, algorithm="next_fit"))
    assert made.images.keep.tolist() == [4, 4, 4, 4, 4, 4, 1, 1, 1]


@pytest.mark.parametrize("algorithm", CHOICES)
def test_a_sample_leaves_within_as_many_packs_as_the_lookahead(algorithm: Any) -> None:
    rows = random_samples(600, 9, seed=4)
    made = plan(rows, Packing(seq_len=1024, max_images=24, algorithm=algorithm, lookahead=20))
    assert rows.offsets is not None
    sample = np.searchsorted(rows.offsets, made.images.row[made.images.frame == 0], side="right") - 1
    per_pack = made.samples_per_pack()
    left = np.repeat(np.arange(len(made)), per_pack)
    waiting_upto = np.cumsum(per_pack) - per_pack + 20  # before each pack
    entered = np.searchsorted(waiting_upto, sample, side="right")
    assert (left >= entered).all()
    assert (left - entered).max() <= 20
