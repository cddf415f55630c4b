from __future__ import annotations

from dataclasses import fields
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchnpack.loaders.index.table import Index, Texts
from patchnpack.loaders.order.order import Order, Pack, chunks
from patchnpack.packer import FitTokens, Images, Packing, Plan
from patchnpack.packer.binpacking.balance import balanced_order
from patchnpack.packer.binpacking.pack_lengths import SAMPLE
from patchnpack.packer.policies.random import Purpose, counter_hash

PACKING = Packing(seq_len=24, patch_size=8, resolution=FitTokens(16), lookahead=8, balance=0)
SHARDS = [(5,), (1, 1, 1, 1, 1), (0, 7, 0, 3, 0), (40, 1, 2, 3, 50, 4), (100,), tuple(range(20))]


def index_of(counts: tuple[int, ...], seed: int = 0) -> Index:
    """Return an index of shards with these numbers of images, without any bytes."""
    n = sum(counts)
    rng = np.random.default_rng(seed)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Index(
        shards=tuple(f"{s}.tar" for s in range(len(counts))),
        shard_bytes=np.zeros(len(counts), np.int64),
        versions=("",) * len(counts),
        starts=starts,
        keys=Texts.of(str(i) for i in range(n)),
        offset=np.zeros(n, np.int64),
        nbytes=np.zeros(n, np.int64),
        width=rng.integers(8, 100, n).astype(np.int32),
        height=rng.integers(8, 100, n).astype(np.int32),
        orientation=np.ones(n, np.uint8),
        format=np.zeros(n, np.uint8),
        pages=np.ones(n, np.int32),
        bands=np.full(n, 3, np.int32),
        dtype=np.zeros(n, np.uint8),
        digest=np.zeros(n, np.uint64),
        reasons=Texts.of([None] * n),
        cls=Texts.of([None] * n),
        members={},
        without_image=np.zeros(len(counts), np.int64),
        unused_members=np.zeros(len(counts), np.int64),
        examples=((),) * len(counts),
        outside=np.zeros(len(counts), np.uint64),
    )


def order_of(counts: tuple[int, ...], *, usable: np.ndarray | None = None, **changes: object) -> Order:
    index = index_of(counts)
    options: dict[str, object] = {
        "packing": PACKING,
        "seed": 3,
        "shuffle": True,
        "shuffle_window": 2,
        "num_streams": 1,
        "block": 4,
    }
    usable = np.ones(len(index), np.bool_) if usable is None else usable
    return Order(index=index, usable=usable, **(options | changes))  # type: ignore[arg-type]


def rows_of(order: Order, epoch: int = 0) -> list[list[int]]:
    """Return the rows of each stream, in order."""
    return [
        [row for rows in order.stream_rows(epoch, s) for row in rows.row.tolist()] for s in range(order.num_streams)
    ]


def packs_of(order: Order, epoch: int = 0) -> list[list[int] | None]:
    return [None if pack.images is None else pack.images.row.tolist() for pack in order.packs(epoch)]


def images_of(pack: Pack) -> Images:
    assert pack.images is not None
    return pack.images


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("num_streams", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("counts", SHARDS)
def test_streams_partition_the_rows_into_equal_slices(counts: tuple[int, ...], num_streams: int, shuffle: bool) -> None:
    order = order_of(counts, num_streams=num_streams, block=num_streams, shuffle=shuffle)
    streams = rows_of(order)
    assert sorted(row for rows in streams for row in rows) == list(range(sum(counts)))
    lengths = [len(rows) for rows in streams]
    assert max(lengths) - min(lengths) <= 1


@settings(deadline=None, max_examples=60)
@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=9).filter(any).map(tuple),
    num_streams=st.integers(1, 5),
    share=st.integers(1, 3),
    window=st.integers(1, 4),
    shuffle=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_every_row_is_in_exactly_one_pack_of_every_epoch(
    counts: tuple[int, ...], num_streams: int, share: int, window: int, shuffle: bool, epoch: int
) -> None:
    order = order_of(counts, num_streams=num_streams, block=num_streams * share, shuffle_window=window, shuffle=shuffle)
    packs = packs_of(order, epoch)
    assert sorted(row for pack in packs for row in pack or []) == list(range(sum(counts)))
    padded, full = order.positions(epoch)
    assert padded == len(packs)
    assert full == (packs.index(None) if None in packs else len(packs))


