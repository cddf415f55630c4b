"""The loader as a dataset: worker processes of a DataLoader share its batches, in the loader's own order."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch.utils.data import IterableDataset, get_worker_info

from patchnpack.loaders.assembly.pipeline import Pipeline, WorkerShard
from patchnpack.loaders.assembly.stats import Stats
from patchnpack.loaders.order.rank_steps import Steps
from patchnpack.loaders.order.state import Cursor
from patchnpack.packer import PackedBatch

MAX_WORKERS = 256
_EPOCH, _POSITION, _BLOCK, _RANK, _WORLD_SIZE = range(5)  # columns that the main process publishes
# Columns that each worker writes: iterators begun since, the number of workers, the base seed of the last iterator, and
# how many iterators began before it.
_BEGUN, _WORKERS, _SEED, _BEFORE = range(4)


class BatchLoader(Protocol):
    """What a dataset asks of the loader whose batches it hands out; see `PackedImageLoader`."""

    repeat: bool

    @property
    def block(self) -> int | None:
        """Packs per block, None if it is the packs of a step."""
        ...

    def rank(self) -> tuple[int, int]:
        """Return rank and world size, as they are now."""
        ...

    def configure_worker(self, rank: int, world_size: int, block: int | None) -> None:
        """Take over rank, world size and block of the main process."""
        ...

    def next_cursor(self) -> Cursor:
        """Return where the next iterator begins."""
        ...

    def steps(self) -> Steps:
        """Return the order of the epochs, cut into steps for the current ranks."""
        ...

    def batches(self) -> Pipeline:
        """Return what makes the batches of an iterator that begins now."""
        ...

    def numbers(self) -> torch.Tensor:
        """Return the totals of this process."""
        ...

    def state_at(self, cursor: Cursor) -> dict[str, Any]:
        """Return the state of a loader that stands at `cursor`."""
        ...

    def read_state(self, state: Mapping[str, Any]) -> tuple[Cursor, int]:
        """Return the cursor and the block of a state."""
        ...


class PackedDataset(IterableDataset[PackedBatch]):
    """The result of `PackedImageLoader.as_dataset`: iterate it through `DataLoader(dataset, batch_size=None)`.

    The start of the next iterator is kept in memory that worker processes share. Hence `set_epoch` and
    `load_state_dict` of the loader reach persistent workers, and each `iter` of the DataLoader is the next epoch. The
    iterator has `state_dict` and `load_state_dict`, which torchdata's StatefulDataLoader calls.
    """

    def __init__(self, loader: BatchLoader, totals: torch.Tensor) -> None:
        self._loader = loader
        self._published = torch.zeros(5, dtype=torch.int64).share_memory_()
        self._begun = torch.zeros((MAX_WORKERS, 4), dtype=torch.int64).share_memory_()
        self._totals = totals
        self.publish()

    def publish(self) -> None:
        """Publish the loader's cursor to the workers."""
        cursor = self._loader.next_cursor()
        self._published[_EPOCH], self._published[_POSITION] = cursor.epoch, cursor.position
        self._published[_BLOCK] = self._loader.block or 0
        self._publish_rank()
        self._begun.zero_()

    def _publish_rank(self) -> None:
        self._published[_RANK], self._published[_WORLD_SIZE] = self._loader.rank()

    def __len__(self) -> int:
        if self._loader.repeat:
            raise TypeError("a loader with repeat=True never ends and has no length; use total_steps(epochs)")
        self._publish_rank()
        return self._loader.steps().count(self._begin(int(self._begun[:, _BEGUN].max())))

    def __getstate__(self) -> dict[str, Any]:
        self._publish_rank()  # spawned processes receive the dataset when iteration starts
        return self.__dict__

    def __iter__(self) -> Iterator[PackedBatch]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        if workers > MAX_WORKERS:
            raise ValueError(f"num_workers is {workers}; it must be at most {MAX_WORKERS}")
        others = {int(n) for n in self._begun[:, _WORKERS]} - {0, workers}
        if others:
            raise ValueError(
                f"the number of workers was {others.pop()} and is {workers} now; set the epoch to begin with: "
                "loader.set_epoch(epoch), or give each DataLoader its own dataset: loader.as_dataset()"
            )
        # A worker killed before starting has no count of its own; use its peers'. Peers of the same iterator have the
        # same base seed and may have counted this iterator already.
        seed = 0 if info is None else info.seed - info.id
        begun_by = self._begun[:, _BEGUN].clone()  # read first and written last: peers may be writing
        counted = torch.where(self._begun[:, _SEED] == seed, self._begun[:, _BEFORE], begun_by)
        begun = max(int(counted.max()), int(begun_by[worker]))
        self._begun[worker, _BEFORE], self._begun[worker, _SEED] = begun, seed
        self._begun[worker, _WORKERS], self._begun[worker, _BEGUN] = workers, begun + 1
        if info is not None:
            rank, world_size, block = (int(self._published[i]) for i in (_RANK, _WORLD_SIZE, _BLOCK))
            self._loader.configure_worker(rank, world_size, block or None)
        return _Batches(self, self._begin(begun), WorkerShard(worker, workers))

    def _begin(self, begun: int) -> Cursor:
        """Return where an iterator begins, given how many began before it."""
        return Cursor(int(self._published[_EPOCH]) + begun, 0 if begun else int(self._published[_POSITION]))

    def resume(self, cursor: Cursor, worker: int) -> None:
        """Note that a worker has loaded its own state, of an epoch that began at `cursor`."""
        self._published[_EPOCH], self._published[_POSITION] = cursor.epoch, cursor.position
        self._begun[worker, _BEFORE], self._begun[worker, _BEGUN] = 0, 1


