from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from patchnpack.loaders import Index, PackedImageLoader
from patchnpack.loaders.order.state import Cursor
from patchnpack.packer import BetaDrop, ConstantDrop, FitTokens, PackedBatch, plan
from tests.loaders.loading import PACKING, keys_of, noisy

Check = Callable[..., None]
Contents = Callable[[PackedBatch], tuple[object, ...]]
MakeDrawn = Callable[..., Any]


pytestmark = pytest.mark.usefixtures("no_threads_left")


# The whole way, once


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("num_streams", [1, 2])
def test_every_image_is_loaded_once_per_epoch_pixel_for_pixel(
    num_streams: int, shuffle: bool, drawn: Any, index: Index, check_batch: Check
) -> None:
    loader = PackedImageLoader(
        drawn.shards, PACKING, batch_size=4, label="cls", extras=["txt"], shuffle=shuffle, num_streams=num_streams
    )
    for epoch in range(3):
        batches = []
        for batch in loader:
            check_batch(batch, drawn, index, PACKING)
            batches.append(batch)
        assert sorted(keys_of(batches)) == sorted(drawn.keys)
        assert {batch.epoch for batch in batches} == {epoch}
    assert loader.stats()["images"] == 180


def test_batches_that_the_user_keeps_are_not_overwritten(drawn: Any, index: Index, check_batch: Check) -> None:
    loader = PackedImageLoader(index, PACKING, batch_size=2, label="cls", extras=["txt"], num_threads=2, prefetch=1)
    kept = list(itertools.chain(loader, loader))
    views = [batch.patches[0] for batch in kept]
    for batch, view in zip(kept, views, strict=True):
        check_batch(batch, drawn, index, PACKING)
        assert torch.equal(batch.patches[0], view)
    assert len({batch.patches.data_ptr() for batch in kept}) == len(kept)


def test_memory_of_released_batches_is_reused(index: Index) -> None:
    loader = PackedImageLoader(index, PACKING, batch_size=1, prefetch=1)
    seen = Counter(batch.patches.data_ptr() for _ in range(3) for batch in loader)
    assert len(seen) <= 4 < sum(seen.values())


def test_packs_equal_those_of_plan(index: Index) -> None:
    packs = plan(index.rows(np.arange(len(index))), PACKING)
    loader = PackedImageLoader(index, PACKING, batch_size=1)
    rows = [[row for row in batch.rows[0].tolist() if row >= 0] for batch in loader]
    assert rows == [packs.pack(i).row.tolist() for i in range(len(packs))]


def test_step_epoch_and_position_are_counted_over_all_ranks(index: Index) -> None:
    for world_size in (1, 3):
        loader = PackedImageLoader(index, PACKING, batch_size=2, rank=0, world_size=world_size)
        loader.set_epoch(4)
        for epoch in (4, 5):
            facts = [(batch.epoch, batch.step, batch.position) for batch in loader]
            assert facts == [(epoch, i, (i + 1) * 2 * world_size) for i in range(len(facts))]


def test_batch_has_the_documented_shapes_and_types(index: Index) -> None:
    batch = next(iter(PackedImageLoader(index, PACKING, batch_size=3, label="cls")))
    shapes = {name: (tuple(t.shape), t.dtype) for name, t in batch.to_dict().items() if isinstance(t, torch.Tensor)}
    assert shapes["patches"] == ((3, 64, 192), torch.uint8)
    assert shapes["segment_ids"] == ((3, 64), torch.int32)
    assert shapes["coords"] == ((3, 64, 2), torch.int32)
    assert shapes["grids"] == shapes["image_sizes"] == ((3, 7, 2), torch.int32)
    assert shapes["image_mask"] == ((3, 7), torch.bool)
    assert shapes["labels"] == shapes["rows"] == ((3, 7), torch.int64)


# Determinism


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shuffle": True, "seed": 7},
        {"shuffle": True, "transform": noisy},
        {"shuffle": True, "packing": PACKING.replace(token_drop=ConstantDrop(0.4))},
        {"shuffle": True, "num_streams": 2, "block": 6, "extras": ["txt", "cls"], "even": "drop"},
        {"packing": PACKING.replace(resolution=FitTokens(9)), "transform": noisy},
    ],
    ids=["plain", "shuffle", "transform", "drop", "streams", "resize"],
)
def test_batches_are_identical_for_any_threads_and_prefetch(
    options: dict[str, Any], index: Index, contents: Contents
) -> None:
    def batches(num_threads: int, prefetch: int) -> list[tuple[object, ...]]:
        loader = PackedImageLoader(
            index,
            **({"packing": PACKING} | options),
            batch_size=3,
            label="cls",
            num_threads=num_threads,
            prefetch=prefetch,
        )
        return [contents(batch) for _ in range(2) for batch in loader]

    expected = batches(1, 1)
    assert len(expected) >= 6
    for num_threads, prefetch in ((2, 1), (8, 4), (1, 4), (8, 1)):
        assert batches(num_threads, prefetch) == expected


