from __future__ import annotations

import pickle
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
    Images,
    Native,
    Packing,
    Plan,
    Planner,
    RandomResizedCrop,
    Rows,
    SampleSide,
    ScheduledDrop,
    ScheduledResolution,
    Square,
    _kernels,
    plan,
)
from patchnpack.packer.binpacking import reference_fill
from patchnpack.packer.binpacking.algorithms import CHOICES, Algorithm
from patchnpack.packer.binpacking.packers import reference, reference_priced
from patchnpack.packer.binpacking.patterns import pack_by_patterns
from patchnpack.packer.binpacking.pricing.prices import Prices, price_table
from patchnpack.packer.planning.measure import measure
from patchnpack.packer.policies import reference_draws
from patchnpack.packer.policies.resolution import Resolution
from patchnpack.packer.policies.token_drop import TokenDrop
from tests.packer.planning.plans import assert_same_plan, joined, random_rows, rows_of, take

ALGORITHMS = get_args(Algorithm)
DROPS: list[TokenDrop] = [ConstantDrop(0), ConstantDrop(0.5), ConstantDrop(0.9), BetaDrop(0.5, 0.9),
                          ScheduledDrop(drop=ConstantDrop(0.9), start=1, end=0, midpoint=20, tau=5)]  # fmt: skip
RESOLUTIONS: list[Resolution] = [
    Native(),
    Native(edge="crop"),
    Native(edge="resize"),
    Native(max_tokens=30),
    FitTokens(60),
    FitTokens(60, edge="pad"),
    FitTokens(60, upsample=True),
    Square(96),
    SampleSide(low=32, high=160),
    RandomResizedCrop(max_tokens=60),
    ScheduledResolution(((0, FitTokens(20)), (15, RandomResizedCrop()))),
]


def _exactly(message: str) -> str:
    return f"^{re.escape(message)}$"


def _equal(one: Images, other: Images) -> bool:
    return all(np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(Images))


@st.composite
def packings(draw: st.DrawFn) -> Packing:
    return Packing(
        seq_len=draw(st.integers(36, 80)),
        resolution=draw(st.sampled_from(RESOLUTIONS)),
        oversize=draw(st.sampled_from(["shrink", "drop", "skip"])),
        token_drop=draw(st.sampled_from(DROPS)),
        algorithm=draw(st.sampled_from(ALGORITHMS)),
        lookahead=draw(st.sampled_from([1, 2, 5, 16, 256])),
        max_images=draw(st.sampled_from([1, 3, 64])),
        fill=draw(st.sampled_from(["none", "undrop"])),  # the others are in test_fill.py
        grid_multiple=draw(st.sampled_from([1, 2, 3])),
    )


sizes = st.lists(st.tuples(st.integers(48, 400), st.integers(48, 400)), max_size=40)


@given(sizes, packings())
@settings(max_examples=120, deadline=None)
def test_each_row_is_in_exactly_one_pack_or_skipped_and_no_pack_is_empty_or_over_a_limit(
    sizes: list[tuple[int, int]], packing: Packing
) -> None:
    rows = rows_of(sizes, start=100)
    made = plan(rows, packing)
    assert sorted([*made.images.row.tolist(), *made.skipped.tolist()]) == rows.row.tolist()
    assert set(made.skipped.tolist()) <= set(made.oversize.tolist())
    assert made.offsets[0] == 0
    assert made.offsets[-1] == len(made.images)
    for i in range(len(made)):
        pack = made.pack(i)
        assert 1 <= len(pack) <= packing.max_images
        assert pack.keep.sum() == made.tokens()[i] <= packing.seq_len
        assert sum(n * n for n in pack.keep.tolist()) == made.attention_cost()[i]
    assert (made.images.keep >= 1).all()
    assert (made.images.keep <= made.images.grid.prod(1)).all()


