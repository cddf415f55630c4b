from __future__ import annotations

import functools
import gc
import io
import itertools
import logging
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from patchnpack.loaders import Index, PackedImageLoader, pack_stream, scan
from patchnpack.loaders.order.state import Cursor
from patchnpack.packer import BetaDrop, ConstantDrop, FitTokens, Native, PackedBatch, Packing, Square, plan

PACKING = Packing(seq_len=64, patch_size=8, max_images=7)

Check = Callable[..., None]
Contents = Callable[[PackedBatch], tuple[object, ...]]
MakeDrawn = Callable[..., Any]


@pytest.fixture(scope="module")
def index(drawn: Any) -> Index:
    return scan(drawn.shards)


@pytest.fixture(autouse=True)
def _no_threads_left() -> Iterator[None]:
    """Every test of this file leaves no decoding thread behind."""
    yield
    if decoding_threads():
        gc.collect()
    assert not decoding_threads()


def decoding_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("patchnpack-decode")]


def keys_of(batches: Sequence[PackedBatch]) -> list[str]:
    return [key for batch in batches for keys in batch.keys for key in keys]


def noisy(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    out: np.ndarray = image ^ rng.integers(0, 256, image.shape, np.uint8)
    return out


# The whole way, once


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("num_streams", [1, 2])
def test_every_image_comes_out_once_an_epoch_as_it_went_in(
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


def test_batches_kept_by_the_user_are_not_written_over(drawn: Any, index: Index, check_batch: Check) -> None:
    loader = PackedImageLoader(index, PACKING, batch_size=2, label="cls", extras=["txt"], num_threads=2, prefetch=1)
    kept = list(itertools.chain(loader, loader))
    views = [batch.patches[0] for batch in kept]
    for batch, view in zip(kept, views, strict=True):
        check_batch(batch, drawn, index, PACKING)
        assert torch.equal(batch.patches[0], view)
    assert len({batch.patches.data_ptr() for batch in kept}) == len(kept)


def test_memory_of_batches_that_are_done_is_used_again(index: Index) -> None:
    loader = PackedImageLoader(index, PACKING, batch_size=1, prefetch=1)
    seen = Counter(batch.patches.data_ptr() for _ in range(3) for batch in loader)
    assert len(seen) <= 4 < sum(seen.values())


def test_packs_are_those_of_plan(index: Index) -> None:
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


def test_shapes_and_types_are_those_of_the_contract(index: Index) -> None:
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
def test_batches_are_the_same_bit_for_bit_for_any_threads_and_prefetch(
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


def test_transform_gets_a_generator_of_its_own_for_each_seed_epoch_and_row(index: Index) -> None:
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
    assert run(0, shuffle=True) == first == run(0, shuffle=False, num_streams=2)  # keyed by row, not by place
    assert not set(first) & set(run(1, shuffle=False))


def test_epochs_differ_under_shuffle_and_only_there(index: Index) -> None:
    for shuffle in (False, True):
        loader = PackedImageLoader(index, PACKING, batch_size=2, shuffle=shuffle)
        first, second = keys_of(list(loader)), keys_of(list(loader))
        assert sorted(first) == sorted(second)
        assert (first != second) == shuffle
        loader.set_epoch(0)
        assert keys_of(list(loader)) == first


def test_length_is_right_in_every_epoch_where_only_the_token_drop_differs(index: Index) -> None:
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


def test_drop_that_leaves_no_batch_is_an_error_with_the_remedy(index: Index) -> None:
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


def test_rank_of_a_process_group_goes_before_the_environment(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = PackedImageLoader(index, PACKING, batch_size=1)
    alone = [batch.keys[0] for batch in loader]
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    assert [batch.keys[0] for batch in loader] == (alone + [[]] * (-len(alone) % 3))[2::3]


# Epochs without end


def test_repeat_goes_on_from_epoch_to_epoch(index: Index, contents: Contents) -> None:
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


def test_next_iterator_begins_behind_the_epoch_in_use_whatever_was_prefetched(index: Index) -> None:
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


# Images that are left out


def spoil(drawn: Any, cut: Sequence[str] = (), headless: Sequence[str] = ()) -> None:
    """Cuts images off behind their headers, or takes their headers away."""
    index = scan(drawn.shards)
    change: dict[str, bytes] = {}
    for i, key in enumerate(index.keys):
        data = index.reader().read(int(index.shard_of(i)), int(index.offset[i]), int(index.nbytes[i]))
        if key in cut or key in headless:
            change |= {f"{key}.{e}": data[:-40] if key in cut else b"spoilt" for e in ("jpg", "png")}
    drawn.rewrite(change)


@pytest.mark.parametrize("shuffle", [False, True])
def test_bad_images_are_counted_with_their_reason_and_the_others_stay_right(
    shuffle: bool, make_drawn: MakeDrawn, check_batch: Check, caplog: pytest.LogCaptureFixture
) -> None:
    drawn = make_drawn([12, 14])
    cut, headless = ["s0i001", "s0i006", "s1i000", "s1i013"], ["s0i000", "s1i007"]
    spoil(drawn, cut, headless)
    loader = PackedImageLoader(drawn.shards, PACKING, batch_size=2, label="cls", extras=["txt"], shuffle=shuffle)
    with caplog.at_level(logging.WARNING, "patchnpack"):
        batches = list(loader)
    for batch in batches:
        check_batch(batch, drawn, loader.index, PACKING)
    assert sorted(keys_of(batches)) == sorted(set(drawn.keys) - {*cut, *headless})
    stats = loader.stats()
    assert (stats["bad_images"], stats["images"], stats["batches"]) == (6, 20, len(batches))
    assert stats["tokens"] == sum(batch.num_tokens for batch in batches)
    assert stats["slots"] == len(batches) * 2 * 64
    by_key = {bad["key"]: bad for bad in stats["bad"]}
    assert {key: bad["stage"] for key, bad in by_key.items()} == dict.fromkeys(cut, "decode") | dict.fromkeys(
        headless, "header"
    )
    for key, bad in by_key.items():
        row = loader.index.keys.index(key)
        assert bad["row"] == row
        assert bad["shard"] == drawn.shards[int(key[1])]
        assert bad["offset"] == loader.index.offset[row]
        assert bad["reason"]
        assert sum(repr(key) in message and bad["reason"] in message for message in caplog.messages) == 1


def test_bad_images_change_neither_the_number_of_batches_nor_which_rank_counts_them(make_drawn: MakeDrawn) -> None:
    drawn = make_drawn([12, 14])
    steps = [len(list(PackedImageLoader(drawn.shards, PACKING, batch_size=1, rank=r, world_size=3))) for r in range(3)]
    spoil(drawn, drawn.keys[3:9], drawn.keys[20:21])
    keys: list[str] = []
    bad: list[str] = []
    for rank in range(3):
        loader = PackedImageLoader(drawn.shards, PACKING, batch_size=1, rank=rank, world_size=3)
        batches = list(loader)
        assert abs(len(batches) - steps[rank]) <= 1  # the one without a header is not planned
        assert len(batches) == len(loader)
        keys += keys_of(batches)
        bad += [entry["key"] for entry in loader.stats()["bad"]]
    assert sorted(keys + bad) == sorted(drawn.keys)
    assert sorted(bad) == sorted(drawn.keys[3:9] + drawn.keys[20:21])


def test_batches_with_bad_images_are_the_same_for_any_number_of_threads(
    make_drawn: MakeDrawn, contents: Contents
) -> None:
    drawn = make_drawn([26])
    spoil(drawn, drawn.keys[::3], drawn.keys[1:2])

    def run(num_threads: int) -> tuple[object, ...]:
        loader = PackedImageLoader(
            drawn.shards, PACKING, batch_size=3, label="cls", extras=["txt"], num_threads=num_threads
        )
        return [contents(batch) for batch in loader], loader.stats()["bad"]

    assert run(1) == run(8)


def test_no_usable_image_at_all_is_a_value_error_that_counts_why(make_drawn: MakeDrawn, index: Index) -> None:
    drawn = make_drawn([3])
    spoil(drawn, headless=drawn.keys)
    with pytest.raises(ValueError, match="none of the 3 images can be used: 3 are bad, 0 filtered out by where"):
        PackedImageLoader(drawn.shards, PACKING, batch_size=1)
    with pytest.raises(ValueError, match="0 are bad, 60 filtered out by where"):
        PackedImageLoader(index, PACKING, batch_size=1, where=lambda index: np.zeros(len(index), np.bool_))


@pytest.mark.parametrize("world_size", [1, 2])
def test_oversize_images_are_counted_and_skipped_where_asked(world_size: int, index: Index) -> None:
    packing = PACKING.replace(seq_len=20, oversize="skip")
    tokens = -(-index.width // 8) * -(-index.height // 8)
    loaders = [
        PackedImageLoader(index, packing, batch_size=2, rank=r, world_size=world_size) for r in range(world_size)
    ]
    keys = [key for loader in loaders for key in keys_of(list(loader))]
    assert sorted(keys) == [key for key, n in zip(index.keys, tokens, strict=True) if n <= 20]
    over = int((tokens > 20).sum())
    assert sum(loader.stats()["skipped"]["oversize"] for loader in loaders) == over > 0
    assert sum(loader.stats()["oversize"] for loader in loaders) == over


def test_image_without_a_label_is_counted_and_minus_100(make_drawn: MakeDrawn) -> None:
    drawn = make_drawn([6])
    drawn.rewrite({"s0i002.cls": None, "s0i004.cls": None, "s0i001.txt": None})
    loader = PackedImageLoader(drawn.shards, PACKING, batch_size=8, label="cls", extras=["txt"])
    (batch,) = loader
    for image, text in zip(batch.images(), itertools.chain(*batch.extras["txt"]), strict=True):
        assert image.label == (-100 if image.key in ("s0i002", "s0i004") else drawn.labels[image.key])
        assert text == (None if image.key == "s0i001" else drawn.texts[image.key])
    assert loader.stats()["without_label"] == 2


def test_targets_are_vectors_and_nan_where_there_is_none(index: Index, drawn: Any) -> None:
    def target(members: dict[str, bytes]) -> list[float] | None:
        label = int(members["cls"])
        return None if label == 3 else [label, label / 2]

    loader = PackedImageLoader(index, PACKING, batch_size=4, label=target)
    without = sum(label == 3 for label in drawn.labels.values())
    for batch in loader:
        assert batch.labels.shape == (4, 7, 2)
        assert batch.labels.dtype == torch.float32
        assert batch.labels[~batch.image_mask].isnan().all()
        for image in batch.images():
            label = drawn.labels[image.key]
            assert isinstance(image.label, torch.Tensor)
            assert image.label.isnan().all() if label == 3 else image.label.tolist() == [label, label / 2]
    assert loader.stats()["without_label"] == without > 0


def test_number_of_classes_is_what_a_classifier_of_the_labels_needs(index: Index, drawn: Any) -> None:
    def classes(label: Any, names: list[str] | None = None) -> int:
        return PackedImageLoader(index, PACKING, batch_size=2, label=label, classes=names).num_classes

    assert classes("cls") == max(drawn.labels.values()) + 1
    assert classes("cls", list("0123456789ab")) == 12
    assert classes(lambda members: [0.5] * 4) == 4
    for label in (None, lambda members: 3):
        with pytest.raises(ValueError, match=r"number of classes cannot be told .*; give label=, classes="):
            classes(label)


# Transforms and extras


def test_transform_is_applied_to_the_upright_image_of_its_planned_size(index: Index) -> None:
    shapes: list[tuple[int, ...]] = []

    def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        shapes.append(image.shape)
        return 255 - image

    plain = PackedImageLoader(index, PACKING.replace(resolution=Square(16)), batch_size=4)
    inverted = PackedImageLoader(index, PACKING.replace(resolution=Square(16)), batch_size=4, transform=transform)
    for a, b in zip(plain, inverted, strict=True):
        kept = a.segment_ids > 0
        assert torch.equal(255 - a.patches[kept], b.patches[kept])
    assert set(shapes) == {(16, 16, 3)}
    assert len(shapes) == 60


def test_transform_may_give_a_view_that_is_not_contiguous(index: Index, drawn: Any) -> None:
    loader = PackedImageLoader(index, PACKING, batch_size=4, transform=lambda image, rng: image[::-1, ::-1])
    for batch in loader:
        for image in batch.images():
            height, width, _ = drawn.pixels[image.key].shape
            assert np.array_equal(image.pixels()[:height, :width], drawn.pixels[image.key][::-1, ::-1])


class OneArgument:
    def __call__(self, image: np.ndarray) -> np.ndarray:
        return image


@pytest.mark.parametrize(
    ("transform", "says"),
    [
        (lambda image: image, r"<lambda>\(image\) cannot be called so \(too many positional arguments\): wrap it"),
        (OneArgument(), r"OneArgument\(image: .*\) -> .* cannot be called so \(too many"),
        (lambda image, rng, more: image, r"\(missing a required argument: 'more'\)"),
        (lambda image, *, rng: image, r"<lambda>\(image, \*, rng\) cannot be called so"),
        ("flip", r"'flip' is no function"),
    ],
)
def test_a_transform_of_other_than_two_arguments_is_refused_before_anything_is_read(transform: Any, says: str) -> None:
    for make in (lambda **given: PackedImageLoader("absent.tar", **given), lambda **given: pack_stream([], **given)):
        with pytest.raises(ValueError, match=r"^transform takes \(image, rng\), .*; .*" + says):
            make(batch_size=2, transform=transform)


@pytest.mark.parametrize(
    "transform", [np.add, max, functools.partial(lambda a, image, rng: image, 1), lambda *given: given[0]]
)
def test_a_transform_that_takes_two_arguments_or_has_no_signature_is_taken(transform: Any, index: Index) -> None:
    PackedImageLoader(index, PACKING, batch_size=2, transform=transform)


def test_error_of_the_transform_is_raised_with_the_key(index: Index) -> None:
    def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        raise LookupError("a bug of the user's")

    with pytest.raises(LookupError, match="a bug of the user's") as caught:
        list(PackedImageLoader(index, PACKING, batch_size=2, transform=transform))
    (note,) = caught.value.__notes__
    assert note.startswith("raised by transform, for the image with key 's")


def test_bad_data_raised_by_the_transform_is_no_bad_image(index: Index) -> None:
    def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        raise OSError("its own file is missing")

    loader = PackedImageLoader(index, PACKING, batch_size=2, transform=transform)
    with pytest.raises(OSError, match="its own file is missing"):
        list(loader)
    assert loader.stats()["bad_images"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: image[1:], r"transform made uint8 \("),
        (lambda image: image[..., 0], r"transform made uint8 \("),
        (lambda image: image.astype(np.float32), r"transform made float32 \("),
        (lambda image: None, r"transform made object \("),
    ],
)
def test_transform_that_changes_shape_or_type_is_refused(change: Any, message: str, index: Index) -> None:
    with pytest.raises(ValueError, match=message + r".* of image 's.*, which was uint8 \(.*must keep both"):
        list(PackedImageLoader(index, PACKING, batch_size=2, transform=lambda image, rng: change(image)))


def test_extras_are_text_object_or_bytes(
    tmp_path: Path,
    write_tar: Callable[..., str],
    draw_image: Callable[..., Image.Image],
    encode_image: Callable[..., bytes],
) -> None:
    members = []
    for key in "abc":
        members += [(f"{key}.jpg", encode_image(draw_image(9, 9))), (f"{key}.txt", f"é {key}".encode())]
        members += [(f"{key}.json", f'{{"key": "{key}"}}'.encode()), (f"{key}.mask.bin", key.encode())]
    members = [(name, b"{" if name == "b.json" else data) for name, data in members]
    loader = PackedImageLoader(
        write_tar(tmp_path / "a.tar", members), PACKING, batch_size=1, extras=[".txt", "JSON", "mask.bin"]
    )
    (batch,) = loader
    assert batch.keys == [["a", "c"]]
    assert batch.extras == {
        "txt": [["é a", "é c"]],
        "json": [[{"key": "a"}, {"key": "c"}]],
        "mask.bin": [[b"a", b"c"]],
    }
    (bad,) = loader.stats()["bad"]
    assert (bad["key"], bad["stage"]) == ("b", "extras")
    assert bad["reason"].startswith("its .json member cannot be read: Expecting property name")


# Channels and resolutions


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_image_mode_sets_the_channels_of_every_patch(mode: str, index: Index, drawn: Any) -> None:
    loader = PackedImageLoader(index, PACKING.replace(image_mode=mode), batch_size=4)
    images = 0
    for batch in loader:
        assert batch.patches.shape[-1] == 64 * len(mode)
        for image in batch.images():
            theirs = np.asarray(Image.fromarray(drawn.pixels[image.key]).convert(mode)).astype(int)
            height, width = theirs.shape[:2]
            ours = image.pixels()[:height, :width].astype(int)
            # Grey is a JPEG's own luminance; PIL's went over RGB, where strong colours are clipped.
            assert np.abs(ours - theirs.reshape(ours.shape)).mean() <= (1 if mode == "L" else 0)
            images += 1
    assert images == 60


@pytest.mark.parametrize(
    "resolution", [Native(edge="crop"), Native(edge="resize"), FitTokens(9), FitTokens(64, upsample=True), Square(24)]
)
def test_resized_and_cropped_images_are_what_pil_makes_of_them(resolution: Any, index: Index, drawn: Any) -> None:
    packing = PACKING.replace(resolution=resolution, scaled_decode=False)
    for batch in PackedImageLoader(index, packing, batch_size=4):
        for image in batch.images():
            source = Image.fromarray(drawn.pixels[image.key])
            gw, gh = image.grid
            if resolution == Native(edge="crop"):
                left, top = (source.width - gw * 8) // 2, (source.height - gh * 8) // 2
                expected = source.crop((left, top, left + gw * 8, top + gh * 8))
            else:
                expected = source.resize((gw * 8, gh * 8), Image.Resampling.BICUBIC)
            assert np.array_equal(image.pixels(), np.asarray(expected))


@pytest.mark.parametrize("resolution", [Native(), FitTokens(16)])
def test_dropped_tokens_are_black_and_the_others_as_without_dropping(resolution: Any, index: Index) -> None:
    whole_packing = PACKING.replace(resolution=resolution)
    whole = {
        image.key: image.pixels()
        for batch in PackedImageLoader(index, whole_packing, batch_size=4)
        for image in batch.images()
    }
    for batch in PackedImageLoader(
        index, whole_packing.replace(token_drop=ConstantDrop(0.5), fill="none"), batch_size=4
    ):
        for image in batch.images():
            gw, gh = image.grid
            assert len(image.coords) == max(1, round(gw * gh / 2))
            kept = np.zeros((gh, gw), np.bool_)
            kept[image.coords[:, 1], image.coords[:, 0]] = True
            mask = kept.repeat(8, 0).repeat(8, 1)[..., None]
            assert np.array_equal(image.pixels(), whole[image.key] * mask)


def test_grid_multiple_pads_whole_patches(index: Index, drawn: Any) -> None:
    packing = PACKING.replace(patch_size=4, grid_multiple=2, seq_len=256)
    for batch in PackedImageLoader(index, packing, batch_size=2):
        for image in batch.images():
            height, width, _ = drawn.pixels[image.key].shape
            assert image.grid == (-(-width // 8) * 2, -(-height // 8) * 2)
            canvas = image.pixels()
            assert np.array_equal(canvas[:height, :width], drawn.pixels[image.key])
            assert not canvas[height:].any()
            assert not canvas[:, width:].any()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_photographs_come_out_upright(
    orientation: int,
    tmp_path: Path,
    write_tar: Callable[..., str],
    draw_image: Callable[..., Image.Image],
    encode_image: Callable[..., bytes],
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode_image(draw_image(40, 23), "JPEG", exif=exif)
    (batch,) = PackedImageLoader(write_tar(tmp_path / "a.tar", [("a.jpg", data)]), PACKING, batch_size=1)
    (image,) = batch.images()
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert batch.image_sizes[0, 0].tolist() == list(upright.shape[1::-1])
    assert np.array_equal(image.pixels()[: upright.shape[0], : upright.shape[1]], upright)


# Ends, good and bad


def test_iterator_that_is_dropped_leaves_no_threads(index: Index) -> None:
    batches = iter(PackedImageLoader(index, PACKING, batch_size=1, num_threads=3, prefetch=4))
    assert not decoding_threads()
    next(batches)
    assert len(decoding_threads()) == 3
    del batches
    assert not decoding_threads()


def test_loop_that_breaks_or_raises_leaves_no_threads(index: Index) -> None:
    loader = PackedImageLoader(index, PACKING, batch_size=1, num_threads=3)
    for _ in loader:
        break
    assert not decoding_threads()

    def interrupted() -> None:
        for _ in loader:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not decoding_threads()
    assert len(list(loader)) > 5


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no alarm")
def test_interrupt_while_waiting_for_an_image_ends_the_threads(index: Index) -> None:
    def slow(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        time.sleep(0.05)
        return image

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        began = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            list(PackedImageLoader(index, PACKING, batch_size=50, transform=slow, num_threads=2))
        # What has begun is waited for, 60 images are not.
        assert time.perf_counter() - began < 1.0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not decoding_threads()


def test_error_in_a_thread_leaves_no_threads(index: Index) -> None:
    def broken(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(PackedImageLoader(index, PACKING, batch_size=2, transform=broken, num_threads=4, prefetch=4))
    assert not decoding_threads()


def test_forgotten_iterator_in_a_cycle_is_cleaned_up(index: Index) -> None:
    class Holder:
        pass

    holder: Any = Holder()
    holder.batches = iter(PackedImageLoader(index, PACKING, batch_size=1, num_threads=2))
    next(holder.batches)
    holder.me = holder
    del holder
    gc.collect()
    assert not decoding_threads()


def test_python_ends_with_an_iterator_open(drawn: Any) -> None:
    code = f"""
from patchnpack.loaders import PackedImageLoader
from patchnpack.packer import Packing
batches = iter(PackedImageLoader({drawn.shards[0]!r}, Packing(seq_len=64, patch_size=8), batch_size=1, num_threads=2))
next(batches)
print("open")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "open\n", "")


def test_python_ends_while_a_transform_is_in_the_middle_of_torch(drawn: Any) -> None:
    code = f"""
import torch
from patchnpack.loaders import PackedImageLoader
from patchnpack.packer import Packing
torch.set_num_threads(1)
matrix = torch.zeros(3000, 3000)

def slow(image, rng):
    if len(image) and started.append(1) is None and len(started) > 20:
        matrix @ matrix
    return image

started = []
packing = Packing(seq_len=64, patch_size=8)
batches = iter(PackedImageLoader({drawn.shards!r}, packing, batch_size=1, num_threads=2, prefetch=30, transform=slow))
next(batches)
while len(started) < 25:
    pass
print("open")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "open\n", "")


def test_two_loaders_at_once_do_not_disturb_each_other(drawn: Any, index: Index, check_batch: Check) -> None:
    options: dict[str, Any] = {"label": "cls", "extras": ["txt"], "num_threads": 2}
    first = PackedImageLoader(index, PACKING, batch_size=2, **options)
    second = PackedImageLoader(drawn.shards, PACKING, batch_size=2, shuffle=True, **options)
    seen: tuple[list[PackedBatch], list[PackedBatch]] = ([], [])
    for pair in zip(first, second, strict=False):
        for batches, batch in zip(seen, pair, strict=True):
            check_batch(batch, drawn, index, PACKING)
            batches.append(batch)
    assert keys_of(seen[0]) != keys_of(seen[1])


def test_prefetch_bounds_how_far_ahead_images_are_made(index: Index) -> None:
    made: list[int] = []

    def note(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        made.append(1)
        return image

    for prefetch in (1, 3):
        made.clear()
        batches = iter(
            PackedImageLoader(index, PACKING, batch_size=1, prefetch=prefetch, transform=note, num_threads=1)
        )
        ahead = [len(keys) for batch in PackedImageLoader(index, PACKING, batch_size=1) for keys in batch.keys]
        next(batches)
        for _ in range(200):
            if len(made) >= sum(ahead[: prefetch + 1]):
                break
            time.sleep(0.005)
        time.sleep(0.05)
        assert len(made) == sum(ahead[: prefetch + 1])
        del batches


def test_shard_that_changes_during_the_epoch_is_an_error_that_names_it(make_drawn: MakeDrawn) -> None:
    drawn = make_drawn([5])
    loader = PackedImageLoader(drawn.shards, PACKING, batch_size=1)
    with open(drawn.shards[0], "ab") as file:
        file.write(bytes(512))
    with pytest.raises(OSError, match=r"drawn-000.tar' has \d+ bytes but had \d+ when it was indexed: it has changed"):
        list(loader)


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


# Mistakes are found before any work


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"batch_size": 2.5}, "batch_size is 2.5; it must be a whole number"),
        ({"prefetch": 0}, "prefetch is 0"),
        ({"num_threads": -1}, "num_threads is -1"),
        ({"shuffle_window": 0}, "shuffle_window is 0"),
        ({"num_streams": 0}, "num_streams is 0"),
        ({"num_streams": 4, "block": 6}, "block is 6; it must be a multiple of num_streams, 4"),
        ({"even": "fill"}, "even is 'fill'; it must be 'pad' or 'drop'"),
        ({"rank": 0}, "rank is 0 and world_size is None; give both or neither"),
        ({"world_size": 2}, "rank is None and world_size is 2; give both or neither"),
        ({"rank": 2, "world_size": 2}, "rank is 2; it must be from 0 to world_size - 1 = 1"),
        ({"rank": -1, "world_size": 2}, "rank is -1"),
        ({"extras": "txt"}, r"extras is 'txt'; give a list of extensions: \['txt'\]"),
        (
            {"extras": ["caption"]},
            "extras asks for 'caption', which no sample has; their members are cls, jpg, png, txt",
        ),
        ({"label": "class"}, "label 'class' is absent from all 60 samples; their members are .cls, .jpg, .png, .txt"),
        ({"label": "json:class"}, "label 'json:class' is absent from all 60 samples"),
        ({"label": "cls", "classes": ["a", "b"]}, "is not among the 2 classes"),
        ({"packing": Packing(patch_size=64)}, r"is smaller than a patch of 64x64 .* use a smaller patch_size"),
        ({"packing": PACKING.replace(seq_len=8, oversize="error")}, "more than seq_len 8"),
    ],
)
def test_mistaken_option_is_a_value_error_with_value_and_remedy(
    options: dict[str, Any], message: str, index: Index
) -> None:
    with pytest.raises(ValueError, match=message):
        PackedImageLoader(index, **{"packing": PACKING, "batch_size": 2, **options})


def test_streams_that_do_not_divide_a_step_are_refused_when_iteration_starts(index: Index) -> None:
    loader = PackedImageLoader(index, PACKING, batch_size=3, num_streams=2)
    with pytest.raises(ValueError, match="a step takes 3 packs, which num_streams 2 does not divide; choose"):
        iter(loader)


def test_seq_len_zero_and_negative_epochs_are_refused(index: Index) -> None:
    with pytest.raises(ValueError, match="seq_len is 0; it must be at least 1"):
        PackedImageLoader(index, Packing(seq_len=0), batch_size=1)
    with pytest.raises(ValueError, match="epoch is -1; it must be at least 0"):
        PackedImageLoader(index, PACKING, batch_size=1).set_epoch(-1)


def test_mistaken_source_is_an_error_with_value_and_remedy(
    tmp_path: Path, write_tar: Callable[..., str], drawn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path / "text.tar", [("a.txt", b"x")])
    for source, error, message in (
        ("train-{000000..000009}.tar", FileNotFoundError, "shard 'train-000000.tar' does not exist"),
        ("train-{}.tar", ValueError, "braces in 'train-{}.tar' name no shard"),
        ("text.tar", ValueError, r"shard '.*text.tar' has no image: its members end in .txt"),
        (drawn.folder, ValueError, "is a folder of 6 shards; name the shards"),
    ):
        with pytest.raises(error, match=message):
            PackedImageLoader(source, PACKING, batch_size=1)


# Real photographs

PHOTOGRAPHS = "/train-{000008..000009}.tar"


def test_photographs_come_out_pixel_for_pixel(clothing: str) -> None:
    index = scan(clothing + PHOTOGRAPHS)
    loader = PackedImageLoader(
        index,
        Packing(seq_len=1024, patch_size=32),
        batch_size=4,
        label="cls",
        num_threads=2,
        where=lambda index: np.arange(len(index)) % 5 == 0,
    )
    seen: list[str] = []
    for batch in loader:
        for image, row in zip(batch.images(), batch.rows[batch.image_mask].tolist(), strict=True):
            data = index.reader().read(int(index.shard_of(row)), int(index.offset[row]), int(index.nbytes[row]))
            pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            height, width, _ = pixels.shape
            canvas = image.pixels()
            assert np.array_equal(canvas[:height, :width], pixels)
            assert not canvas[height:].any()
            assert not canvas[:, width:].any()
            assert image.key == index.keys[row]
            assert str(image.label) == index.cls[row]
            seen.append(image.key)
    assert sorted(seen) == sorted(index.keys[::5])


def test_photographs_come_in_the_same_bytes_for_1_2_and_8_threads(clothing: str, contents: Contents) -> None:
    index = scan(clothing + PHOTOGRAPHS)
    runs = []
    for num_threads in (1, 2, 8):
        loader = PackedImageLoader(
            index, Packing(resolution=FitTokens(196)), batch_size=4, label="cls", shuffle=True, num_threads=num_threads
        )
        runs.append([contents(batch) for batch in loader])
        assert loader.stats()["images"] == 348
    assert runs[0] == runs[1] == runs[2]


def test_every_photograph_comes_once_an_epoch(clothing: str) -> None:
    index = scan(clothing + "/train-{000000..000009}.tar")
    loader = PackedImageLoader(index, Packing(resolution=FitTokens(25)), batch_size=16, shuffle=True)
    keys = keys_of(list(loader))
    assert len(keys) == len(set(keys)) == 3068
    assert set(keys) == set(index.keys)
