"""Measuring samples: the sizes, kept tokens and treatment of each image."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from patchnpack.packer import (
    BetaDrop,
    ConstantDrop,
    FitTokens,
    Frames,
    Images,
    Native,
    Packing,
    RandomResizedCrop,
    Rows,
    SampleSide,
    Views,
    plan,
)
from patchnpack.packer.planning.measure import measure
from tests.packer.planning.plans import (
    VIEWS,
    clip,
    images_equal,
    random_rows,
    rows_of,
    sample_packings,
    sample_sizes,
    samples_of,
)

EDGES = [Native(edge="pad"), Native(edge="crop"), Native(edge="resize"), FitTokens(500), FitTokens(500, edge="pad"),
         FitTokens(500, upsample=True)]  # fmt: skip
EXTREME = [(1, 5000), (5000, 1), (48, 5000), (5000, 48), (5000, 5000), (48, 48), (16, 48), (333, 777), (48, 240_000)]
every_edge = pytest.mark.parametrize("resolution", EDGES, ids=str)


def _exactly(message: str) -> str:
    return f"^{re.escape(message)}$"


def _mixed_rows(resolution: Any) -> Rows:
    narrow = isinstance(resolution, Native) and resolution.edge == "crop"
    extreme = [size for size in EXTREME if min(size) >= 48] if narrow else EXTREME
    return rows_of(extreme + np.random.default_rng(3).integers(48, 800, (100, 2)).tolist())


@every_edge
@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("seq_len", [9, 50, 100])
@pytest.mark.parametrize("drop", [0, 0.5])
def test_no_image_is_over_seq_len_after_any_policy(resolution: Any, m: int, seq_len: int, drop: float) -> None:
    rows = _mixed_rows(resolution)
    base = Packing(seq_len=seq_len, resolution=resolution, grid_multiple=m, token_drop=ConstantDrop(drop))
    tokens = resolution.sizes(rows.width, rows.height, 16, m).grid.prod(1)
    over = rows.row[base.token_drop.keep(tokens, np.zeros(len(rows), np.uint64), seq_len) > seq_len]
    assert len(over) > 20
    for policy in ("shrink", "drop", "skip"):
        made = plan(rows, base.replace(oversize=policy))
        assert (made.images.keep <= seq_len).all()
        assert (made.images.keep >= 1).all()
        assert (made.images.grid % m == 0).all()
        assert (made.tokens() <= seq_len).all()
        np.testing.assert_array_equal(made.oversize, over)
        np.testing.assert_array_equal(made.skipped, over if policy == "skip" else [])
        if policy != "drop" and not drop:
            assert (made.images.grid.prod(1) <= seq_len).all()


@every_edge
def test_each_oversize_policy_leaves_images_that_fit_unchanged(resolution: Any) -> None:
    rows = _mixed_rows(resolution)
    base = Packing(seq_len=100, resolution=resolution)
    free = measure(rows, base.replace(seq_len=10**6), seed=0, epoch=0)[0]
    fits = ~np.isin(rows.row, plan(rows, base).oversize)
    assert fits.any() or getattr(resolution, "upsample", False)
    for policy in ("shrink", "drop", "skip"):
        images, over, *_ = measure(rows, base.replace(oversize=policy), seed=0, epoch=0)
        np.testing.assert_array_equal(over, ~fits)
        assert images_equal(images.take(np.isin(images.row, rows.row[fits])), free.take(fits))


def test_shrink_gives_the_largest_size_that_fits() -> None:
    rows = rows_of([(300, 200), (2000, 100), (48, 240_000)])
    images = measure(rows, Packing(seq_len=24), seed=0, epoch=0)[0]
    assert images.grid.tolist() == [[6, 4], [20, 1], [1, 24]]
    assert images.size.tolist() == [[96, 64], [320, 16], [1, 384]]


def test_drop_keeps_the_grid_and_fills_a_pack() -> None:
    images = measure(rows_of([(320, 320), (64, 64)]), Packing(seq_len=100, oversize="drop"), seed=0, epoch=0)[0]
    assert images.grid.tolist() == [[20, 20], [4, 4]]
    assert images.keep.tolist() == [100, 16]


def test_drop_keeps_the_tokens_of_the_token_drop_where_they_fit() -> None:
    packing = Packing(seq_len=100, oversize="drop", token_drop=ConstantDrop(0.9))
    assert measure(rows_of([(320, 320)]), packing, seed=0, epoch=0)[0].keep.tolist() == [40]


def test_oversize_error_names_the_row_its_size_its_tokens_the_limit_and_the_remedy() -> None:
    rows = rows_of([(64, 64), (320, 160), (640, 640)], start=7)
    with pytest.raises(
        ValueError,
        match=_exactly(
            "row 8 of 320x160 pixels has 200 tokens, more than seq_len 100 (2 rows do); raise seq_len or patch_size, "
            "or choose oversize='shrink', 'drop' or 'skip'"
        ),
    ):
        plan(rows, Packing(seq_len=100, oversize="error"))
    assert len(plan(rows_of([(64, 64)]), Packing(seq_len=100, oversize="error"))) == 1


def test_an_image_smaller_than_a_patch_is_an_error_where_it_is_asked_for() -> None:
    with pytest.raises(ValueError, match="row 1 of 10x12 pixels is smaller than a patch of 16x16"):
        plan(Rows.of_sizes([64, 10], [64, 12]), Packing(undersize="error"))


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
    for name in ("oversize", "undersize"):
        assert getattr(together, name).tolist() == [getattr(part, name)[0] for part in parts]
    few = np.zeros(len(parts), np.bool_) if together.few is None else together.few
    assert few.tolist() == [part.few is not None and bool(part.few[0]) for part in parts]


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


def test_a_sample_that_is_skipped_for_one_reason_is_not_refused_for_another() -> None:
    short = Packing(seq_len=16, frames=Frames(4, short="skip"), oversize="error")
    measured = measure(samples_of([[(64, 64)] * 2]), short, seed=0, epoch=0)  # 32 tokens
    assert (measured.few is not None and measured.few.tolist(), measured.oversize.tolist()) == ([True], [False])
    tiny = Packing(seq_len=64, max_images=2, undersize="skip", oversize="error")
    measured = measure(samples_of([[(4, 4), (64, 64), (64, 64)]]), tiny, seed=0, epoch=0)
    assert (measured.undersize.tolist(), measured.oversize.tolist()) == ([True], [False])
