from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from patchnpack.packer import ConstantDrop, Native, PackedBatch, Packing, Rows, _kernels, plan
from tests.images import join_patches
from tests.packer.batch.batches import (
    P,
    Packs,
    drawn_images,
    example_batch,
    make_batch,
    pack_lists,
)


@given(pack_lists())
@settings(max_examples=60, deadline=None)
def test_images_walks_every_image_back_out_in_order(packs: Packs) -> None:
    batch, drawn = make_batch(packs, L=40, K=5), drawn_images(packs)
    walked = list(batch.images())
    assert [image.key for image in walked] == [image.key for image in drawn]
    for found, want in zip(walked, drawn, strict=True):
        gw, gh = want.grid
        assert found.grid == want.grid
        assert found.label == want.label
        assert type(found.label) is int
        assert found.patch_size == P
        assert found.coords.tolist() == [[token % gw, token // gw] for token in want.kept]
        np.testing.assert_array_equal(found.patches.numpy(), want.patches)
        coords = np.array([[token % gw, token // gw] for token in want.kept])
        assert found.pixels().dtype == np.uint8
        np.testing.assert_array_equal(found.pixels(), join_patches(want.patches, coords, (gw, gh), P))


def test_soft_labels_come_back_as_tensors() -> None:
    labels = torch.full((3, 3, 4), float("nan"))
    labels[0, 0], labels[0, 1], labels[2, 0] = torch.eye(4)[1], torch.eye(4)[2], torch.eye(4)[3]
    found = [image.label for image in example_batch(labels=labels).images()]
    assert all(isinstance(label, torch.Tensor) for label in found)
    assert torch.stack([torch.as_tensor(label) for label in found]).tolist() == torch.eye(4)[1:].tolist()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize(("edge", "rate"), [("pad", 0), ("crop", 0), ("pad", 0.6)])
def test_images_planned_and_placed_come_back_pixel_for_pixel(mode: Any, edge: Any, rate: float) -> None:
    packing = Packing(
        seq_len=32,
        patch_size=8,
        resolution=Native(edge=edge),
        token_drop=ConstantDrop(rate),
        fill="none",
        max_images=4,
        image_mode=mode,
    )
    rng = np.random.default_rng(0)
    width, height = rng.integers(8, 41, (2, 12))
    pixels = [rng.integers(1, 256, (h, w, len(mode)), np.uint8) for w, h in zip(width, height, strict=True)]
    packs = plan(Rows.of_sizes(width, height), packing)
    B, L, K = len(packs), packing.seq_len, packing.max_images
    patches, segment_ids = np.zeros((B, L, packing.token_bytes(8)), np.uint8), np.zeros((B, L), np.int32)
    coords, grids, rows = np.zeros((B, L, 2), np.int32), np.zeros((B, K, 2), np.int32), np.full((B, K), -1)
    for b in range(B):
        pack = packs.pack(b)
        first = np.cumsum(pack.keep) - pack.keep
        segment, token_index = np.arange(len(pack)) + 1, np.empty(int(pack.keep.sum()), np.int64)
        _kernels.lay_out(pack.key, pack.grid, pack.keep, segment, first, segment_ids[b], coords[b], token_index)
        for j in range(len(pack)):
            image, (gw, gh) = pixels[pack.row[j]], pack.grid[j].tolist()
            _kernels.place_image(image, 8, gw, gh, coords[b], patches[b], int(first[j]), int(pack.keep[j]))
            grids[b, j], rows[b, j] = (gw, gh), pack.row[j]
    batch = PackedBatch(
        patches=torch.from_numpy(patches),
        segment_ids=torch.from_numpy(segment_ids),
        coords=torch.from_numpy(coords),
        grids=torch.from_numpy(grids),
        image_sizes=torch.from_numpy(grids * 8),
        image_mask=torch.from_numpy(rows >= 0),
        labels=torch.full((B, K), -100),
        rows=torch.from_numpy(rows),
        keys=[[str(row) for row in packs.pack(b).row] for b in range(B)],
        patch_size=8,
    )
    assert batch.num_images == 12
    assert batch.num_tokens == packs.images.keep.sum()
    for image in batch.images():
        original, rebuilt = pixels[int(image.key)], image.pixels()
        H, W = rebuilt.shape[:2]
        top, left = max(0, original.shape[0] - H) // 2, max(0, original.shape[1] - W) // 2
        want = np.zeros_like(rebuilt)
        shown = original[top : top + H, left : left + W]
        want[: shown.shape[0], : shown.shape[1]] = shown
        held = np.zeros((image.grid[1], image.grid[0]), bool)
        held[tuple(image.coords.numpy()[:, ::-1].T)] = True
        want[~held.repeat(8, 0).repeat(8, 1)] = 0
        np.testing.assert_array_equal(rebuilt, want)
        assert held.all() == (rate == 0 or held.size == 1)
