from __future__ import annotations

import numpy as np
import pytest

from patchnpack.packer import Frames, Images, Packing, Rows, Views
from patchnpack.packer.planning.measure import measure
from patchnpack.packer.policies.flips import draw_flips, flipped_axes
from patchnpack.packer.policies.resolution import FitTokens

IDS = np.arange(20_000, dtype=np.uint64)


@pytest.mark.parametrize(("flip", "vflip"), [(0.5, 0.0), (0.1, 0.9), (1.0, 0.25)])
def test_each_direction_is_drawn_with_its_own_probability(flip: float, vflip: float) -> None:
    axes = flipped_axes(draw_flips(IDS, flip, vflip, seed=3, epoch=1))
    assert axes.mean(0) == pytest.approx([flip, vflip], abs=0.02)
    assert axes.all(1).mean() == pytest.approx(flip * vflip, abs=0.02)


def test_draws_depend_on_seed_epoch_and_id_alone() -> None:
    flips = draw_flips(IDS, 0.5, 0.5, seed=3, epoch=1)
    assert (draw_flips(IDS[::-1], 0.5, 0.5, seed=3, epoch=1) == flips[::-1]).all()
    for other in ({"seed": 4, "epoch": 1}, {"seed": 3, "epoch": 2}):
        assert 0.2 < (draw_flips(IDS, 0.5, 0.5, **other) == flips).mean() < 0.3


def rows_of_clips(n: int, frames: int) -> Rows:
    sides = np.full(n, 64, np.int32)
    return Rows(
        row=np.arange(n),
        row_id=np.arange(n, dtype=np.uint64),
        width=sides,
        height=sides,
        page=np.zeros(n, np.int32),
        frames=np.full(n, frames, np.int32),
        offsets=np.arange(n + 1),
    )


def measured(rows: Rows, packing: Packing) -> Images:
    return measure(rows, packing, seed=5, epoch=2).images


def test_frames_of_a_sample_are_mirrored_alike() -> None:
    images = measured(rows_of_clips(200, 6), Packing(frames=Frames(4), flip=0.5, vflip=0.5))
    assert images.flip is not None
    by_sample = images.flip.reshape(200, 4)
    assert (by_sample == by_sample[:, :1]).all()
    assert len(np.unique(by_sample)) == 4


def test_each_view_draws_its_own_flip_which_all_frames_share() -> None:
    views = Views((2, FitTokens(16)), (1, FitTokens(4)))
    images = measured(rows_of_clips(200, 6), Packing(frames=Frames(4), views=views, flip=0.5))
    assert images.flip is not None
    by_view = images.flip.reshape(200, 4, 3)
    assert (by_view == by_view[:, :1]).all()
    first = by_view[:, 0]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert 0.35 < (first[:, a] == first[:, b]).mean() < 0.65


def test_without_flips_the_plan_has_no_column_and_is_what_it_was() -> None:
    rows = Rows.of_sizes([64] * 50, [48] * 50)
    plain, mirrored = measured(rows, Packing()), measured(rows, Packing(flip=0.5))
    assert plain.flip is None
    assert mirrored.flip is not None
    for name in ("row", "key", "box", "size", "grid", "keep"):
        assert (getattr(plain, name) == getattr(mirrored, name)).all()


def test_images_keep_their_flips_when_taken_and_joined() -> None:
    images = measured(Rows.of_sizes([64] * 50, [48] * 50), Packing(flip=0.5))
    plain = measured(Rows.of_sizes([64] * 2, [48] * 2), Packing())
    assert images.flip is not None
    which = np.array([7, 3, 30])
    assert (images.take(which).flip == images.flip[which]).all()
    joined = Images.concatenate([plain, images.take(which)]).flip
    assert joined is not None
    assert joined.dtype == np.uint8
    assert joined.tolist() == [0, 0, *images.flip[which]]
