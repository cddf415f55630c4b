"""Worker processes share out the batches of the loader: the same ones, in the same order, bit for bit."""

from __future__ import annotations

import gc
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from patchnpack.loaders import BadDataError, ErrorPolicy, Index, PackedDataset, PackedImageLoader, scan
from patchnpack.packer import BetaDrop, PackedBatch, Packing, PatchSizes, RandomResizedCrop

PACKING = Packing(seq_len=64, patch_size=8, max_images=7, token_drop=BetaDrop(0.3, 0.6), balance=8)

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # more workers than this machine has CPUs
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),  # torchdata calls it
]

Contents = Callable[[PackedBatch], tuple[object, ...]]


def make(index: Index, **options: Any) -> PackedImageLoader:
    settled: dict[str, Any] = {
        "packing": PACKING,
        "batch_size": 2,
        "shuffle": True,
        "seed": 3,
        "label": "cls",
        "extras": ["txt"],
        "num_threads": 1,
    }
    return PackedImageLoader(index, **(settled | options))


def workers_of(dataset: PackedDataset, num_workers: int, **options: Any) -> DataLoader[PackedBatch]:
    return DataLoader(dataset, batch_size=None, num_workers=num_workers, **options)


def take(batches: Iterator[PackedBatch], count: int | None = None) -> list[PackedBatch]:
    try:
        return list(itertools.islice(batches, count))
    except BaseException:
        # If the garbage collector closes it, torch waits 5 seconds for each worker.
        getattr(batches, "_shutdown_workers", lambda: None)()
        raise


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"packing": PACKING.replace(patch_size=PatchSizes((4, 8))), "block": 6},
        {"packing": PACKING.replace(resolution=RandomResizedCrop(max_tokens=20)), "even": "drop"},
        {"rank": 1, "world_size": 3},
    ],
    ids=["plain", "sizes", "crops", "ranks"],
)
@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
def test_workers_yield_the_batches_of_the_loader_in_every_epoch(
    num_workers: int, options: dict[str, Any], index: Index, contents: Contents
) -> None:
    loader, other = make(index, **options), make(index, **options)
    data = workers_of(other.as_dataset(), num_workers)
    for _ in range(3):
        expected = [contents(batch) for batch in loader]
        assert len(data) == len(expected)
        assert [contents(batch) for batch in data] == expected
    assert other.stats()["images"] == loader.stats()["images"] > 0
    for name in ("batches", "packs", "tokens", "slots", "padding", "skipped", "bad_images"):
        assert other.stats()[name] == loader.stats()[name]


def test_more_workers_than_batches_yield_all_batches(index: Index, contents: Contents) -> None:
    expected = [contents(batch) for batch in make(index, batch_size=20)]
    assert len(expected) < 4
    assert [contents(batch) for batch in workers_of(make(index, batch_size=20).as_dataset(), 4)] == expected


def test_persistent_workers_advance_epochs_and_follow_set_epoch(index: Index, contents: Contents) -> None:
    epochs = {epoch: [contents(batch) for batch in itertools.islice(make_at(index, epoch), 3)] for epoch in range(4)}
    loader = make(index)
    data = workers_of(loader.as_dataset(), 2, persistent_workers=True)
    for epoch in (0, 1):
        assert [contents(batch) for batch in take(iter(data))][:3] == epochs[epoch]
    for epoch in (3, 0, 2):
        loader.set_epoch(epoch)
        assert [contents(batch) for batch in take(iter(data))][:3] == epochs[epoch]
    assert [contents(batch) for batch in take(iter(data))][:3] == epochs[3]


def make_at(index: Index, epoch: int) -> PackedImageLoader:
    loader = make(index)
    loader.set_epoch(epoch)
    return loader


def begin_late(worker: int) -> None:
    if worker == 1 and not begun_late:
        time.sleep(30)


begun_late: list[int] = []


def test_worker_killed_before_starting_does_not_stay_an_epoch_behind(index: Index, contents: Contents) -> None:
    dataset = make(index).as_dataset()
    begun_late.clear()
    iterator = iter(workers_of(dataset, 2, worker_init_fn=begin_late))
    next(iterator)
    iterator._shutdown_workers()  # type: ignore[attr-defined] # ends the second worker before it has started
    begun_late.append(1)
    expected = [contents(batch) for batch in make_at(index, 1)]
    assert [contents(batch) for batch in workers_of(dataset, 2, worker_init_fn=begin_late)] == expected


