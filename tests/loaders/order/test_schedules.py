"""What changes between images, blocks and epochs, in the loader: crops, patch sizes, schedules."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

import numpy as np
import pytest

from patchnpack.loaders import Index, PackedImageLoader
from patchnpack.loaders.imaging.decode import decode
from patchnpack.loaders.order.order import Order
from patchnpack.packer import (
    ConstantDrop,
    FitTokens,
    PackedBatch,
    Packing,
    PatchSizes,
    RandomResizedCrop,
    SampleSide,
    ScheduledDrop,
    ScheduledResolution,
)
from patchnpack.packer.planning.measure import measure
from patchnpack.packer.planning.planner import images_per_pack

PACKING = Packing(seq_len=64, patch_size=8, max_images=7)
SIZES = PatchSizes((2, 4, 8))

Check = Callable[..., None]
Contents = Callable[[PackedBatch], tuple[object, ...]]


def _order(index: Index, packing: Packing, **options: Any) -> Order:
    usable = np.ones(len(index), np.bool_)
    defaults = {"seed": 3, "shuffle": True, "shuffle_window": 2, "num_streams": 1, "block": 4}
    return Order(index=index, usable=usable, packing=packing, **(defaults | options))


# Crops and sampled sides


@pytest.mark.parametrize(
    "resolution",
    [RandomResizedCrop(max_tokens=20), RandomResizedCrop(scale=(0.2, 0.4)), SampleSide(low=16, high=64)],
    ids=str,
)
def test_sampled_images_are_decoded_as_they_were_planned_and_differ_between_epochs(
    resolution: Any, index: Index
) -> None:
    packing = PACKING.replace(resolution=resolution)
    loader = PackedImageLoader(index, packing, batch_size=3, seed=5)
    grids = []
    for epoch in range(2):
        every = np.arange(len(index))
        planned = measure(index.rows(every), packing, seed=5, epoch=epoch)[0]
        grids.append(planned.grid.tolist())
        found = 0
        for image in (image for batch in loader for image in batch.images()):
            row = index.keys.index(image.key)
            place = (int(index.shard_of(row)), int(index.offset[row]), int(index.nbytes[row]))
            expected = decode(
                index.reader().read(*place),
                index.headers(np.array([row]))[0],
                tuple(planned.size[row].tolist()),
                tuple(planned.box[row].tolist()),
            )
            height, width, _ = expected.shape
            assert np.array_equal(image.pixels()[:height, :width], expected)
            assert image.grid == tuple(planned.grid[row].tolist())
            found += 1
        assert found == len(index)
    assert grids[0] != grids[1]


# Patch sizes


@pytest.mark.parametrize("num_streams", [1, 2])
@pytest.mark.parametrize("balance", [0, 8, 256])
def test_a_batch_is_of_one_patch_size_and_each_image_comes_once(
    balance: int, num_streams: int, drawn: Any, index: Index, check_batch: Check
) -> None:
    packing = PACKING.replace(patch_size=SIZES, balance=balance)
    loader = PackedImageLoader(
        index, packing, batch_size=2, block=4, shuffle=True, label="cls", num_streams=num_streams
    )
    steps, batches = len(loader), list(loader)
    assert len(batches) == steps
    assert {batch.patch_size for batch in batches} == {2, 4, 8}
    keys = []
    for batch in batches:
        # At smaller sizes some images have more than 64 patches, and are made smaller.
        if batch.patch_size == 8:
            check_batch(batch, drawn, index, packing.replace(patch_size=batch.patch_size))
        assert batch.patches.shape == (2, 64, batch.patch_size**2 * 3)
        keys += [key for row in batch.keys for key in row]
    assert sorted(keys) == sorted(index.keys)


def test_batches_of_several_patch_sizes_are_the_same_for_any_threads(index: Index, contents: Contents) -> None:
    packing = PACKING.replace(patch_size=SIZES)
    runs = [
        [
            contents(batch)
            for batch in PackedImageLoader(
                index, packing, batch_size=2, shuffle=True, num_threads=threads, prefetch=prefetch
            )
        ]
        for threads, prefetch in ((1, 1), (4, 3))
    ]
    assert runs[0] == runs[1]


def test_ranks_share_blocks_of_one_patch_size(index: Index) -> None:
    packing = PACKING.replace(patch_size=SIZES)
    ranks = [
        list(PackedImageLoader(index, packing, batch_size=1, block=6, shuffle=True, rank=r, world_size=3))
        for r in range(3)
    ]
    sizes = [[batch.patch_size for batch in batches] for batches in ranks]
    assert sizes[0] == sizes[1] == sizes[2]
    assert len(set(sizes[0])) == 3
    one = list(PackedImageLoader(index, packing, batch_size=3, block=6, shuffle=True))
    assert [batch.patch_size for batch in one] == sizes[0]
    for step, batch in enumerate(one):
        assert batch.keys == [ranks[r][step].keys[0] for r in range(3)]


def test_a_step_that_does_not_divide_the_block_is_refused_when_iteration_starts(index: Index) -> None:
    loader = PackedImageLoader(index, PACKING.replace(patch_size=SIZES), batch_size=4, block=6)
    with pytest.raises(ValueError, match="block is 6, which a step of 4 packs does not divide; with PatchSizes"):
        next(iter(loader))


@pytest.mark.parametrize("balance", [0, 16])
def test_all_streams_give_a_block_packs_of_the_size_it_drew(balance: int, index: Index) -> None:
    sizes = PatchSizes((4, 8), weights=(0, 1), end_weights=(1, 0), images=len(index))
    packing = PACKING.replace(patch_size=sizes, balance=balance)
    order = _order(index, packing, num_streams=2)
    drawn = []
    a_pack = dict(zip((4, 8), images_per_pack(index.rows(np.arange(len(index))), packing, seed=3), strict=True))
    for epoch in range(3):
        seen = float(epoch * len(index))
        packs = list(order.packs(epoch))
        for first in range(0, len(packs), order.block):
            block = packs[first : first + order.block]
            assert len({pack.patch_size for pack in block}) == 1
            drawn.append(block[0].patch_size)
            assert drawn[-1] == sizes.draw(seed=3, epoch=epoch, block=first // order.block, images_seen=seen)
            seen += order.block * a_pack[drawn[-1]]
            images = [pack.images for pack in block if pack.images is not None]
            for pack in images:
                alone = measure(index.rows(pack.row), packing, seed=3, epoch=epoch, patch_size=block[0].patch_size)[0]
                assert alone.grid.tolist() == pack.grid.tolist()
    assert drawn[0] == 8
    assert len([size for size, _ in groupby(drawn)]) > 1
    assert drawn[-3:] == [4, 4, 4]


def test_balance_sorts_packs_among_those_of_their_own_patch_size(index: Index) -> None:
    packing = PACKING.replace(patch_size=SIZES, balance=1000)
    before, after = (list(_order(index, packing.replace(balance=balance), block=2).packs(0)) for balance in (0, 1000))
    assert [pack.patch_size for pack in before] == [pack.patch_size for pack in after]
    for size in SIZES.sizes:
        plain, balanced = ([pack.cost for pack in packs if pack.patch_size == size] for packs in (before, after))
        assert sorted(plain) == sorted(balanced)
        ranked = sorted(plain, reverse=True)
        shares = [sorted(balanced[i : i + 2], reverse=True) for i in range(0, len(balanced) - 1, 2)]
        assert all(share in [ranked[i : i + 2] for i in range(0, len(ranked), 2)] for share in shares[:-1])


# Schedules


@pytest.mark.parametrize("num_streams", [1, 3])
def test_schedules_count_the_images_seen_over_all_epochs(num_streams: int, index: Index) -> None:
    n = len(index)
    drop = ScheduledDrop(drop=ConstantDrop(0.9), start=1, end=0, midpoint=1.5 * n, tau=n / 10)
    resolution = ScheduledResolution(((0, FitTokens(16)), (n, FitTokens(25))))
    packing = PACKING.replace(token_drop=drop, resolution=resolution, fill="none")
    order = _order(index, packing, num_streams=num_streams, block=6)
    for epoch in range(4):
        grids: list[int] = []
        rows = [np.concatenate([part.row for part in order.stream_rows(epoch, s)]) for s in range(num_streams)]
        seen = {
            int(row): epoch * n + s + num_streams * i for s, stream in enumerate(rows) for i, row in enumerate(stream)
        }
        packs = [pack.images for pack in order.packs(epoch) if pack.images is not None]
        assert sum(map(len, packs)) == n
        for pack in packs:
            factor = drop.factors(np.array([seen[int(row)] for row in pack.row]))
            tokens = pack.grid.prod(1)
            grids.append(tokens.max())
            assert pack.keep.tolist() == np.maximum(1, np.rint(tokens * (1 - 0.9 * factor))).tolist()
        assert max(grids) == (16 if epoch == 0 else 25)
