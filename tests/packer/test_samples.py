"""Planning samples of several images: pages, frames, views."""

from __future__ import annotations

import itertools
import re
from dataclasses import fields
from itertools import pairwise
from typing import Any, get_args

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
    Rows,
    SampleSide,
    ScheduledResolution,
    Square,
    Views,
    plan,
)
from patchnpack.packer.binpacking.algorithms import CHOICES, Algorithm
from patchnpack.packer.planning.measure import measure
from tests.packer.planning.plans import assert_same_plan, joined, random_rows, random_samples, samples_of

ALGORITHMS = get_args(Algorithm)
VIEWS = Views((2, RandomResizedCrop(scale=(0.25, 1), max_tokens=16)), (3, RandomResizedCrop(max_tokens=4)))

sample_sizes = st.lists(
    st.lists(st.tuples(st.integers(10, 200), st.integers(10, 200)), min_size=1, max_size=5), max_size=25
)


@st.composite
def sample_packings(draw: st.DrawFn) -> Packing:
    views = draw(st.sampled_from([None, None, VIEWS]))
    policies = [Native(), FitTokens(20), Square(32), SampleSide(low=16, high=90), RandomResizedCrop(max_tokens=30)]
    patch_sizes: list[int | PatchSizes] = [16, PatchSizes((16, 32))]
    frames = draw(st.sampled_from([None, Frames(2), Frames(3, "random", "repeat"), Frames(2, "first", "skip")]))
    return Packing(
        seq_len=draw(st.integers(60, 150)),
        resolution=Native() if views else draw(st.sampled_from(policies)),
        frames=Frames(1) if views and frames else frames,
        views=views,
        oversize=draw(st.sampled_from(["drop", "skip"] if views else ["shrink", "drop", "skip"])),
        undersize=draw(st.sampled_from(["pad", "skip"])),
        token_drop=draw(st.sampled_from([ConstantDrop(0), BetaDrop(0.5, 0.9)])),
        algorithm=draw(st.sampled_from(ALGORITHMS)),
        lookahead=draw(st.sampled_from([1, 3, 16, 256])),
        max_images=draw(st.sampled_from([5, 12, 64])),
        fill=draw(st.sampled_from(["none", "undrop"])),
        scope=draw(st.sampled_from(["image", "sample"])),
        patch_size=draw(st.sampled_from(patch_sizes)),
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


@given(sample_sizes, sample_packings())
@settings(max_examples=60, deadline=None)
def test_a_sample_is_measured_as_it_is_alone(sizes: list[list[tuple[int, int]]], packing: Packing) -> None:
    rows, size = samples_of(sizes), packing.patch_sizes[0]
    seen = np.arange(len(rows)) * 3
    together = measure(rows, packing, seed=1, epoch=2, images_seen=seen, patch_size=size)
    parts = [
        measure(rows.take(slice(i, i + 1)), packing, seed=1, epoch=2, images_seen=seen[i : i + 1], patch_size=size)
        for i in range(len(rows))
    ]
    if not parts:
        return
    images = Images.concatenate([part.images for part in parts])
    for f in fields(Images):
        np.testing.assert_array_equal(getattr(together.images, f.name), getattr(images, f.name))
    for name in ("oversize", "undersize", "few"):
        assert getattr(together, name).tolist() == [getattr(part, name)[0] for part in parts]


def clip(frames: int, width: int = 320, height: int = 240) -> Rows:
    return samples_of([[(width, height)]], frames=[[frames]])


def test_frames_of_a_video_are_chosen_before_they_are_measured() -> None:
    images = measure(clip(10_000), Packing(seq_len=8192, frames=Frames(5)), seed=0, epoch=0).images
    assert images.page is not None
    assert images.frame is not None
    assert images.page.tolist() == [1000, 3000, 5000, 7000, 9000]
    assert images.frame.tolist() == [0, 1, 2, 3, 4]
    assert len(set(images.key.tolist())) == 5  # which tokens stay differs from frame to frame


def test_rows_with_pages_and_frames_join_in_order() -> None:
    rows = samples_of([[(64, 64), (32, 64)], [(64, 32)]], frames=[[3, 1], [2]])
    images = plan(rows, Packing()).images
    assert images.page is not None
    assert images.row.tolist() == [0, 0, 0, 1, 2, 2]
    assert images.page.tolist() == [0, 1, 2, 0, 0, 1]
    rows.page[:] = [4, 0, 7]  # type: ignore[index]
    assert plan(rows, Packing(frames=Frames(2, "first"))).images.page.tolist() == [4, 5, 7, 8]  # type: ignore[union-attr]


def test_random_frames_change_with_the_epoch_and_the_seed() -> None:
    packing = Packing(seq_len=8192, frames=Frames(4, "random"))
    found = {
        tuple(plan(clip(500), packing, seed=seed, epoch=epoch).images.page.tolist())  # type: ignore[union-attr]
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(found) == 9


@pytest.mark.parametrize("resolution", [RandomResizedCrop(max_tokens=50), SampleSide(low=64, high=300)])
def test_images_of_a_sample_are_cut_alike_and_drop_the_same_share(resolution: Any) -> None:
    packing = Packing(seq_len=4096, resolution=resolution, token_drop=BetaDrop(0.5, 0.8), fill="none")
    images = measure(clip(6), packing, seed=0, epoch=0).images
    for column in (images.box, images.size, images.grid, images.keep):
        assert len(np.unique(column, axis=0)) == 1
    two = measure(samples_of([[(320, 240)], [(320, 240)]]), packing, seed=0, epoch=0).images
    assert len(np.unique(two.size, axis=0)) == 2


def test_views_draw_their_own_crops_by_their_own_policies_and_follow_each_other() -> None:
    rows = samples_of([[(640, 480), (300, 500)], [(640, 480)]])
    images = measure(rows, Packing(seq_len=2048, views=VIEWS), seed=5, epoch=1).images
    assert images.frame is not None
    assert images.row.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert images.frame.tolist() == [*range(10), *range(5)]
    view = images.frame % VIEWS.count
    tokens = images.grid.prod(1)
    assert tokens[view < 2].max() <= 16
    assert tokens[view >= 2].max() <= 4
    assert len(np.unique(images.box[:5], axis=0)) == 5
    assert len(np.unique(images.key)) == 15
    area = images.box[:, 2] * images.box[:, 3] / (rows.width * rows.height)[[0, 1, 2]].repeat(5)
    assert (area[view < 2] > 0.2).all()


def test_the_first_view_is_the_crop_without_views() -> None:
    rows, crop = random_rows(60), RandomResizedCrop(max_tokens=50)
    views = plan(rows, Packing(views=Views((1, crop)))).images
    alone = plan(rows, Packing(resolution=crop)).images
    for name in ("row", "key", "box", "size", "grid", "keep"):
        np.testing.assert_array_equal(getattr(views, name), getattr(alone, name))
    assert views.frame is not None
    assert not views.frame.any()


def test_a_view_of_the_whole_image_beside_crops_has_the_whole_as_its_box() -> None:
    views = Views((1, FitTokens(20)), (2, RandomResizedCrop(max_tokens=9)))
    images = plan(Rows.of_sizes([300], [200]), Packing(views=views)).images
    assert images.box[0].tolist() == [0, 0, 300, 200]
    assert images.box[1].tolist() != images.box[2].tolist()


@pytest.mark.parametrize("resolution", [Native(), Native(edge="resize"), FitTokens(900), RandomResizedCrop()])
@pytest.mark.parametrize("token_drop", [ConstantDrop(0), BetaDrop(0.3, 0.6)])
def test_shrinking_keeps_equal_frames_equal_and_fills_most_of_the_pack(resolution: Any, token_drop: Any) -> None:
    packing = Packing(seq_len=1024, resolution=resolution, token_drop=token_drop, fill="none")
    made = plan(clip(8, 1200, 900), packing)
    assert made.oversize.tolist() == [0]
    assert len(made.images) == 8
    assert len(np.unique(made.images.size, axis=0)) == len(np.unique(made.images.keep)) == 1
    assert 0.8 * 1024 < made.tokens()[0] <= 1024


def test_shrinking_uses_one_scale_for_pages_of_different_sizes() -> None:
    rows = samples_of([[(1600, 1200), (800, 600), (400, 300)]])
    size = plan(rows, Packing(seq_len=2048, resolution=Native(edge="pad"))).images.size
    scale = size[:, 0] / rows.width
    assert scale.max() < 0.75
    assert scale.max() / scale.min() < 1.1  # as near as whole patches allow


def test_an_oversize_sample_drops_tokens_evenly_and_every_image_keeps_one() -> None:
    rows = samples_of([[(320, 320)] * 3 + [(16, 16)]])
    keep = plan(rows, Packing(seq_len=100, oversize="drop")).images.keep.tolist()
    assert sum(keep) == 100
    assert keep[3] == 1
    assert max(keep[:3]) - min(keep[:3]) <= 1


@pytest.mark.parametrize("views", [None, Views((1, FitTokens(4)), (1, FitTokens(1)))])
def test_of_more_images_than_a_pack_holds_evenly_spaced_ones_stay(views: Views | None) -> None:
    made = plan(clip(100), Packing(seq_len=4096, max_images=8, oversize="drop", views=views))
    assert made.oversize.tolist() == [0]
    assert made.images.page is not None
    pages = made.images.page.tolist()
    assert pages == ([6, 18, 31, 43, 56, 68, 81, 93] if views is None else [12, 12, 37, 37, 62, 62, 87, 87])
    assert made.images.frame.tolist() == list(range(8))  # type: ignore[union-attr]


def test_an_oversize_sample_is_skipped_and_named_by_its_first_row() -> None:
    rows = samples_of([[(64, 64)], [(64, 64), (320, 320)], [(64, 64)] * 7], start=10)
    made = plan(rows, Packing(seq_len=200, max_images=6, oversize="skip"))
    assert made.skipped.tolist() == made.oversize.tolist() == [11, 13]
    assert made.images.row.tolist() == [10]
    few = plan(rows, Packing(seq_len=2000, frames=Frames(2, short="skip")))
    assert few.skipped.tolist() == few.few.tolist() == [10]
    assert few.skipped_by_reason()["frames"].tolist() == [10]


def test_a_sample_with_one_image_below_a_patch_is_skipped_whole() -> None:
    rows = samples_of([[(64, 64), (8, 8)], [(64, 64)]])
    made = plan(rows, Packing(undersize="skip"))
    assert made.skipped.tolist() == made.undersize.tolist() == [0]
    assert made.images.row.tolist() == [2]
    chosen = plan(rows, Packing(undersize="error", frames=Frames(1, "first")))  # the small one is not used
    assert chosen.images.row.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("rows", "changes", "says"),
    [
        (clip(1000), {}, "the sample of row 0 has 1000 images, more than max_images 64 (1 of 1 samples do)"),
        (clip(1000), {"oversize": "error"}, "choose some with Packing(frames=Frames(64)), raise max_images, or choose"),
        (clip(20), {"seq_len": 16}, "has 20 images, more than seq_len 16"),
        (
            clip(20, 48, 32),
            {"seq_len": 64, "grid_multiple": 2},
            "the sample of row 0 has 20 images of at least 4 tokens each, 80 in all, more than seq_len 64",
        ),
        (
            samples_of([[(160, 160)] * 2]),
            {"seq_len": 128, "oversize": "error"},
            "the sample of row 0 has 200 tokens in 2 images, more than seq_len 128 (1 samples do)",
        ),
        (samples_of([[(160, 160)] * 2]), {"fill": "rescale"}, "samples have several images; use fill='trim'"),
    ],
)
def test_a_sample_that_no_pack_can_hold_is_an_error_with_its_remedy(
    rows: Rows, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        plan(rows, Packing(**changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"frames": 8}, "frames is 8; it must be Frames(...), such as Frames(8), or None"),
        ({"views": (2, Native())}, "it must be Views(...)"),
        ({"views": VIEWS, "resolution": FitTokens(9)}, "each group of views has its own policy: leave resolution out"),
        ({"frames": Frames(100)}, "100 frames are 100 images per sample, more than max_images 64"),
        ({"frames": Frames(20), "views": VIEWS}, "20 frames x 5 views are 100 images per sample"),
        ({"views": VIEWS, "seq_len": 4}, "5 views are 5 images per sample, more than seq_len 4"),
        ({"views": VIEWS, "fill": "rescale"}, "use fill='trim'"),
        ({"frames": Frames(2), "fill": "rescale"}, "use fill='trim'"),
        ({"views": Views((2, Square(100)))}, "Square(100) is not a multiple of patch_size"),
        ({"scope": "document"}, "scope is 'document'; it must be one of 'image', 'sample'"),
    ],
)
def test_a_packing_whose_frames_or_views_contradict_another_field_is_an_error(
    changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        Packing(**changes)


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


def test_attention_cost_is_that_of_the_scope() -> None:
    rows = samples_of([[(64, 64), (32, 32)], [(16, 16)]])  # 16 + 4 tokens, and 1
    made = plan(rows, Packing())
    assert (made.scope, made.attention_cost().tolist()) == ("image", [16**2 + 4**2 + 1])
    made = plan(rows, Packing(scope="sample"))
    assert (made.scope, made.attention_cost().tolist()) == ("sample", [20**2 + 1])
    assert made.take(0, 1).attention_cost().tolist() == [20**2 + 1]
    assert Plan.concatenate([made, made]).attention_cost().tolist() == [20**2 + 1] * 2
    assert made.model_cost(100)[0] == 21 + 401 / 600


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