def test_shared_memory_is_released_with_its_dataset_and_counts_stay(index: Index) -> None:
    loader = make(index)
    fds = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        assert len(take(iter(workers_of(loader.as_dataset(), 1)))) == 8
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= fds
    assert loader.stats()["batches"] == 24


def test_repeating_dataset_has_no_length(index: Index) -> None:
    with pytest.raises(TypeError, match="never ends and has no length"):
        len(make(index, repeat=True).as_dataset())


def test_spawned_workers_yield_the_same_batches(index: Index, contents: Contents) -> None:
    expected = [contents(batch) for batch in make(index)]
    data = workers_of(make(index).as_dataset(), 2, multiprocessing_context="spawn")
    assert [contents(batch) for batch in data] == expected


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("epoch", [0, 2])
def test_state_after_a_batch_of_workers_resumes_with_the_next_batch(
    epoch: int, num_workers: int, index: Index, contents: Contents
) -> None:
    loader = make_at(index, epoch)
    batches = take(iter(workers_of(loader.as_dataset(), num_workers)))
    following = [contents(batch) for batch in make_at(index, epoch + 1)]
    for done in (0, 1, 4, len(batches) - 1):
        state = json.loads(json.dumps(loader.state_dict(after=batches[done])))
        for again in (0, 3):
            resumed = make(index)
            data = workers_of(resumed.as_dataset(), again)
            resumed.load_state_dict(state)
            left = [contents(batch) for batch in batches[done + 1 :]] or following
            assert len(data) == len(left)
            assert [contents(batch) for batch in data] == left
            if left is not following:
                assert len(data) == len(following)  # asked again: epochs differ in length
                assert [contents(batch) for batch in take(iter(data))] == following


def test_repeating_workers_resume_in_a_later_epoch(index: Index, contents: Contents) -> None:
    whole = [contents(batch) for batch in itertools.islice(make(index, repeat=True), 45)]
    loader = make(index, repeat=True)
    batches = take(iter(workers_of(loader.as_dataset(), 2)), 45)
    assert [contents(batch) for batch in batches] == whole
    assert batches[29].epoch >= 1
    resumed = make(index, repeat=True)
    resumed.load_state_dict(loader.state_dict(after=batches[29]))
    assert [contents(batch) for batch in take(iter(workers_of(resumed.as_dataset(), 3)), 15)] == whole[30:]


def test_state_without_a_batch_is_refused_with_workers(index: Index) -> None:
    loader = make(index)
    loader.state_dict()
    dataset = loader.as_dataset()
    with pytest.raises(ValueError, match=r"name the last batch that was used: state_dict\(after=batch\)"):
        loader.state_dict()
    loader.set_epoch(3)
    with pytest.raises(ValueError, match=r"state_dict\(after=batch\)"):
        loader.state_dict()
    del dataset


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("done", [0, 1, 5, 8])
def test_stateful_data_loader_resumes_with_the_next_batch(
    done: int, num_workers: int, index: Index, contents: Contents
) -> None:
    def stateful() -> StatefulDataLoader[PackedBatch]:
        return StatefulDataLoader(make(index).as_dataset(), batch_size=None, num_workers=num_workers)

    whole = [contents(batch) for batch in make(index)] + [contents(batch) for batch in make_at(index, 1)]
    data = stateful()
    for epoch in range(2):
        iterator = iter(data)
        for _ in range(done):
            next(iterator)
        state = data.state_dict()
        resumed = stateful()
        resumed.load_state_dict(state)
        begin = epoch * len(make(index))
        left = whole[begin + done : begin + (len(make(index)) if epoch == 0 else 10**6)]
        assert [contents(batch) for batch in resumed] == left
        if epoch == 0:
            assert [contents(batch) for batch in resumed] == whole[len(make(index)) :]
        for _ in iterator:
            pass


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stateful_data_loader_returns_to_a_state_and_continues(
    num_workers: int, index: Index, contents: Contents
) -> None:
    data = StatefulDataLoader(make(index).as_dataset(), batch_size=None, num_workers=num_workers)
    iterator = iter(data)
    for _ in range(3):
        next(iterator)
    state = data.state_dict()
    epochs = [[contents(batch) for batch in iterator], *([contents(batch) for batch in data] for _ in range(2))]
    data.load_state_dict(state)
    assert [[contents(batch) for batch in data] for _ in range(2)] == epochs[:2]