def test_transform_gets_a_generator_keyed_by_seed_epoch_and_row(index: Index) -> None:
    drawn: dict[tuple[int, int], list[float]] = {}

    def run(seed: int, shuffle: bool, num_streams: int = 1) -> Counter[float]:
        values: Counter[float] = Counter()

        def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            values[float(rng.random())] += 1
            return image

        loader = PackedImageLoader(
            index, PACKING, batch_size=2, transform=transform, seed=seed, shuffle=shuffle, num_streams=num_streams
        )
        for epoch in range(2):
            for _ in loader:
                pass
            drawn[seed, epoch] = list(values)
        return values

    first = run(0, shuffle=False)
    assert len(first) == 120  # 60 images, 2 epochs, no value twice
    assert run(0, shuffle=True) == first == run(0, shuffle=False, num_streams=2)  # keyed by row, not by position
    assert not set(first) & set(run(1, shuffle=False))


def test_epochs_differ_only_with_shuffle(index: Index) -> None:
    for shuffle in (False, True):
        loader = PackedImageLoader(index, PACKING, batch_size=2, shuffle=shuffle)
        first, second = keys_of(list(loader)), keys_of(list(loader))
        assert sorted(first) == sorted(second)
        assert (first != second) == shuffle
        loader.set_epoch(0)
        assert keys_of(list(loader)) == first


def test_length_is_right_in_every_epoch_if_only_the_token_drop_differs(index: Index) -> None:
    packing = PACKING.replace(token_drop=BetaDrop(0.4, 0.9), fill="none")
    loader = PackedImageLoader(index, packing, batch_size=1)
    lengths = []
    for epoch in range(6):
        loader.set_epoch(epoch)
        lengths.append(len(loader))
        assert lengths[-1] == len(list(loader))
    assert len(set(lengths)) > 1, "the epochs are to differ for this to show anything"


# Ranks


@pytest.mark.parametrize(
    "options", [{}, {"shuffle": True, "block": 16}, {"shuffle": True, "num_streams": 2, "block": 16}]
)
@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
def test_ranks_take_turns_over_the_packs_of_one_rank(
    world_size: int, options: dict[str, Any], index: Index, contents: Contents
) -> None:
    def packs(batches: Sequence[PackedBatch]) -> list[tuple[object, ...]]:
        return [
            (batch.keys[b], batch.patches[b].tolist(), batch.segment_ids[b].tolist(), batch.labels[b].tolist())
            for batch in batches
            for b in range(len(batch.keys))
        ]

    alone = packs(list(PackedImageLoader(index, PACKING, batch_size=1, label="cls", **options)))
    ranks = [
        list(PackedImageLoader(index, PACKING, batch_size=2, label="cls", rank=r, world_size=world_size, **options))
        for r in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    by_rank = [packs(batches) for batches in ranks]
    together = [by_rank[r][i] for i in range(len(by_rank[0])) for r in range(world_size)]
    assert together[: len(alone)] == alone
    assert all(keys == [] for keys, *_ in together[len(alone) :])
    assert len(together) - len(alone) < 2 * world_size
    for steps in zip(*ranks, strict=True):
        assert len({(batch.step, batch.epoch, batch.position) for batch in steps}) == 1


@pytest.mark.parametrize("even", ["pad", "drop"])
@pytest.mark.parametrize("world_size", [1, 3, 4])
@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"shuffle": True, "num_streams": 3, "block": 24}])
def test_every_row_is_counted_once_over_all_ranks(
    options: dict[str, Any], world_size: int, even: str, index: Index
) -> None:
    totals: Counter[str] = Counter()
    seen: list[str] = []
    for rank in range(world_size):
        loader = PackedImageLoader(
            index,
            PACKING.replace(algorithm="largest_fit"),
            batch_size=2,
            even=even,  # type: ignore[arg-type]
            rank=rank,
            world_size=world_size,
            where=lambda i: i.width > 15,
            **options,
        )
        lengths = [len(loader)]
        batches = list(loader)
        lengths.append(len(batches))
        assert len(set(lengths)) == 1
        seen += keys_of(batches)
        stats = loader.stats()
        totals.update(
            stats["skipped"] | {"images": stats["images"], "bad": stats["bad_images"], "batches": len(batches)}
        )
        if even == "drop":
            assert all(keys for batch in batches for keys in batch.keys)
    assert len(seen) == len(set(seen)) == totals["images"]
    assert totals["where"] == int((index.width <= 15).sum()) > 0
    assert totals["images"] + totals["bad"] + totals["where"] + totals["oversize"] + totals["tail"] == len(index)
    assert totals["tail"] == 0 if even == "pad" else totals["tail"] > 0 or world_size == 1


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("even", ["pad", "drop"])
@pytest.mark.parametrize(("num_streams", "block", "world_size"), [(1, None, 1), (1, 5, 2), (2, None, 3), (3, 12, 2)])
def test_length_is_the_number_of_batches_of_the_next_epoch(
    num_streams: int, block: int | None, world_size: int, even: str, shuffle: bool, index: Index
) -> None:
    loader = PackedImageLoader(
        index,
        PACKING,
        batch_size=2,
        even=even,  # type: ignore[arg-type]
        shuffle=shuffle,
        num_streams=num_streams,
        block=block,
        rank=world_size - 1,
        world_size=world_size,
    )
    lengths = []
    for epoch in range(4):
        assert len(loader) == loader.steps().count(Cursor(epoch, 0))
        lengths.append(len(loader))
        assert sum(1 for _ in loader) == lengths[-1]
    assert [loader.total_steps(epochs) for epochs in range(5)] == [0, *itertools.accumulate(lengths)]


