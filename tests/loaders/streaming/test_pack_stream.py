"""`pack_stream` plans like the loader, yields each sample once, and keeps few samples waiting."""

from __future__ import annotations

import contextlib
import itertools
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchnpack.loaders import PackedImageLoader
from patchnpack.loaders.streaming.pack_stream import pack_stream
from patchnpack.packer import (
    BetaDrop,
    ConstantDrop,
    FitTokens,
    Native,
    Packing,
    PatchSizes,
    Plan,
    Planner,
    RandomResizedCrop,
    Rows,
    ScheduledDrop,
    plan,
)
from patchnpack.packer.binpacking.algorithms import CHOICES
from patchnpack.packer.binpacking.pack_lengths import resolve_algorithm
from tests.loaders.streaming.streams import PACKING, Contents, break_data, flat, rows_in, samples_of


def mirror_or_brighten(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image[:, ::-1] if rng.random() < 0.5 else image // 2


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"algorithm": "priced"},
        {"algorithm": "largest_fit"},
        {"algorithm": "next_fit"},
        {"algorithm": "first_fit"},
        {"algorithm": "best_fit_decreasing", "lookahead": 4},
        {"lookahead": 1},
        {"lookahead": 7},
        {"token_drop": BetaDrop(0.4, 0.8)},
        {"token_drop": ScheduledDrop(drop=ConstantDrop(0.6), start=0, end=1, midpoint=20, tau=5)},
        {"token_drop": ConstantDrop(0.5), "fill": "none"},
        {"resolution": RandomResizedCrop(max_tokens=20), "image_mode": "L"},
        {"resolution": FitTokens(12), "image_mode": "RGBA"},
        {"fill": "trim", "max_trim": 0.2, "lookahead": 9},
        {"fill": "rescale", "max_scale": 0.2, "lookahead": 9},
        {"seq_len": 24, "oversize": "shrink"},
        {"seq_len": 24, "oversize": "drop"},
        {"seq_len": 24, "oversize": "skip", "algorithm": "priced"},
        {"patch_size": PatchSizes((4, 6, 8)), "seq_len": 200},
        {"patch_size": PatchSizes((4, 8), (1, 0), (0, 1), 20), "seq_len": 200, "algorithm": "priced"},
    ],
    ids=str,
)
def test_batches_equal_those_of_the_loader_over_one_shard(
    changes: dict[str, Any], make_drawn: Callable[..., Any], contents: Contents
) -> None:
    drawn = make_drawn([45])
    break_data(drawn, drawn.keys[5:8], [drawn.keys[0], drawn.keys[20], drawn.keys[44]])
    packing = PACKING.replace(**changes)
    options: dict[str, Any] = {
        "batch_size": 3,
        "label": "cls",
        "extras": ["txt"],
        "transform": mirror_or_brighten,
        "seed": 3,
    }
    loader = PackedImageLoader(drawn.shards, packing, **options)
    expected = [contents(batch) for batch in loader]
    stream = pack_stream(samples_of(drawn.shards), packing, **options)
    assert [contents(batch) for batch in stream] == expected
    assert len(expected) > 1
    ours, theirs = stream.stats(), loader.stats()
    for name in ("batches", "packs", "images", "tokens", "slots", "oversize", "skipped", "bad_images"):
        assert ours[name] == theirs[name], name
    kept = ("row", "key", "shard", "stage", "reason")
    rows = [sorted([bad[name] for name in kept] for bad in stats["bad"]) for stats in (ours, theirs)]
    assert rows[0] == rows[1]


def test_batches_equal_those_of_the_loader_over_several_shards(
    drawn: Any, contents: Contents, check_batch: Callable[..., None]
) -> None:
    loader = PackedImageLoader(drawn.shards, PACKING, batch_size=2, label="cls", extras=["txt"])
    stream = pack_stream(samples_of(drawn.shards), PACKING, batch_size=2, label="cls", extras=["txt"])
    for batch, expected in zip(stream, loader, strict=True):
        assert contents(batch) == contents(expected)
        check_batch(batch, drawn, loader.index, PACKING)


