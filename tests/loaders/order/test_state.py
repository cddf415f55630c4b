"""Resuming: the tail of the order, in order, bit for bit, wherever the state was saved."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from patchnpack.loaders import Index, PackedImageLoader, scan
from patchnpack.loaders.order import state as state_module
from patchnpack.packer import BetaDrop, PackedBatch, Packing, PatchSizes, RandomResizedCrop
from patchnpack.packer.binpacking.pricing.prices import Prices

PACKING = Packing(seq_len=64, patch_size=8, max_images=7)
SIZES = PatchSizes((4, 8))

Contents = Callable[[PackedBatch], tuple[object, ...]]


def _saved(loader: PackedImageLoader, **options: Any) -> Any:
    """Return the state as it is read back from a file."""
    return json.loads(json.dumps(loader.state_dict(**options)))


def _packs(batches: list[PackedBatch]) -> list[tuple[int, list[str]]]:
    """Return the packs of batches that have images, each with its epoch."""
    return [(batch.epoch, keys) for batch in batches for keys in batch.keys if keys]


CASES: list[dict[str, Any]] = [
    {},
    {"shuffle": True, "packing": PACKING.replace(balance=8, token_drop=BetaDrop(0.3, 0.6))},
    {"shuffle": True, "packing": PACKING.replace(balance=1000), "num_streams": 2},
    {"shuffle": True, "even": "drop", "batch_size": 5},
    {"shuffle": True, "even": "drop", "num_streams": 2, "block": 6},
    {"shuffle": True, "packing": PACKING.replace(patch_size=SIZES, balance=12), "block": 6},
    {"packing": PACKING.replace(resolution=RandomResizedCrop(max_tokens=20), fill="trim")},
    {"shuffle": True, "packing": PACKING.replace(algorithm="priced"), "num_streams": 2},
    {"shuffle": True, "packing": PACKING.replace(algorithm="priced", patch_size=SIZES, fill="trim"), "block": 6},
]


@pytest.mark.parametrize("case", CASES, ids=[str(i) for i in range(len(CASES))])
@pytest.mark.parametrize("num_threads", [1, 4])
def test_resume_after_any_batch_yields_exactly_the_remaining_batches(
    num_threads: int, case: dict[str, Any], index: Index, contents: Contents
) -> None:
    def make(threads: int = num_threads) -> PackedImageLoader:
        options: dict[str, Any] = {"packing": PACKING, "batch_size": 2, "seed": 4, "num_threads": threads}
        return PackedImageLoader(index, **(options | case))

    loader = make()
    states, epochs = [_saved(loader)], list[list[tuple[object, ...]]]()
    for _ in range(3):
        epochs.append([])
        for batch in loader:
            epochs[-1].append(contents(batch))
            states.append(_saved(loader))
    # A state at the end of an epoch resumes with the next epoch.
    ends = [(epoch, done) for epoch in range(2) for done in range(len(epochs[epoch]))]
    for state, (epoch, done) in zip(states, ends, strict=False):
        resumed = make(3)
        resumed.load_state_dict(state)
        assert len(resumed) == len(epochs[epoch]) - done
        assert [contents(batch) for batch in resumed] == epochs[epoch][done:], f"after {done} batches"
        if done in (0, 3):
            assert [contents(batch) for batch in resumed] == epochs[epoch + 1]


def test_repeating_loader_resumes_in_any_epoch(index: Index, contents: Contents) -> None:
    def make() -> PackedImageLoader:
        return PackedImageLoader(index, PACKING, batch_size=3, shuffle=True, repeat=True)

    loader, whole, states = make(), [], []
    for batch in itertools.islice(loader, 40):
        whole.append(contents(batch))
        states.append(_saved(loader))
    assert states[-1]["epoch"] >= 2
    for done in (1, 7, 20, 30):
        resumed = make()
        resumed.load_state_dict(states[done - 1])
        assert [contents(batch) for batch in itertools.islice(resumed, 40 - done)] == whole[done:]


CODE = """
import hashlib, json, sys
from patchnpack import PackedImageLoader, Packing
shards, state = json.loads(sys.argv[1])
loader = PackedImageLoader(shards, Packing(seq_len=64, patch_size=8, max_images=7), batch_size=2, shuffle=True, seed=9)
loader.load_state_dict(state)
for batch in loader:
    print(batch.position, batch.keys, hashlib.sha256(batch.patches.numpy().tobytes()).hexdigest())