def test_even_drop_that_leaves_no_batch_raises_with_the_fix(index: Index) -> None:
    loader = PackedImageLoader(index, PACKING, batch_size=1000, even="drop")
    with pytest.raises(ValueError, match=r"leaves no batch: a step takes 1000 packs .* use even='pad' or a smaller"):
        next(iter(loader))


def test_rank_comes_from_the_environment_when_iteration_starts(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = PackedImageLoader(index, PACKING, batch_size=1)
    alone = [batch.keys[0] for batch in loader]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert [batch.keys[0] for batch in loader] == (alone + [[]] * (len(alone) % 2))[1::2]
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(ValueError, match="rank is 1; it must be from 0 to world_size - 1 = 0"):
        iter(loader)
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ValueError, match=r"RANK and WORLD_SIZE in the environment must be whole numbers: .*'two'"):
        len(loader)


def test_rank_of_a_process_group_overrides_the_environment(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = PackedImageLoader(index, PACKING, batch_size=1)
    alone = [batch.keys[0] for batch in loader]
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    assert [batch.keys[0] for batch in loader] == (alone + [[]] * (-len(alone) % 3))[2::3]


# Epochs without end


def test_repeat_continues_with_the_next_epoch(index: Index, contents: Contents) -> None:
    options: dict[str, Any] = {"batch_size": 3, "shuffle": True}
    once = PackedImageLoader(index, PACKING, **options)
    expected = [contents(batch) for _ in range(3) for batch in once]
    loader = PackedImageLoader(index, PACKING, repeat=True, prefetch=5, **options)
    batches = iter(loader)
    assert [contents(batch) for batch in itertools.islice(batches, len(expected))] == expected
    assert next(batches).epoch == 3
    assert loader.total_steps(3) == len(expected)
    del batches


def test_repeat_has_no_length(index: Index) -> None:
    with pytest.raises(TypeError, match=r"repeat=True never ends and has no length; use total_steps\(epochs\)"):
        len(PackedImageLoader(index, PACKING, batch_size=3, repeat=True))


def test_next_iterator_begins_after_the_epoch_in_use_for_any_prefetch(index: Index) -> None:
    loader = PackedImageLoader(index, PACKING, batch_size=50, repeat=True, prefetch=8)
    assert [batch.epoch for batch in itertools.islice(loader, 2)] == [0, 1]
    assert [batch.epoch for batch in itertools.islice(loader, 2)] == [2, 3]


def test_two_iterators_of_one_loader_do_not_share_their_epochs(index: Index) -> None:
    for repeat in (False, True):
        loader = PackedImageLoader(index, PACKING, batch_size=4, repeat=repeat)
        first, second = iter(loader), iter(loader)
        pairs = list(itertools.islice(zip(first, second, strict=True), 5))
        assert {(a.epoch, b.epoch) for a, b in pairs} == {(0, 1)}
        del first, second


def test_stats_add_up_over_epochs(index: Index) -> None:
    loader = PackedImageLoader(index, PACKING, batch_size=3, label="cls")
    batches = [batch for _ in range(2) for batch in loader]
    stats = loader.stats()
    assert stats["batches"] == len(batches)
    assert stats["packs"] == sum(bool(keys) for batch in batches for keys in batch.keys)
    assert stats["images"] == 120 == sum(batch.num_images for batch in batches)
    assert stats["tokens"] == sum(batch.num_tokens for batch in batches)
    assert stats["slots"] == len(batches) * 3 * 64
    assert stats["padding"] == pytest.approx(1 - stats["tokens"] / stats["slots"])
    assert stats["bad_images"] == stats["without_label"] == stats["oversize"] == 0
    assert 0 <= stats["wait_s"] <= stats["run_s"]
    assert stats["images_per_s"] > 0