class _Batches:
    """An iterator of one worker over its batches, which can save its state and resume."""

    def __init__(self, dataset: PackedDataset, begin: Cursor, shard: WorkerShard) -> None:
        self._dataset, self._begin, self._shard = dataset, begin, shard
        self._made = shard.made
        self._run: Iterator[PackedBatch] | None = None
        self._counted = torch.zeros(Stats.NUMBERS, dtype=torch.float64)

    def __iter__(self) -> Iterator[PackedBatch]:
        return self

    def __next__(self) -> PackedBatch:
        loader = self._dataset._loader
        if self._run is None:
            self._counted = loader.numbers()
            self._run = loader.batches().run(self._begin, self._shard)
        try:
            batch = next(self._run)
        finally:
            if self._shard.num_workers > 1 or get_worker_info() is not None:
                now = loader.numbers()
                self._dataset._totals[self._shard.worker] += now - self._counted
                self._counted = now
        self._made += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return the state of this worker."""
        return {**self._dataset._loader.state_at(self._begin), "made": self._made}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume at a state that was saved by the same worker of the same number of workers."""
        shard = self._shard
        self._begin, _ = self._dataset._loader.read_state(state)
        self._made = int(state["made"])
        self._shard, self._run = WorkerShard(shard.worker, shard.num_workers, self._made), None
        self._dataset.resume(self._begin, shard.worker)


class WorkerDatasets:
    """The datasets of one loader, and what their worker processes have counted. A copy in another process is empty."""

    def __init__(self) -> None:
        self._datasets: weakref.WeakSet[PackedDataset] = weakref.WeakSet()
        self._totals: list[torch.Tensor] = []  # of the workers of each dataset

    def __reduce__(self) -> tuple[type[WorkerDatasets], tuple[()]]:
        return WorkerDatasets, ()

    def add(self, loader: BatchLoader) -> PackedDataset:
        """Return a new dataset of the loader."""
        totals = torch.zeros((MAX_WORKERS, Stats.NUMBERS), dtype=torch.float64).share_memory_()
        dataset = PackedDataset(loader, totals)
        self._datasets.add(dataset)
        self._totals.append(totals)
        weakref.finalize(dataset, _fold, self._totals, totals).atexit = False
        return dataset

    def publish(self) -> bool:
        """Publish where the loader stands to the workers of each dataset; return whether there is one."""
        for dataset in self._datasets:
            dataset.publish()
        return bool(self._datasets)

    def totals(self) -> torch.Tensor:
        """Return the totals of all workers, float64 (n, Stats.NUMBERS)."""
        return torch.cat([torch.zeros(0, Stats.NUMBERS), *self._totals])


def _fold(all_totals: list[torch.Tensor], totals: torch.Tensor) -> None:
    """Keep the totals of the workers of a dataset that no longer exists; release its shared memory."""
    for i, kept in enumerate(all_totals):
        if kept is totals:
            all_totals[i] = totals[totals.any(1)].clone()
    all_totals[:] = [kept for kept in all_totals if len(kept)]