"""


def test_fresh_process_resumes_with_the_same_bytes(drawn: Any) -> None:
    import hashlib

    loader = PackedImageLoader(drawn.shards, PACKING, batch_size=2, shuffle=True, seed=9)
    batches = iter(loader)
    for _ in range(5):
        next(batches)
    state = _saved(loader)
    here = [
        f"{batch.position} {batch.keys} {hashlib.sha256(batch.patches.numpy().tobytes()).hexdigest()}"
        for batch in batches
    ]
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps([drawn.shards, state])], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == here


# Other ranks, other batch sizes


def _object_meta(batches: list[PackedBatch]) -> dict[str, tuple[int, tuple[int, int]]]:
    """Return the patch size and grid of each image."""
    return {image.key: (batch.patch_size, image.grid) for batch in batches for image in batch.images()}


def _step(loaders: list[Iterator[PackedBatch]]) -> list[PackedBatch]:
    return [batch for batch in (next(loader, None) for loader in loaders) if batch is not None]


@pytest.mark.parametrize(("patch_size", "algorithm"), [(8, "priced"), (8, "subset_sum"), (SIZES, "priced")])
@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize(("ranks", "others"), list(itertools.product([1, 2, 3, 4, 8], repeat=2)))
def test_state_of_any_number_of_ranks_loads_on_any_other(
    ranks: int, others: int, after: int, patch_size: Any, algorithm: Any, index: Index
) -> None:
    packing = PACKING.replace(patch_size=patch_size, algorithm=algorithm)

    def make(world_size: int, batch_size: int) -> list[PackedImageLoader]:
        return [
            PackedImageLoader(
                index, packing, batch_size=batch_size, shuffle=True, block=24, rank=rank, world_size=world_size,
                num_threads=1,
            )
            for rank in range(world_size)
        ]  # fmt: skip

    batches = list(make(1, 1)[0])
    alone, facts = _packs(batches), _object_meta(batches)
    for batch_size in {24 // ranks, 1}:
        before = make(ranks, batch_size)
        running = [iter(loader) for loader in before]
        seen = [batch for _ in range(after) for batch in _step(running)]
        states = [_saved(loader) for loader in before]
        for iterator in running:
            iterator.close()  # type: ignore[attr-defined]
        assert all(state == states[0] for state in states), "the state is the same on every rank"
        for other_size in {24 // others, 1}:
            loaders = make(others, other_size)
            for loader in loaders:
                loader.load_state_dict(states[0])
            lengths = {len(loader) for loader in loaders}
            tails = [list(loader) for loader in loaders]
            assert lengths == {len(tail) for tail in tails}, "every rank has as many batches"
            first = tails[0][0].epoch  # the next epoch if all batches had been used
            assert _object_meta([b for tail in tails for b in tail]).items() <= facts.items() or first
            packs = [
                pack for step in zip(*tails, strict=True) for row in zip(*(b.keys for b in step), strict=True)
                for pack in row if pack
            ]  # fmt: skip
            done = [pack for _, pack in _packs(seen)]
            if first:
                assert sorted(map(str, done)) == sorted(str(pack) for _, pack in alone)
                continue
            assert sorted(map(str, done + packs)) == sorted(str(pack) for _, pack in alone), "nothing twice, none lost"
            assert packs == [pack for _, pack in alone][len(done) :], "in order"


@pytest.mark.parametrize("even", ["pad", "drop"])
@pytest.mark.parametrize(("saved_step", "step"), [(1, 2), (1, 3), (1, 6), (2, 3), (2, 6), (3, 2)])
def test_with_patch_sizes_a_step_ends_with_its_block_and_the_length_counts_it(
    saved_step: int, step: int, even: Any, index: Index
) -> None:
    packing = PACKING.replace(patch_size=SIZES, balance=0)
    saved = PackedImageLoader(index, packing, batch_size=saved_step, block=6)
    whole = _object_meta(list(saved))
    for after in range(1, 7):
        loader = PackedImageLoader(index, packing, batch_size=step, block=6, even=even)
        loader.load_state_dict({**_saved(saved), "epoch": 0, "position": after * saved_step})
        batches = list(zip(range(len(loader)), loader, strict=True))
        assert _object_meta([batch for _, batch in batches]).items() <= whole.items()


def test_state_carries_the_block(index: Index) -> None:
    packing = PACKING.replace(balance=16)
    first = PackedImageLoader(index, packing, batch_size=8, shuffle=True)
    whole = [pack for _, pack in _packs(list(first))]
    first = PackedImageLoader(index, packing, batch_size=8, shuffle=True)
    next(iter(first))
    other = PackedImageLoader(index, packing, batch_size=3, shuffle=True)
    other.load_state_dict(_saved(first))
    assert [pack for _, pack in _packs(list(other))] == whole[8:]
    assert other.state_dict()["block"] == 8


# What a state is


def test_prefetched_batches_are_not_counted_and_after_accepts_any_batch(index: Index, contents: Contents) -> None:
    loader = PackedImageLoader(index, PACKING, batch_size=2, prefetch=5)
    batches = iter(loader)
    held = [next(batches) for _ in range(4)]
    assert loader.state_dict()["position"] == 8
    assert [loader.state_dict(after=batch)["position"] for batch in held] == [2, 4, 6, 8]
    rest = [contents(batch) for batch in batches]
    resumed = PackedImageLoader(index, PACKING, batch_size=2)
    resumed.load_state_dict(_saved(loader, after=held[1]))
    assert [contents(batch) for batch in resumed] == [contents(held[2]), contents(held[3]), *rest]


def test_a_state_belongs_to_its_prices_and_stays_small(index: Index) -> None:
    def make(prices: Prices | None) -> PackedImageLoader:
        packing = PACKING.replace(algorithm="priced", prices=prices and (prices,))
        return PackedImageLoader(index, packing, batch_size=2)

    own = make(None).packing.prices
    assert own is not None
    state = _saved(make(None))
    assert len(json.dumps(state)) < 4096
    make(own[0]).load_state_dict(state)
    with pytest.raises(
        ValueError, match=r"saved with packing.prices = \w{32}, this loader has \w{32}: the packs would not"
    ):
        make(Prices((3,), (1000,))).load_state_dict(state)


def test_resume_does_not_read_seen_images(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = PackedImageLoader(index, PACKING, batch_size=2)
    for _ in zip(range(10), loader, strict=False):
        pass
    resumed = PackedImageLoader(index, PACKING, batch_size=2)
    resumed.load_state_dict(loader.state_dict())
    read: list[tuple[int, int, int]] = []
    reader = resumed.context.reader
    plain = reader.read

    def counted(shard: int, offset: int, nbytes: int) -> bytes:
        read.append((shard, offset, nbytes))
        return plain(shard, offset, nbytes)

    monkeypatch.setattr(reader, "read", counted)
    left = sum(batch.num_images for batch in resumed)
    assert len(read) == left < len(index) - 20


def test_states_after_the_first_read_no_row_and_two_shard_names(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted(np.ndarray):  # a view that counts sums
        sums = 0

        def sum(self, *args: Any, **options: Any) -> Any:
            Counted.sums += 1
            return super().sum(*args, **options)

    loader = PackedImageLoader(index, PACKING, batch_size=2)
    order = loader.steps().order
    object.__setattr__(order, "usable", order.usable.view(Counted))
    first, summed = loader.state_dict(), Counted.sums
    named: list[str] = []
    assert summed == 1

    def name_of(shard: str) -> str:
        named.append(shard)
        return real(shard)

    real = state_module.name_of  # type: ignore[attr-defined]  # what the module imports
    monkeypatch.setattr(state_module, "name_of", name_of)
    assert [loader.state_dict() for _ in range(5)] == [first] * 5
    assert Counted.sums == summed
    assert named == [index.shards[0], index.shards[-1]] * 5


def test_set_epoch_keeps_the_cursor_only_in_its_own_epoch(index: Index) -> None:
    loader = PackedImageLoader(index, PACKING, batch_size=2)
    whole = len(loader)
    next(iter(loader))
    state = loader.state_dict()
    for epoch, left in ((0, whole - 1), (1, whole)):
        resumed = PackedImageLoader(index, PACKING, batch_size=2)
        resumed.load_state_dict(state)
        resumed.set_epoch(epoch)
        assert (len(resumed), {batch.epoch for batch in resumed}) == (left, {epoch})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"packing": PACKING.replace(seq_len=65)}, "packing.seq_len = 64, this loader has 65"),
        ({"packing": PACKING.replace(token_drop=BetaDrop(0.1, 0.2))}, r"packing.token_drop = NoDrop\(\), this"),
        ({"seed": 1}, "seed = 0, this loader has 1"),
        ({"shuffle": True}, "shuffle = False, this loader has True"),
        ({"num_streams": 2}, "num_streams = 1, this loader has 2"),
        (
            {"where": lambda index: index.width > 20},
            r"\d+ samples used of .*, this loader has \d+; where=, decode=, pages=, bad",
        ),
        ({"where": lambda index: index.width != index.width[0]}, r"60 samples used of those in its index, this"),
    ],
)
def test_state_of_another_order_is_refused_with_the_difference(
    changes: dict[str, Any], message: str, index: Index
) -> None:
    state = PackedImageLoader(index, PACKING, batch_size=2).state_dict()
    options: dict[str, Any] = {"packing": PACKING, "batch_size": 2} | changes
    with pytest.raises(ValueError, match=f"the state was saved with {message}"):
        PackedImageLoader(index, **options).load_state_dict(state)


def test_state_of_other_shards_is_refused(drawn: Any, index: Index) -> None:
    state = PackedImageLoader(index, PACKING, batch_size=2).state_dict()
    with pytest.raises(
        ValueError, match=r"6 shards, this loader has 1: .*, over 6 shards, drawn-000.tar to drawn-005.tar"
    ):
        PackedImageLoader(drawn.shards[:1], PACKING, batch_size=2).load_state_dict(state)


def test_state_of_the_same_shards_in_another_order_is_refused_in_words(drawn: Any, index: Index) -> None:
    state = PackedImageLoader(index, PACKING, batch_size=2).state_dict()
    with pytest.raises(
        ValueError, match=r"the same number of shards, images .*, but other images or another order"
    ) as caught:
        PackedImageLoader(drawn.shards[::-1], PACKING, batch_size=2).load_state_dict(state)
    assert state["fingerprint"]["index"] not in str(caught.value)
    del state["source"]  # as in states of an earlier version
    with pytest.raises(ValueError, match="as it was then, over the same shards, or start again"):
        PackedImageLoader(drawn.shards[::-1], PACKING, batch_size=2).load_state_dict(state)


@pytest.mark.parametrize("state", [{}, {"epoch": 1}, None, {"epoch": "x", "position": 0, "block": 1}, [1, 2]])
def test_invalid_state_is_refused(state: Any, index: Index) -> None:
    with pytest.raises(ValueError, match="this is not the state of a loader"):
        PackedImageLoader(index, PACKING, batch_size=2).load_state_dict(state)


def test_other_decoder_builds_warn_and_resume(index: Index) -> None:
    loader = PackedImageLoader(index, PACKING, batch_size=2)
    state = loader.state_dict() | {"decoders": "simplejpeg 0.1, Pillow 3"}
    with pytest.warns(UserWarning, match="saved with simplejpeg 0.1, Pillow 3, this is simplejpeg"):
        loader.load_state_dict(state)
    assert len(list(loader)) == len(loader)


@pytest.mark.parametrize("even", ["pad", "drop"])
def test_counts_before_and_after_a_resume_add_up(even: Any, make_drawn: Callable[..., Any]) -> None:
    drawn = make_drawn((40, 30, 20), kinds=("jpg",))
    drawn.rewrite({f"{key}.jpg": b"no image" for key in drawn.keys[::9]})
    index = scan(drawn.shards)

    def make() -> PackedImageLoader:
        return PackedImageLoader(
            index,
            PACKING.replace(seq_len=20, oversize="skip"),
            batch_size=3,
            shuffle=True,
            shuffle_window=1,
            even=even,
            where=lambda index: (index.width == 0) | (index.width > 12),
        )

    counted = ("images", "bad_images", "oversize", "batches", "tokens")

    def counts(loader: PackedImageLoader) -> dict[str, int]:
        stats = loader.stats()
        found: dict[str, int] = {name: stats[name] for name in counted} | stats["skipped"]
        return found

    whole = make()
    steps = len(list(whole))
    assert counts(whole)["images"] + counts(whole)["bad_images"] + sum(whole.stats()["skipped"].values()) == 90
    assert min(counts(whole)[name] for name in ("bad_images", "oversize", "where")) > 0
    for done in range(1, steps + 1):
        first, second = make(), make()
        iterator = iter(first)
        for _ in range(done):
            next(iterator)
        second.load_state_dict(_saved(first))
        if done < steps:
            list(second)
        else:
            assert list(iterator) == []  # nothing follows the last batch
        both = {name: count + counts(second)[name] for name, count in counts(first).items()}
        assert both == counts(whole), done
