"""Points and values of packed images in the pixels of their sources."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchnpack.packer import PackedBatch
from patchnpack.packer.batch.source_maps import Mode
from tests.packer.batch.batches import Drawn, P, Packs, draw_image, example_batch, make_batch, pack_lists


@st.composite
def placed_batches(draw: st.DrawFn) -> PackedBatch:
    """Batches whose images are parts of sources, resized, mirrored, and cropped or padded to their grids."""
    packs: Packs = draw(pack_lists())
    batch = make_batch(packs, L=40, K=5)
    for b, pack in enumerate(packs):
        for j, image in enumerate(each for each in pack if isinstance(each, Drawn)):
            sides = []
            for axis in range(2):
                length = image.grid[axis] * P
                size = draw(st.integers(length - P + 1, length + 3))
                box, left, right = (draw(st.integers(low, 9)) for low in (1, 0, 0))
                sides.append((left, box, size, left + box + right))
            lefts, lengths, sizes, wholes = zip(*sides, strict=True)
            batch.boxes[b, j] = torch.tensor(lefts + lengths)
            batch.sizes[b, j], batch.image_sizes[b, j] = torch.tensor(sizes), torch.tensor(wholes)
            batch.flipped[b, j] = torch.tensor(draw(st.tuples(st.booleans(), st.booleans())))
    return batch


@given(placed_batches())
@settings(max_examples=60, deadline=None)
def test_points_of_many_images_are_mapped_as_by_each_geometry(batch: PackedBatch) -> None:
    N = batch.num_images
    rng = np.random.default_rng(0)
    points, image = rng.uniform(-5, 30, (3 * N, 2)), np.repeat(np.arange(N), 3)
    found = batch.to_image(points, image)
    assert found.dtype == np.float64
    for i, geometry in enumerate(batch.geometries()):
        mine = image == i
        np.testing.assert_allclose(found[mine], geometry.to_image(points[mine]), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(batch.to_image(points[mine], i), found[mine], rtol=1e-12)
        back = batch.to_source(torch.from_numpy(found[mine]).float(), i)
        assert back.dtype == torch.float32
        np.testing.assert_allclose(back.numpy(), points[mine], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(batch.to_source(found, torch.from_numpy(image)), points, rtol=1e-9, atol=1e-9)


@given(placed_batches(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_nearest_maps_give_each_source_pixel_the_value_of_its_token(batch: PackedBatch, flat: bool) -> None:
    T = batch.num_tokens
    values = torch.arange(T) if flat else torch.arange(2 * T).view(T, 2)
    maps = batch.maps(values, outside=-1)
    assert len(maps) == batch.num_images
    ends = np.cumsum([0, *batch.lengths])
    coords = batch.coords.flatten(0, 1)[batch.token_index]
    for i, geometry in enumerate(batch.geometries()):
        (W, H), (ew, eh) = geometry.source, geometry.extent
        tokens = {tuple(coords[t].tolist()): t for t in range(ends[i], ends[i + 1])}
        want = np.full((H, W, *values.shape[1:]), -1)
        for y in range(H):
            for x in range(W):
                ((u, v),) = geometry.to_image([[x + 0.5, y + 0.5]])
                token = tokens.get((math.floor(u / P), math.floor(v / P)))
                if token is not None and 0 <= u < ew and 0 <= v < eh:
                    want[y, x] = values[token].numpy()
        assert maps[i].dtype == values.dtype
        np.testing.assert_array_equal(maps[i].numpy(), want)


@given(placed_batches())
@settings(max_examples=40, deadline=None)
def test_bilinear_maps_mix_the_kept_tokens_around_each_pixel(batch: PackedBatch) -> None:
    values = torch.from_numpy(np.random.default_rng(1).random((batch.num_tokens, 1)))
    ends, coords = np.cumsum([0, *batch.lengths]), batch.coords.flatten(0, 1)[batch.token_index]
    for i, (geometry, found) in enumerate(zip(batch.geometries(), batch.maps(values, mode="bilinear"), strict=True)):
        (W, H), extent = geometry.source, geometry.extent
        tokens = {tuple(coords[t].tolist()): float(values[t]) for t in range(ends[i], ends[i + 1])}
        last = [-(-side // P) - 1 for side in extent]
        for y in range(H):
            for x in range(W):
                ((u, v),) = geometry.to_image([[x + 0.5, y + 0.5]])
                want, weight = 0.0, 0.0
                if 0 <= u < extent[0] and 0 <= v < extent[1]:
                    a, b = (min(max(side / P - 0.5, 0), most) for side, most in zip((u, v), last, strict=True))
                    for (tx, ty), value in tokens.items():
                        share = max(0, 1 - abs(tx - a)) * max(0, 1 - abs(ty - b))
                        want, weight = want + share * value, weight + share
                got = float(found[y, x, 0])
                if weight > 1e-12:
                    assert got == pytest.approx(want / weight, rel=1e-6)
                elif weight == 0:
                    assert math.isnan(got)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@given(batch=placed_batches())
@settings(max_examples=20, deadline=None)
def test_cells_of_tokens_are_laid_back_as_tokens_of_smaller_patches(batch: PackedBatch, mode: Mode) -> None:
    T, draws = batch.num_tokens, torch.Generator().manual_seed(0)
    values = torch.rand(T, 2, 2, 3, generator=draws, dtype=torch.float64)
    x, y = batch.coords.flatten(0, 1)[batch.token_index].long().T
    ends = [0, *np.cumsum(batch.lengths).tolist()]
    for i, (geometry, found) in enumerate(zip(batch.geometries(), batch.maps(values, mode=mode), strict=True)):
        (gw, gh), part = geometry.grid, slice(ends[i], ends[i + 1])
        # The same as one value per patch of P // 2 pixels, where all patches of the grid are there.
        grid = torch.full((2 * gh, 2 * gw, 3), math.nan, dtype=torch.float64)
        for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
            grid[2 * y[part] + row, 2 * x[part] + column] = values[part, row, column]
        (W, H), extent, half = geometry.source, geometry.extent, P // 2
        for v in range(H):
            for u in range(W):
                ((a, b),) = geometry.to_image([[u + 0.5, v + 0.5]])
                inside = 0 <= a < extent[0] and 0 <= b < extent[1]
                if mode == "nearest":
                    want = grid[int(b) // half, int(a) // half] if inside else torch.full((3,), math.nan)
                    np.testing.assert_array_equal(found[v, u].numpy(), want.numpy())
                elif inside and not grid.isnan().any():
                    near = grid[int(b) // half, int(a) // half]
                    assert grid.amin() - 1e-9 <= found[v, u].min() <= found[v, u].max() <= grid.amax() + 1e-9
                    ((p, q),) = (np.array([[a, b]]) / half - 0.5) % 1
                    if min(p, 1 - p) < 1e-9 and min(q, 1 - q) < 1e-9:  # the centre of a cell
                        np.testing.assert_allclose(found[v, u].numpy(), near.numpy())


@pytest.mark.parametrize("shape", [(2, 1), (0, 0), (3, 3)])
def test_cells_that_do_not_divide_a_patch_raise(shape: tuple[int, int]) -> None:
    batch = make_batch([[draw_image(0, 4, 2)]], L=8, K=2)
    with pytest.raises(ValueError, match=f"values have {shape[0]} x {shape[1]} cells per token of {P} pixels"):
        batch.maps(torch.zeros(8, *shape))


def test_boxes_stay_ordered_when_an_image_is_mirrored() -> None:
    batch = make_batch([[draw_image(0, 4, 2)]], L=8, K=2)
    batch.flipped[0, 0] = torch.tensor([True, False])
    boxes = torch.tensor([[1.0, 0.0, 3.0, 2.0]])
    assert batch.to_image(boxes, 0).tolist() == [[5.0, 0.0, 7.0, 2.0]]
    assert batch.to_source(batch.to_image(boxes, 0), torch.tensor([0])).tolist() == boxes.tolist()


def test_gradients_pass_through_points_and_maps() -> None:
    batch = make_batch([[draw_image(0, 4, 2)]], L=8, K=2)
    points = torch.rand(3, 2, requires_grad=True)
    batch.to_source(points, 0).sum().backward()
    assert points.grad is not None
    for mode in ("nearest", "bilinear"):
        values = torch.rand(8, 3, requires_grad=True)
        batch.maps(values, mode=mode)[0].sum().backward()
        assert values.grad is not None
        assert values.grad.sum() == pytest.approx(8 * P * P * 3, rel=1e-5)


def test_wrong_shapes_and_values_are_refused_with_a_remedy() -> None:
    batch = example_batch()
    with pytest.raises(ValueError, match=r"points have the shape \(2, 3\); give \(n, 2\)"):
        batch.to_image(np.zeros((2, 3)), 0)
    with pytest.raises(ValueError, match=r"image is 3; the batch has 3 images, counted from 0"):
        batch.to_image(np.zeros((1, 2)), 3)
    with pytest.raises(ValueError, match=r"image is int64 \(2,\); give one number, or one per point, int \(1,\)"):
        batch.to_source(np.zeros((1, 2)), np.array([0, 1]))
    with pytest.raises(ValueError, match=r"values have the shape \(3, 8, 4\); give those of the 6 valid tokens"):
        batch.maps(torch.zeros(3, 8, 4))
    with pytest.raises(ValueError, match=r"values are int64, which mode 'bilinear' cannot mix; use mode='nearest'"):
        batch.maps(torch.zeros(6, dtype=torch.int64), mode="bilinear")
    with pytest.raises(ValueError, match=r"outside is nan, which values of uint8 cannot hold; give a whole number"):
        batch.maps(torch.zeros(6, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"mode is 'linear'; it must be one of 'nearest', 'bilinear'"):
        batch.maps(torch.zeros(6), mode="linear")  # type: ignore[arg-type]
