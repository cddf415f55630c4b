"""The images of samples: chosen frames, pages, and views."""

from __future__ import annotations

import pytest

from patchnpack.packer import (
    FitTokens,
    Frames,
    Packing,
    Rows,
    Views,
    plan,
)
from patchnpack.packer.planning.measure import measure
from patchnpack.packer.planning.members import members_of
from tests.packer.planning.plans import clip, samples_of


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


@pytest.mark.parametrize("views", [None, Views((1, FitTokens(4)), (1, FitTokens(1)))])
def test_of_more_images_than_a_pack_holds_evenly_spaced_ones_stay(views: Views | None) -> None:
    made = plan(clip(100), Packing(seq_len=4096, max_images=8, oversize="drop", views=views))
    assert made.oversize.tolist() == [0]
    assert made.images.page is not None
    pages = made.images.page.tolist()
    assert pages == ([6, 18, 31, 43, 56, 68, 81, 93] if views is None else [12, 12, 37, 37, 62, 62, 87, 87])
    assert made.images.frame.tolist() == list(range(8))  # type: ignore[union-attr]


def test_single_images_need_no_columns_of_samples() -> None:
    rows = Rows.of_sizes([32, 48], [32, 32])
    for packing in (Packing(), Packing(frames=Frames(1))):
        members = members_of(rows, packing, seed=0, epoch=0)
        assert all(
            each is None for each in (members.offsets, members.page, members.frame, members.few, members.crowded)
        )
        measured = measure(rows, packing, seed=0, epoch=0)
        assert measured.few is None
        assert (measured.images.page, measured.images.frame) == (None, None)
        assert measured.skipped(packing).tolist() == [False, False]