@given(sizes, packings(), st.integers(-5, 5), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_a_plan_is_the_reference_packing_of_rows_measured_one_by_one(
    sizes: list[tuple[int, int]], packing: Packing, seed: int, epoch: int
) -> None:
    rows = rows_of(sizes)
    start = epoch * len(rows)
    measured = [
        measure(take(rows, [i]), packing, seed=seed, epoch=epoch, images_seen=np.array([start + i]))
        for i in range(len(rows))
    ]
    alone = [images for images, over, _, _ in measured if packing.oversize != "skip" or not over[0]]
    images = Images.concatenate([*alone, plan(rows_of([]), packing).images])
    made = plan(rows, packing, seed=seed, epoch=epoch)
    assert made.algorithm in ({packing.algorithm} if packing.algorithm != "auto" else set(CHOICES))
    limits = (images.keep.tolist(), packing.seq_len, packing.max_images, packing.lookahead, True)
    if made.algorithm == "priced" and 0 < len(images) <= packing.lookahead:  # all in view
        order, offsets = pack_by_patterns(images.keep, packing.seq_len, packing.max_images)
        packs = [order[low:high].tolist() for low, high in pairwise(offsets)]
    elif made.algorithm == "priced":
        prices = Prices.of_counts(np.bincount(images.keep), packing.seq_len)
        each = (price_table(prices, packing.seq_len)[0] // (packing.seq_len + 1)).tolist()
        packs = reference_priced.priced(*limits, None, each)
    else:
        packs = getattr(reference, made.algorithm)(*limits)
    assert len(made) == len(packs)
    for i, pack in enumerate(packs):
        expected = images.take(np.array(pack))
        if packing.fill == "undrop":
            tokens, cap = expected.grid.prod(1).tolist(), packing.token_drop.cap
            if cap is not None:
                tokens = [min(n, max(kept, cap)) for n, kept in zip(tokens, expected.keep.tolist(), strict=True)]
            expected.keep[:] = reference_fill.undrop(tokens, expected.keep.tolist(), packing.seq_len)
        assert _equal(made.pack(i), expected)


@given(sizes, packings(), st.data())
@settings(max_examples=80, deadline=None)
def test_rows_added_in_parts_make_the_packs_of_one_plan(
    sizes: list[tuple[int, int]], packing: Packing, data: st.DataObject
) -> None:
    rows = rows_of(sizes)
    each = list(range(1, len(rows)))
    cuts = data.draw(st.one_of(st.just(each), st.lists(st.integers(0, len(rows)), max_size=6).map(sorted)))
    planner = Planner(packing, seed=3, epoch=1, start=len(rows))
    parts = [planner.add(take(rows, slice(a, b))) for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    assert_same_plan(joined([*parts, planner.finish()]), plan(rows, packing, seed=3, epoch=1))
    assert len(planner.finish()) == 0, "the waiting room is empty after finish"


def test_the_planner_emits_packs_before_it_is_finished() -> None:
    planner = Planner(Packing(seq_len=64, lookahead=8, algorithm="largest_fit"))
    assert len(planner.add(random_rows(100))) > 20


@given(sizes, packings())
@settings(max_examples=40, deadline=None)
def test_plan_is_pure(sizes: list[tuple[int, int]], packing: Packing) -> None:
    rows, untouched = rows_of(sizes), rows_of(sizes)
    for column in rows._columns().values():
        column.setflags(write=False)
    state = pickle.dumps(np.random.get_state())  # noqa: NPY002 - the global generator must not move
    first = plan(rows, packing, seed=1, epoch=2)
    assert pickle.dumps(np.random.get_state()) == state  # noqa: NPY002
    assert_same_plan(first, plan(rows, packing, seed=1, epoch=2))
    for name, column in rows._columns().items():
        np.testing.assert_array_equal(column, getattr(untouched, name))


def test_the_draws_of_a_row_depend_on_its_row_id_and_not_its_position() -> None:
    rows = random_rows(50)
    packing = Packing(token_drop=ConstantDrop(0.5))
    order = np.random.default_rng(1).permutation(50)
    shuffled = take(rows, order)
    renumbered = Rows(row=np.arange(1000, 1050), row_id=shuffled.row_id, width=shuffled.width, height=shuffled.height)
    here, there = (measure(r, packing, seed=4, epoch=1)[0] for r in (rows, renumbered))
    np.testing.assert_array_equal(there.key, here.key[order])
    np.testing.assert_array_equal(there.keep, here.keep[order])
    np.testing.assert_array_equal(there.grid, here.grid[order])


def test_another_seed_or_epoch_changes_the_draws_and_no_size() -> None:
    rows, packing = random_rows(50), Packing(token_drop=ConstantDrop(0.5))
    base, *others = (measure(rows, packing, seed=s, epoch=e)[0] for s, e in ((0, 0), (1, 0), (0, 1), (-1, 0)))
    for other in others:
        assert not np.isin(other.key, base.key).any()
        np.testing.assert_array_equal(other.grid, base.grid)
    kept = [_kernels.kept_tokens(images.key[0], 100, 50).tolist() for images in (base, *others)]
    assert len({tuple(k) for k in kept}) == 4


def test_undrop_fills_packs_and_only_adds_tokens() -> None:
    rows = random_rows(400, 48, 500)
    drawn = Packing(seq_len=512, token_drop=ConstantDrop(0.5), fill="none")
    less, more = plan(rows, drawn), plan(rows, drawn.replace(fill="undrop"))
    np.testing.assert_array_equal(more.offsets, less.offsets)
    np.testing.assert_array_equal(more.images.row, less.images.row)
    assert (more.tokens()[:-1] == 512).all()
    assert less.tokens().sum() < more.tokens().sum()
    for key, grid, few, many in zip(more.images.key, more.images.grid, less.images.keep, more.images.keep, strict=True):
        kept = [set(_kernels.kept_tokens(key, grid.prod(), n).tolist()) for n in (few, many)]
        assert kept[0] <= kept[1]


def test_kept_tokens_of_a_plan_equal_the_reference() -> None:
    images = plan(random_rows(30, 48, 300), Packing(token_drop=ConstantDrop(0.7), fill="none")).images
    for i in range(len(images)):
        tokens, keep = int(images.grid[i].prod()), int(images.keep[i])
        assert keep == round(tokens * (1 - 0.7))
        found = _kernels.kept_tokens(images.key[i], tokens, keep).tolist()
        assert found == reference_draws.kept_tokens(int(images.key[i]), tokens, keep)


def test_a_plan_has_the_documented_dtypes_and_shapes() -> None:
    for rows in (random_rows(40), rows_of([])):
        made = plan(rows, Packing(token_drop=ConstantDrop(0.2)))
        n = len(rows)
        assert made.images.page is made.images.frame is None  # one image per sample
        columns = {f.name: getattr(made.images, f.name) for f in fields(Images) if f.name not in ("page", "frame")}
        assert {name: (column.dtype, column.shape) for name, column in columns.items()} == {
            "row": (np.int64, (n,)),
            "key": (np.uint64, (n,)),
            "box": (np.int32, (n, 4)),
            "size": (np.int32, (n, 2)),
            "grid": (np.int32, (n, 2)),
            "keep": (np.int32, (n,)),
        }  # fmt: skip
        assert made.offsets.dtype == made.skipped.dtype == made.oversize.dtype == made.tokens().dtype == np.int64
        assert made.offsets.shape == (len(made) + 1,)
        assert (str(made.patch_size.dtype), made.patch_size.shape) == ("int32", (len(made),))
        assert made.tokens().shape == (len(made),)


# Oversize

EDGES = [Native(edge="pad"), Native(edge="crop"), Native(edge="resize"), FitTokens(500), FitTokens(500, edge="pad"),
         FitTokens(500, upsample=True)]  # fmt: skip
EXTREME = [(1, 5000), (5000, 1), (48, 5000), (5000, 48), (5000, 5000), (48, 48), (16, 48), (333, 777), (48, 240_000)]

every_edge = pytest.mark.parametrize("resolution", EDGES, ids=str)


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
        assert _equal(images.take(np.isin(images.row, rows.row[fits])), free.take(fits))


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


def test_plans_cut_in_pieces_and_concatenated_are_the_plan() -> None:
    rows = Rows.of_sizes(np.arange(16, 216, 2), np.arange(220, 20, -2))
    made = plan(rows, Packing(seq_len=50, patch_size=16, oversize="skip"))
    assert len(made.skipped)
    pieces = [made.take(0, 1), made.take(1, 1), made.take(1, 7), made.take(7, len(made))]
    assert [len(piece) for piece in pieces] == [1, 0, 6, len(made) - 7]
    assert all(len(piece.skipped) == len(piece.oversize) == 0 for piece in pieces)
    again = Plan.concatenate(pieces)
    assert again.algorithm == made.algorithm
    for name in ("offsets", "patch_size"):
        assert getattr(again, name).tolist() == getattr(made, name).tolist()
    for name in ("row", "key", "box", "size", "grid", "keep"):
        assert getattr(again.images, name).tolist() == getattr(made.images, name).tolist()
    twice = Plan.concatenate([made, made])
    assert twice.skipped.tolist() == made.skipped.tolist() * 2
    assert [twice.pack(len(made) + i).row.tolist() for i in (0, 3)] == [made.pack(i).row.tolist() for i in (0, 3)]


def test_an_image_smaller_than_a_patch_is_an_error_where_it_is_asked_for() -> None:
    with pytest.raises(ValueError, match="row 1 of 10x12 pixels is smaller than a patch of 16x16"):
        plan(Rows.of_sizes([64, 10], [64, 12]), Packing(undersize="error"))


def test_columns_of_unequal_length_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"the columns have lengths .*'width': 2, 'height': 3"):
        Rows.of_sizes([1, 2], [1, 2, 3])


def test_of_sizes_numbers_the_rows_from_0() -> None:
    rows = Rows.of_sizes([64, 32], [16, 48])
    assert len(rows) == 2
    assert rows.offsets is None
    assert {name: (column.dtype.type, column.tolist()) for name, column in rows._columns().items()} == {
        "row": (np.int64, [0, 1]),
        "row_id": (np.uint64, [0, 1]),
        "width": (np.int32, [64, 32]),
        "height": (np.int32, [16, 48]),
    }