def test_another_number_of_workers_requires_set_epoch(index: Index, contents: Contents) -> None:
    loader = make(index)
    dataset = loader.as_dataset()
    take(iter(workers_of(dataset, 1)))
    with pytest.raises(ValueError, match=r"the number of workers was 1 and is 2 now; set the epoch to begin with"):
        take(iter(workers_of(dataset, 2)))
    loader.set_epoch(1)
    assert [contents(b) for b in workers_of(dataset, 2)] == [contents(b) for b in make_at(index, 1)]


def test_rank_is_read_when_iteration_starts(index: Index, contents: Contents, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make(index).as_dataset()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    expected = [contents(batch) for batch in make(index, rank=1, world_size=2)]
    data = workers_of(dataset, 2)
    assert len(data) == len(expected)
    assert [contents(batch) for batch in data] == expected


def test_worker_forked_while_threads_read_and_decode_does_not_hang(index: Index, contents: Contents) -> None:
    expected = [contents(batch) for batch in make(index)]
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            for _ in loader:
                pass

    loader = make(index, num_threads=4)
    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(5):
            data = workers_of(make(index).as_dataset(), 2, timeout=60)
            assert [contents(batch) for batch in data] == expected
            forked = workers_of(loader.as_dataset(), 1, timeout=60)  # its locks are in use by the threads
            assert sum(batch.num_images for batch in forked) == len(index)
    finally:
        stop.set()
        thread.join()


def test_error_in_a_worker_is_raised_with_the_key(index: Index) -> None:
    def fail(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        raise TypeError("no such thing")

    with pytest.raises(TypeError, match=r"(?s)no such thing.*for the image with key 's\di\d+'"):
        take(iter(workers_of(make(index, transform=fail).as_dataset(), 2)))


def test_policy_applies_in_workers_and_their_quarantine_lines_are_kept(
    make_drawn: Callable[..., Any], tmp_path: Any, contents: Contents
) -> None:
    drawn = make_drawn((20, 20), kinds=("jpg",))
    keys = drawn.keys[3::5]
    drawn.rewrite({f"{key}.jpg": drawn_bytes(drawn, key)[:-60] for key in keys})
    path = tmp_path / "bad.jsonl"
    loader = make(scan(drawn.shards), errors=ErrorPolicy(quarantine=path))
    expected = [contents(batch) for batch in make(scan(drawn.shards))]
    assert [contents(batch) for batch in workers_of(loader.as_dataset(), 2)] == expected
    assert sorted(json.loads(line)["key"] for line in path.read_text().splitlines()) == sorted(keys)
    assert loader.stats()["bad_images"] == len(keys)
    with pytest.raises(BadDataError, match=r"bad image 's\di\d+'"):
        take(iter(workers_of(make(scan(drawn.shards), errors=ErrorPolicy(on_error="raise")).as_dataset(), 2)))


def drawn_bytes(drawn: Any, key: str) -> bytes:
    index = scan(drawn.shards)
    i = list(index.keys).index(key)
    return index.reader().read(int(index.shard_of(i)), int(index.offset[i]), int(index.nbytes[i]))


def test_abandoned_iterator_leaves_no_process(index: Index) -> None:
    data = workers_of(make(index, repeat=True).as_dataset(), 2)
    iterator = iter(data)
    next(iterator)
    pids = [worker.pid for worker in iterator._workers]  # type: ignore[attr-defined]
    del iterator
    gc.collect()
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_loader_given_to_a_dataloader_raises_with_the_fix(drawn: Any) -> None:
    loader = PackedImageLoader(drawn.shards, Packing(seq_len=64, patch_size=8), batch_size=1)
    with pytest.raises(TypeError, match=r"DataLoader\(loader.as_dataset\(\), batch_size=None\)"):
        next(iter(DataLoader(loader)))  # type: ignore[arg-type]
