from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from patchnpack.packer import (
    BetaDrop,
    ConstantDrop,
    DropToTokens,
    FitTokens,
    Images,
    Native,
    Packing,
    PatchSizes,
    Planner,
    RandomResizedCrop,
    Rows,
    SampleSide,
    ScheduledDrop,
    ScheduledResolution,
    Square,
    plan,
)
from patchnpack.packer.binpacking.algorithms import CHOICES


def _rows(n: int) -> Rows:
    """Rows of which half are 500x375, a usual size of photographs."""
    rng = np.random.default_rng(1)
    area, aspect = rng.lognormal(5.8, 1.15, n) * 256, rng.choice([1, 4 / 3, 3 / 4, 3 / 2, 2 / 3], n)
    half = rng.random(n) < 0.5
    width = np.where(half, 500, np.clip(np.sqrt(area * aspect), 60, 4000))
    return Rows.of_sizes(width, np.where(half, 375, np.clip(np.sqrt(area / aspect), 60, 4000)))


def _by_row(images: Images, column: str) -> np.ndarray:
    values: np.ndarray = getattr(images, column)[np.argsort(images.row)]
    return values


@pytest.mark.parametrize("algorithm", CHOICES)
@pytest.mark.parametrize("fill", ["trim", "rescale"])
@pytest.mark.parametrize("drop", [ConstantDrop(0), ConstantDrop(0.4)])
def test_fill_fills_packs_within_its_limits(algorithm: Any, fill: Any, drop: ConstantDrop) -> None:
    rows = _rows(6000)
    packing = Packing(seq_len=2048, algorithm=algorithm, token_drop=drop, fill=fill)
    made, plain = plan(rows, packing), plan(rows, packing.replace(fill="none"))
    assert sorted(made.images.row) == list(range(6000))
    assert (made.tokens() <= 2048).all()
    assert made.tokens()[:-1].mean() > plain.tokens()[:-1].mean()
    keep, size = (_by_row(made.images, name) for name in ("keep", "size"))
    own_keep, own_size = (_by_row(plain.images, name) for name in ("keep", "size"))
    if fill == "trim":
        np.testing.assert_array_equal(size, own_size)
        assert (keep >= own_keep - (0.05 * own_keep).astype(int)).all()
    else:
        assert 0.01 < (size != own_size).mean() < 0.99
        assert np.abs(size / own_size - 1).max() < 0.05 + 1e-9
        if not drop.rate:
            assert keep.tolist() == _by_row(made.images, "grid").prod(1).tolist()


def test_images_are_trimmed_to_close_packs_even_if_all_are_in_view() -> None:
    rows = _rows(3000)
    packing = Packing(seq_len=2048, algorithm="priced", fill="trim", lookahead=4000)
    cut = _by_row(plan(rows, packing).images, "keep") < _by_row(plan(rows, packing.replace(fill="none")).images, "keep")
    assert 10 < cut.sum() < 3000


@pytest.mark.parametrize("fill", ["trim", "rescale"])
def test_4096_slots_are_full_and_little_is_lost(fill: Any) -> None:
    rows = _rows(20_000)
    made = plan(rows, Packing(seq_len=4096, algorithm="subset_sum", fill=fill))
    # Most of the images that wait at the end have the commonest lengths.
    assert made.tokens()[:-100].mean() / 4096 > (0.9995 if fill == "trim" else 0.999)
    assert made.images.keep.sum() > 0.99 * made.images.grid.prod(1).sum()


@pytest.mark.parametrize(
    "resolution",
    [Native(), Native(edge="crop"), FitTokens(300), SampleSide(low=64, high=300), RandomResizedCrop(max_tokens=200)],
    ids=str,
)
@pytest.mark.parametrize("fill", ["trim", "rescale"])
@pytest.mark.parametrize("patch_size", [16, PatchSizes((16, 32))])
def test_fill_does_not_depend_on_how_rows_are_split_into_calls(resolution: Any, fill: Any, patch_size: Any) -> None:
    rows = _rows(300)
    packing = Packing(
        seq_len=512, patch_size=patch_size, algorithm="largest_fit", lookahead=20, resolution=resolution, fill=fill,
        token_drop=BetaDrop(0.2, 0.4),
    )  # fmt: skip
    whole, planner = plan(rows, packing, block=4), Planner(packing, share=4)
    parts = [planner.add(rows.take(slice(a, a + 50))) for a in range(0, 300, 50)] + [planner.finish()]
    for name in ("row", "keep", "grid", "size"):
        joined = np.concatenate([getattr(part.images, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(whole.images, name))
    if isinstance(resolution, FitTokens):
        assert whole.images.grid.prod(1).max() <= 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_trim": 0.0}, r"max_trim is 0\.0; it must be a share above 0 and at most 0\.5"),
        ({"max_scale": 0.6}, r"max_scale is 0\.6; it must be a share"),
        ({"max_scale": 1}, "max_scale is 1; it must be a share"),
        ({"fill": "trim", "algorithm": "first_fit"}, "is 'trim' and algorithm is 'first_fit'.*use algorithm='auto'"),
        ({"fill": "rescale", "resolution": Square(64)}, r"fill is 'rescale' and resolution is Square\(size=64\)"),
        ({"fill": "rescale", "resolution": ScheduledResolution(((0, Native()),))}, "use fill='trim'"),
    ],
)
def test_an_invalid_fill_is_a_value_error(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Packing(**options)


@pytest.mark.parametrize("fill", ["none", "undrop", "trim", "rescale"])
@pytest.mark.parametrize("resolution", [Native(), Native(edge="crop"), Native(edge="resize")], ids=str)
def test_no_fill_gives_an_image_more_tokens_than_the_cap_of_its_drop(fill: Any, resolution: Any) -> None:
    rows = _rows(500)
    for algorithm in ("auto", "next_fit") if fill in ("none", "undrop") else ("auto",):
        packing = Packing(
            seq_len=1000, resolution=resolution, algorithm=algorithm, fill=fill, token_drop=DropToTokens(80)
        )
        images = plan(rows, packing).images
        assert images.keep.max() <= 80
        assert (images.keep == 80).mean() > 0.5 or fill in ("trim", "rescale")
        whole = images.grid.prod(1) <= 80
        if fill in ("none", "undrop"):
            assert (images.keep[whole] == images.grid.prod(1)[whole]).all()


def test_a_scheduled_cap_is_the_count_that_the_schedule_gives() -> None:
    drop = ScheduledDrop(drop=DropToTokens(80), start=0.5, end=0.5, midpoint=10, tau=5)
    rows, packing = _rows(300), Packing(seq_len=2000, token_drop=drop)
    drawn = _by_row(plan(rows, packing.replace(fill="none")).images, "keep")
    assert drawn.max() > 80
    assert (_by_row(plan(rows, packing).images, "keep") == drawn).all()


def test_slots_are_still_given_back_where_no_number_was_named() -> None:
    rows, packing = _rows(300), Packing(seq_len=2000, token_drop=ConstantDrop(0.5))
    drawn = _by_row(plan(rows, packing.replace(fill="none")).images, "keep")
    assert (_by_row(plan(rows, packing).images, "keep") >= drawn).all()
    assert (_by_row(plan(rows, packing).images, "keep") > drawn).any()
