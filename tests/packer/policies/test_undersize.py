"""Images smaller than a patch, in every resolution policy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchnpack.packer import (
    FitTokens,
    Native,
    Packing,
    PatchSizes,
    RandomResizedCrop,
    Rows,
    SampleSide,
    ScheduledResolution,
    Square,
    plan,
)

POLICIES = [
    Native(),
    Native(edge="crop"),
    Native(edge="resize"),
    Native(max_tokens=20),
    Native(max_tokens=20, edge="crop"),
    FitTokens(40),
    FitTokens(40, edge="pad"),
    FitTokens(40, upsample=True),
    SampleSide(low=8, high=90),
    SampleSide(low=8, high=90, upsample=False),
    SampleSide(low=8, high=90, edge="pad"),
    RandomResizedCrop(),
    RandomResizedCrop(max_tokens=20),
    RandomResizedCrop(max_tokens=20, upsample=True),
    Square(96),
    ScheduledResolution(((0, FitTokens(40)), (3, Native(edge="crop")))),
]
TINY = [(1, 1), (8, 8), (15, 15), (1, 15), (2, 9)]
SHORT = [(1, 5000), (5000, 1), (15, 40), (40, 15), (1, 16)]
every_policy = pytest.mark.parametrize("resolution", POLICIES, ids=str)


def rows_of(*sizes: tuple[int, int]) -> Rows:
    return Rows.of_sizes(*np.array(sizes).T)


@every_policy
@pytest.mark.parametrize("m", [1, 2])
def test_pad_gives_every_image_at_least_one_cell(resolution: Any, m: int) -> None:
    rows = rows_of(*TINY, *SHORT, (64, 64))
    made = plan(rows, Packing(seq_len=64, resolution=resolution, grid_multiple=m))
    assert sorted(made.images.row) == list(range(len(rows)))
    assert len(made.skipped) == 0
    assert (made.images.grid >= m).all()
    assert (made.images.size >= 1).all()
    assert (made.images.box[:, 2:] >= 1).all()
    # What is placed covers every patch of the grid at least in part.
    assert (made.images.size > (made.images.grid - m) * 16).all()


def test_a_tiny_image_is_treated_as_an_image_with_one_short_side() -> None:
    for edge, size in (("pad", [8, 8]), ("crop", [8, 8]), ("resize", [16, 16])):
        sizes = Native(edge=edge).sizes(np.array([8, 8]), np.array([8, 40]), 16)  # type: ignore[arg-type]
        assert sizes.size[0].tolist() == size
        assert sizes.size[1, 0] == size[0]
        assert sizes.grid[0].tolist() == [1, 1]


@every_policy
def test_skip_leaves_out_what_error_refuses_and_counts_it(resolution: Any) -> None:
    rows = rows_of((64, 64), *TINY, *SHORT, (16, 16))
    packing = Packing(seq_len=64, resolution=resolution)
    either = "crop" in repr(resolution) and "Native" in repr(resolution)  # a single short side is enough
    expected = [row for row in range(1, 11) if either or row <= len(TINY)]
    padded, skipped = plan(rows, packing), plan(rows, packing.replace(undersize="skip"))
    assert padded.undersize.tolist() == skipped.undersize.tolist() == expected
    assert skipped.skipped_by_reason()["undersize"].tolist() == expected
    assert sorted([*skipped.images.row, *skipped.skipped]) == list(range(len(rows)))
    with pytest.raises(ValueError, match=rf"row 1 of 1x1 pixels is smaller than a patch of 16x16 \({len(expected)} of"):
        plan(rows, packing.replace(undersize="error"))
    plan(rows.take(np.array([0, 11])), packing.replace(undersize="error"))


def test_the_error_names_the_cell_of_a_grid_multiple() -> None:
    with pytest.raises(ValueError, match="row 0 of 31x20 pixels is smaller than grid_multiple 2 x 2 patches of 32x32"):
        plan(rows_of((31, 20)), Packing(grid_multiple=2, undersize="error"))


def test_the_largest_patch_size_decides() -> None:
    rows = rows_of((64, 64), (20, 20), (64, 64))
    packing = Packing(seq_len=64, patch_size=PatchSizes((8, 16, 32)))
    assert plan(rows, packing).undersize.tolist() == [1]
    made = plan(rows, packing.replace(undersize="skip"))
    assert (made.skipped.tolist(), made.undersize.tolist()) == ([1], [1])
    with pytest.raises(ValueError, match="row 1 of 20x20 pixels is smaller than a patch of 32x32"):
        plan(rows, packing.replace(undersize="error"))


def test_a_row_skipped_as_undersize_is_not_counted_as_oversize_too() -> None:
    rows = rows_of((64, 64), (20, 20), (400, 400))
    packing = Packing(seq_len=20, patch_size=PatchSizes((4, 32)), oversize="skip", undersize="skip")
    made = plan(rows, packing)
    assert {reason: found.tolist() for reason, found in made.skipped_by_reason().items()} == {
        "oversize": [0, 2],
        "undersize": [1],
    }
    kept = plan(rows, packing.replace(undersize="pad"))
    assert {reason: found.tolist() for reason, found in kept.skipped_by_reason().items()} == {
        "oversize": [0, 1, 2],
        "undersize": [],
    }


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=40),
    st.sampled_from(POLICIES),
    st.sampled_from(["pad", "skip"]),
    st.sampled_from(["shrink", "drop", "skip"]),
    st.sampled_from(["none", "undrop", "trim", "rescale"]),
    st.sampled_from([16, PatchSizes((8, 16))]),
)
@settings(max_examples=150, deadline=None)
def test_each_row_is_in_one_pack_or_skipped_for_one_reason(
    sizes: list[tuple[int, int]], resolution: Any, undersize: Any, oversize: Any, fill: Any, patch_size: Any
) -> None:
    if fill == "rescale" and isinstance(resolution, Square | ScheduledResolution):
        fill = "trim"
    packing = Packing(
        seq_len=144 if isinstance(resolution, Square) else 12,
        resolution=resolution,
        undersize=undersize,
        oversize=oversize,
        fill=fill,
        patch_size=patch_size,
    )
    made = plan(rows_of(*sizes), packing)
    reasons = made.skipped_by_reason()
    together = [*made.images.row, *reasons["oversize"], *reasons["undersize"]]
    assert sorted(together) == list(range(len(sizes)))
    assert (made.images.keep >= 1).all()
    assert (made.tokens() <= packing.seq_len).all()
    assert oversize == "skip" or not len(reasons["oversize"])
    assert undersize == "skip" or not len(reasons["undersize"])
