"""The loader as a dataset: worker processes of a DataLoader share out its batches, in the loader's own order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch.utils.data import IterableDataset, get_worker_info

from patchnpack.loaders.assembly.pipeline import Pipeline, WorkerShard
from patchnpack.loaders.assembly.stats import Stats
from patchnpack.loaders.order.state import Cursor
from patchnpack.loaders.order.steps import Steps
from patchnpack.packer import PackedBatch

MAX_WORKERS = 256
_EPOCH, _POSITION, _BLOCK, _RANK, _WORLD_SIZE = range(5)  # what the main process says
# What each worker says: iterators begun since, of how many workers, the last one's base seed, and how many before it.
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
    """What `PackedImageLoader.as_dataset` gives: iterate it through `DataLoader(dataset, batch_size=None)`.

    Where the next iterator begins lies in memory that worker processes share, so `set_epoch` and `load_state_dict` of
    the loader reach persistent workers, and each `iter` of the DataLoader is the next epoch. Its iterator has
    `state_dict` and `load_state_dict` as torchdata's StatefulDataLoader asks for.
    """

    def __init__(self, loader: BatchLoader, totals: torch.Tensor) -> None:
        self._loader = loader
        self._said = torch.zeros(5, dtype=torch.int64).share_memory_()
        self._begun = torch.zeros((MAX_WORKERS, 4), dtype=torch.int64).share_memory_()
        self._totals = totals
        self.publish()

    def publish(self) -> None:
        """Tells the workers where the loader stands."""
        place = self._loader.next_cursor()
        self._said[_EPOCH], self._said[_POSITION] = place.epoch, place.position
        self._said[_BLOCK] = self._loader.block or 0
        self._publish_rank()
        self._begun.zero_()

    def _publish_rank(self) -> None:
        self._said[_RANK], self._said[_WORLD_SIZE] = self._loader.rank()

    def __len__(self) -> int:
        if self._loader.repeat:
            raise TypeError("a loader with repeat=True never ends and has no length; use total_steps(epochs)")
        self._publish_rank()
        return self._loader.steps().count(self._begin(int(self._begun[:, _BEGUN].max())))

    def __getstate__(self) -> dict[str, Any]:
        self._publish_rank()  # processes that are not forked are sent the dataset when iteration starts
        return self.__dict__

    def __iter__(self) -> Iterator[PackedBatch]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        if workers > MAX_WORKERS:
            raise ValueError(f"num_workers is {workers}; at most {MAX_WORKERS} worker processes are counted")
        others = {int(n) for n in self._begun[:, _WORKERS]} - {0, workers}
        if others:
            raise ValueError(
                f"the number of workers was {others.pop()} and is {workers} now; say where to begin: "
                "loader.set_epoch(epoch), or give each DataLoader a dataset of its own: loader.as_dataset()"
            )
        # A worker that was ended before it began has counted nothing, so what its fellows have counted holds, too.
        # Those of the same iterator have the same base seed, and may have counted this iterator already.
        seed = 0 if info is None else info.seed - info.id
        begun_by = self._begun[:, _BEGUN].clone()  # read first and written last: fellows may be writing
        counted = torch.where(self._begun[:, _SEED] == seed, self._begun[:, _BEFORE], begun_by)
        begun = max(int(counted.max()), int(begun_by[worker]))
        self._begun[worker, _BEFORE], self._begun[worker, _SEED] = begun, seed
        self._begun[worker, _WORKERS], self._begun[worker, _BEGUN] = workers, begun + 1
        if info is not None:
            rank, world_size, block = (int(self._said[i]) for i in (_RANK, _WORLD_SIZE, _BLOCK))
            self._loader.configure_worker(rank, world_size, block or None)
        return _Batches(self, self._begin(begun), WorkerShard(worker, workers))

    def _begin(self, begun: int) -> Cursor:
        """Where the iterator after so many others begins."""
        return Cursor(int(self._said[_EPOCH]) + begun, 0 if begun else int(self._said[_POSITION]))

    def resume(self, place: Cursor, worker: int) -> None:
        """A worker has loaded a state of its own, of an epoch that began at `place`."""
        self._said[_EPOCH], self._said[_POSITION] = place.epoch, place.position
        self._begun[worker, _BEFORE], self._begun[worker, _BEGUN] = 0, 1


class _Batches:
    """An iterator of one worker over its batches, which can say where it stands and go on from there."""

    def __init__(self, dataset: PackedDataset, begin: Cursor, part: WorkerShard) -> None:
        self._dataset, self._begin, self._part = dataset, begin, part
        self._made = part.made
        self._run: Iterator[PackedBatch] | None = None
        self._counted = torch.zeros(Stats.NUMBERS, dtype=torch.float64)

    def __iter__(self) -> Iterator[PackedBatch]:
        return self

    def __next__(self) -> PackedBatch:
        loader = self._dataset._loader
        if self._run is None:
            self._counted = loader.numbers()
            self._run = loader.batches().run(self._begin, self._part)
        try:
            batch = next(self._run)
        finally:
            if self._part.num_workers > 1 or get_worker_info() is not None:
                now = loader.numbers()
                self._dataset._totals[self._part.worker] += now - self._counted
                self._counted = now
        self._made += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where this worker stands."""
        return {**self._dataset._loader.state_at(self._begin), "made": self._made}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state` was taken, in the same worker of as many."""
        part = self._part
        self._begin, _ = self._dataset._loader.read_state(state)
        self._made = int(state["made"])
        self._part, self._run = WorkerShard(part.worker, part.num_workers, self._made), None
        self._dataset.resume(self._begin, part.worker)