@pytest.mark.parametrize(("num_threads", "prefetch"), [(0, 1), (1, 1), (2, 2), (5, 4)])
def test_batches_do_not_depend_on_threads(num_threads: int, prefetch: int, drawn: Any, contents: Contents) -> None:
    packing = PACKING.replace(token_drop=BetaDrop(0.4, 0.8), lookahead=8)
    options: dict[str, Any] = {"batch_size": 2, "transform": mirror_or_brighten, "seed": 1, "label": "cls"}
    expected = [contents(batch) for batch in pack_stream(samples_of(drawn.shards), packing, num_threads=2, **options)]
    stream = pack_stream(samples_of(drawn.shards), packing, num_threads=num_threads, prefetch=prefetch, **options)
    assert [contents(batch) for batch in stream] == expected


def test_seed_changes_only_the_draws(drawn: Any) -> None:
    packing = PACKING.replace(token_drop=ConstantDrop(0.5))
    first, again, other = (
        list(pack_stream(samples_of(drawn.shards), packing, batch_size=50, seed=seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first[0].coords, again[0].coords)
    assert first[0].keys == other[0].keys
    assert not torch.equal(first[0].coords, other[0].coords)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(8, 60), st.integers(1, 40)), max_size=60),
    seq_len=st.integers(1, 40),
    max_images=st.integers(1, 9),
    lookahead=st.integers(1, 40),
    batch_size=st.integers(1, 4),
    algorithm=st.sampled_from(["subset_sum", "largest_fit", "next_fit", "best_fit", "first_fit_decreasing"]),
    oversize=st.sampled_from(["shrink", "drop", "skip"]),
    drop_last=st.booleans(),
    num_threads=st.integers(0, 2),
)
def test_packs_equal_the_plan_and_each_sample_comes_once(
    sizes: list[tuple[int, int]],
    seq_len: int,
    max_images: int,
    lookahead: int,
    batch_size: int,
    algorithm: Any,
    oversize: Any,
    drop_last: bool,
    num_threads: int,
) -> None:
    packing = Packing(
        seq_len=seq_len,
        patch_size=8,
        max_images=max_images,
        lookahead=lookahead,
        algorithm=algorithm,
        oversize=oversize,
        resolution=Native(edge="resize"),
    )
    width, height = (np.array([size[side] for size in sizes], np.int32) for side in (0, 1))
    planned = plan(Rows.of_sizes(width, height), packing)
    expected = [planned.pack(i).row.tolist() for i in range(len(planned))]
    pairs = [(flat(w, h, i % 250 + 1), i) for i, (w, h) in enumerate(sizes)]
    stream = pack_stream(pairs, packing, batch_size=batch_size, drop_last=drop_last, num_threads=num_threads)
    batches = list(stream)

    packs = [[row for row in pack if row >= 0] for batch in batches for pack in batch.rows.tolist()]
    tail = len(expected) % batch_size if drop_last else 0
    filled = expected[: len(expected) - tail]
    assert packs[: len(filled)] == filled
    assert not any(packs[len(filled) :])
    assert (
        len(packs)
        == len(batches) * batch_size
        == (len(filled) // batch_size if drop_last else -(-len(filled) // batch_size)) * batch_size
    )
    for step, batch in enumerate(batches):
        assert (batch.step, batch.epoch, batch.position) == (step, 0, (step + 1) * batch_size)
        assert torch.equal(batch.labels[batch.image_mask], batch.rows[batch.image_mask])
        rows = batch.rows[batch.image_mask].tolist()
        assert batch.image_sizes[batch.image_mask].tolist() == [list(sizes[row]) for row in rows]
        for row, image in zip(rows, batch.images(), strict=True):
            assert set(np.unique(image.patches.numpy()).tolist()) - {0} == {row % 250 + 1}
    stats = stream.stats()
    assert stats["skipped"]["oversize"] == len(planned.skipped)
    assert stats["images"] + stats["skipped"]["oversize"] + stats["skipped"]["tail"] == len(sizes)
    left_out = set(planned.skipped.tolist()) | {row for pack in expected[len(filled) :] for row in pack}
    assert sorted(rows_in(batches)) == [row for row in range(len(sizes)) if row not in left_out]


@pytest.mark.parametrize("algorithm", ["subset_sum", "largest_fit", "next_fit", "best_fit"])
@pytest.mark.parametrize("num_threads", [0, 2])
def test_lookahead_bounds_the_waiting_samples(algorithm: Any, num_threads: int) -> None:
    lookahead, batch_size, prefetch, count = 32, 2, 1, 1500
    packing = Packing(seq_len=16, patch_size=8, lookahead=lookahead, algorithm=algorithm, oversize="skip")
    refs: list[weakref.ref[np.ndarray]] = []
    arrived = peak = 0

    def alive() -> int:
        refs[:] = [one for one in refs if one() is not None]
        return len(refs)

    def pairs() -> Iterator[tuple[np.ndarray, int]]:
        nonlocal arrived, peak
        rng = np.random.default_rng(0)
        for i in range(count):
            image = flat(*rng.integers(8, 37, 2).tolist())  # one in five is oversize
            refs.append(weakref.ref(image))
            arrived += 1
            peak = max(peak, alive())
            yield image, i

    stream = pack_stream(pairs(), packing, batch_size=batch_size, num_threads=num_threads, prefetch=prefetch)
    images = yielded = 0
    with contextlib.closing(stream):  # a traceback would keep its threads alive, in other tests, too
        for batch in stream:
            images, yielded = max(images, batch.num_images), yielded + batch.num_images
            # Samples that were handed out are released as soon as the thread that finished the batch lets go of it;
            # beyond these, only the last sample to arrive is held.
            limit, end = arrived - yielded - stream.stats()["skipped"]["oversize"] + 1, time.monotonic() + 5
            while alive() > limit and time.monotonic() < end:
                time.sleep(0.001)
            assert alive() <= limit
    skipped = stream.stats()["skipped"]["oversize"]
    assert yielded + skipped == count
    assert skipped > 100
    # Samples that wait, that have just arrived, that are in the batch being filled, and that are in flight.
    in_flight = (prefetch + 1) * images if num_threads else 0
    assert lookahead <= peak <= lookahead + 16 + images + in_flight
    assert alive() == 0


def test_first_samples_decide_what_auto_stands_for() -> None:
    packing = Packing(seq_len=64, patch_size=8, lookahead=40, algorithm="auto")
    rng = np.random.default_rng(0)
    decided = set()
    for most in (6, 12, 24, 40, 64) * 3:
        tokens = rng.integers(1, most + 1, 200)
        algorithm, prices = resolve_algorithm("auto", tokens[:40], 64, max_items=packing.max_images, lookahead=40)
        decided.add(algorithm)
        settled = packing.replace(algorithm=algorithm, prices=prices and (prices,))
        pairs = [(flat(8 * n, 8), 0) for n in tokens.tolist()]
        packs, expected = (
            [batch.rows.tolist() for batch in pack_stream(pairs, packing, batch_size=1)]
            for packing in (packing, settled)
        )
        assert packs == expected
    assert {"subset_sum", "largest_fit"} <= decided <= set(CHOICES)


def test_later_samples_decide_again() -> None:
    packing = Packing(seq_len=64, patch_size=8, lookahead=40, algorithm="priced")
    rng = np.random.default_rng(0)
    widths = 8 * np.concatenate([rng.integers(1, 10, 500), rng.integers(10, 60, 700)])
    pairs = [(flat(width, 8), 0) for width in widths.tolist()]
    packs = [batch.rows[batch.image_mask].tolist() for batch in pack_stream(pairs, packing, batch_size=1)]
    plans = []
    for decide_at in ([40, 1024], [40]):
        planner = Planner(packing, decide_at=decide_at)
        made = Plan.concatenate([planner.add(Rows.of_sizes(widths, np.full(1200, 8))), planner.finish()])
        plans.append([made.pack(i).row.tolist() for i in range(len(made))])
    assert packs == plans[0] != plans[1]


def test_batch_is_yielded_before_the_stream_ends() -> None:
    packing = Packing(seq_len=16, patch_size=8, lookahead=10)
    endless = ((flat(16, 16), i) for i in itertools.count())
    stream = pack_stream(endless, packing, batch_size=1, num_threads=0)
    assert sorted(rows_in(itertools.islice(stream, 5))) == list(range(20))
    stream.close()


def test_oldest_sample_leaves_within_lookahead_packs() -> None:
    packing = Packing(seq_len=16, patch_size=8, lookahead=10, max_images=3)
    sides = itertools.cycle([32, 8, 8, 24, 16])
    pairs = ((flat(side, side), i) for i, side in zip(range(300), sides, strict=False))
    for step, batch in enumerate(pack_stream(pairs, packing, batch_size=1)):
        assert min(rows_in([batch])) >= step - 3 * 10
