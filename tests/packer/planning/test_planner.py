"""Planning rows of one image each. `test_samples.py` plans samples of several."""

from __future__ import annotations

import pickle
from dataclasses import fields
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from patchnpack.packer import (
    BetaDrop,
    ConstantDrop,
    FitTokens,
    Images,
    Native,
    Packing,
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
from patchnpack.packer.binpacking.algorithms import CHOICES
from patchnpack.packer.binpacking.packers import reference, reference_priced
from patchnpack.packer.binpacking.patterns import pack_by_patterns
from patchnpack.packer.binpacking.pricing.prices import Prices, price_table
from patchnpack.packer.planning.measure import measure
from patchnpack.packer.policies import reference_draws
from patchnpack.packer.policies.resolution import Resolution
from patchnpack.packer.policies.token_drop import TokenDrop
from tests.packer.planning.plans import ALGORITHMS, assert_same_plan, images_equal, joined, random_rows, rows_of, take

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
        assert images_equal(made.pack(i), expected)


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
        assert made.images.page is made.images.frame is made.images.flip is None  # one image per sample, no flips
        columns = {
            f.name: getattr(made.images, f.name) for f in fields(Images) if f.name not in ("page", "frame", "flip")
        }
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