def test_rows_keep_the_order_of_the_shards_without_shuffle() -> None:
    order = order_of((4, 0, 9, 2), shuffle=False, num_streams=2)
    assert rows_of(order) == [list(range(7)), list(range(7, 15))]
    assert packs_of(order, 0) == packs_of(order, 5)


def test_shuffle_differs_between_epochs_and_seeds() -> None:
    counts = (10, 20, 0, 5, 15)
    orders = {
        (seed, epoch): tuple(rows_of(order_of(counts, seed=seed), epoch)[0])
        for seed in (0, 1, -1, 2**40)
        for epoch in range(4)
    }
    assert len(set(orders.values())) == len(orders)
    assert all(sorted(rows) == list(range(50)) for rows in orders.values())
    assert orders[0, 0] == tuple(rows_of(order_of(counts, seed=0))[0])


def test_shards_and_rows_are_shuffled_evenly() -> None:
    """Over many epochs, each shard and each row of a window comes first about equally often."""
    counts, epochs = (3, 3, 3), 600
    order = order_of(counts, shuffle_window=1)
    rows = np.array([rows_of(order, epoch)[0] for epoch in range(epochs)])
    for firsts, of in ((rows[:, 0] // 3, 3), (rows[:, 0] % 3, 3), (rows[:, -1], 9)):
        seen = np.bincount(firsts, minlength=of)
        assert np.abs(seen - epochs / of).max() < 5 * np.sqrt(epochs / of)
    shard_orders = {tuple(r[::3] // 3) for r in rows}
    assert shard_orders == set(permutations(range(3)))


@pytest.mark.parametrize("window", [1, 2, 3, 7])
def test_rows_of_a_window_come_only_from_its_shards(window: int) -> None:
    counts = (5, 1, 0, 8, 3, 9, 4)
    order = order_of(counts, shuffle_window=window)
    windows = [rows.row for rows in order.stream_rows(1, 0)]
    of_window = [set(order.index.shard_of(rows).tolist()) for rows in windows]
    assert all(len(shards) <= window for shards in of_window)
    assert sum(map(len, of_window)) == 6  # no shard in two windows, none left out except the empty one
    assert len(windows) == -(-6 // window)
    if window > 1:
        shards = order.index.shard_of(windows[0])
        assert (np.diff(shards) != 0).sum() > 1  # rows of several shards are mixed


def test_only_usable_rows_are_planned() -> None:
    usable = np.arange(50) % 3 > 0
    order = order_of((20, 20, 10), usable=usable, num_streams=2)
    assert sorted(row for rows in rows_of(order) for row in rows) == np.flatnonzero(usable).tolist()
    assert sorted(row for pack in packs_of(order) for row in pack or []) == np.flatnonzero(usable).tolist()


def test_unusable_rows_do_not_change_the_order_of_the_others() -> None:
    usable = np.arange(50) % 3 > 0
    all_rows = rows_of(order_of((20, 20, 10)))[0]
    assert rows_of(order_of((20, 20, 10), usable=usable))[0] == [row for row in all_rows if usable[row]]


@pytest.mark.parametrize(("num_streams", "block"), [(2, 2), (2, 6), (3, 12), (4, 4)])
def test_each_block_takes_its_share_from_each_stream_in_turn(num_streams: int, block: int) -> None:
    order = order_of((30, 50, 20, 41), num_streams=num_streams, block=block)
    share = block // num_streams
    packs = packs_of(order)
    assert len(packs) % block == 0
    streams: list[list[list[int] | None]] = [[] for _ in range(num_streams)]
    for first in range(0, len(packs), block):
        for s in range(num_streams):
            streams[s] += packs[first + s * share : first + (s + 1) * share]
    for s, stream in enumerate(streams):
        alone = [plan.pack(i).row.tolist() for plan in order.stream_plans(0, s) for i in range(len(plan))]
        filled = [pack for pack in stream if pack is not None]
        assert filled == alone
        assert stream[: len(filled)] == filled  # empty packs only after the last one
    assert any(pack is not None for pack in packs[-block:])


@pytest.mark.parametrize(("num_streams", "block", "window"), [(1, 4, 12), (1, 8, 3), (2, 8, 16), (3, 6, 7)])
def test_balance_sorts_the_packs_of_a_window_by_cost_and_mixes_shares_alike_in_all_streams(
    num_streams: int, block: int, window: int
) -> None:
    plain = order_of((90, 150, 60, 120), num_streams=num_streams, block=block)
    order = order_of((90, 150, 60, 120), num_streams=num_streams, block=block, packing=PACKING.replace(balance=window))
    share = block // num_streams
    window = max(1, window // share) * share
    for s in range(num_streams):
        before, after = (list(o._stream_packs(0, s, lambda plan: None)) for o in (plain, order))
        expected = []
        for number, first in enumerate(range(0, len(before), window)):
            group = before[first : first + window]
            cost = np.array([int((images_of(pack).keep.astype(int) ** 2).sum()) for pack in group])
            assert cost.tolist() == [pack.cost for pack in group]
            # The key holds neither the stream nor its number of packs.
            counters = np.arange(100, dtype=np.uint64) + np.uint64(number << 32)
            drawn = counter_hash(Purpose.BALANCE, order.seed, 0, counters)
            expected += [images_of(group[i]).row.tolist() for i in balanced_order(cost, share, drawn)]
        assert [images_of(pack).row.tolist() for pack in after] == expected
        assert expected != [images_of(pack).row.tolist() for pack in before]


def test_balance_is_off_without_shuffle_and_differs_between_epochs() -> None:
    balanced = PACKING.replace(balance=64)
    assert packs_of(order_of((100,), shuffle=False, packing=balanced)) == packs_of(order_of((100,), shuffle=False))
    order = order_of((400,), packing=balanced)
    assert packs_of(order, 0) == packs_of(order, 0) != packs_of(order, 1)


def test_one_stream_has_no_empty_packs() -> None:
    order = order_of((30, 50), block=7)
    packs = packs_of(order)
    assert None not in packs
    assert order.positions(0) == (len(packs), len(packs))


def test_packs_do_not_depend_on_the_window_without_shuffle() -> None:
    packs = [packs_of(order_of((9, 20, 0, 3, 30), shuffle=False, shuffle_window=w)) for w in (1, 2, 5)]
    assert packs[0] == packs[1] == packs[2]


def test_each_plan_is_reported_once_when_it_is_made() -> None:
    order = order_of((9, 20, 3), num_streams=2)
    reported: list[Plan] = []
    packs = [pack for pack in order.packs(0, reported.append) if pack.images is not None]
    assert sum(map(len, reported)) == len(packs) == sum(order.stream_counts(0))
    assert sorted(np.concatenate([plan.images.row for plan in reported])) == list(range(32))


def test_images_of_a_pack_keep_size_grid_and_key_of_their_row() -> None:
    order = order_of((9, 20, 3))
    by_row: dict[int, tuple[object, ...]] = {}
    for changed in (order, order_of((9, 20, 3), num_streams=2)):
        for pack in changed.packs(2):
            if pack.images is None:
                continue
            for row, key, *facts in zip(
                *(getattr(pack.images, f.name).tolist() for f in fields(Images)[:6]), strict=True
            ):
                assert by_row.setdefault(row, (key, *facts)) == (key, *facts)
    assert len({facts[0] for facts in by_row.values()}) == 32


def test_packs_are_planned_one_window_at_a_time() -> None:
    order = order_of((10,) * 20, shuffle_window=1, packing=PACKING.replace(algorithm="largest_fit", balance=4))
    planned: list[Plan] = []
    packs = order.packs(0, planned.append)
    next(packs)
    assert 0 < sum(len(plan.images.row) for plan in planned) <= 20
    packs.close()  # type: ignore[attr-defined]


def test_slices_of_one_shard_differ_by_at_most_one_row() -> None:
    order = order_of((10,), num_streams=4, block=4, shuffle=False)
    cuts = [0, *np.cumsum([len(rows) for rows in rows_of(order)]).tolist()]
    assert [b - a for a, b in pairwise(cuts)] == [2, 3, 2, 3]


@pytest.mark.parametrize("share", [0.0, 1e-4, 0.01, 1.0])
def test_chunks_cover_the_rows_of_a_mask_and_only_the_last_is_small(share: float) -> None:
    mask = np.random.default_rng(0).random(3_000_000) < share
    parts = list(chunks(mask))
    assert np.array_equal(np.concatenate([np.zeros(0, np.int64), *parts]), np.flatnonzero(mask))
    assert all(len(part) >= SAMPLE for part in parts[:-1])
    assert all(len(part) for part in parts)
