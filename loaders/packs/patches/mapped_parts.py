"""Mapped parts: the files of a patch store as arrays in memory maps."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict

import numpy as np
import pyarrow as pa

from patchnpack.loaders.packs.arrow_file import MappedFile
from patchnpack.loaders.packs.patches.patch_part import FIXED, SEVERAL
from patchnpack.loaders.packs.patches.stored_targets import mapped_targets
from patchnpack.loaders.shards.reader import ShardReader

# N packs of a record batch

_MAPS = 32  # parts that are mapped at a time


class Record:
    """A record batch whose columns are arrays of N packs; `patches` is uint8 (N, bytes per pack)."""

    def __init__(self, file: MappedFile, number: int) -> None:
        batch = file.batch(number)
        N = batch.num_rows
        self.batch = batch
        self.patch_size = batch.column("patch_size")[0].as_py()
        self.patches = file.values(batch.column("patches").buffers()[2], np.uint8)[: _used(batch)].reshape(N, -1)
        self.fixed = {}
        for name in (*FIXED, *(name for name in SEVERAL if name in batch.schema.names)):
            values = batch.column(name).values
            self.fixed[name] = file.values(values.buffers()[1], values.type.to_pandas_dtype())[: len(values)].reshape(
                N, -1
            )
        self.targets = mapped_targets(batch, file)


def _used(batch: pa.RecordBatch) -> int:
    ends = np.frombuffer(batch.column("patches").buffers()[1], np.int64)
    return int(ends[batch.num_rows])


class _MappedPart:
    """A part in memory, which finds the record batch of each pack."""

    def __init__(self, fd: int, compressed: bool) -> None:
        self.file = MappedFile(fd)
        self._records: dict[int, Record] = {}
        self._compressed = compressed
        if not compressed:
            rows = [self.file.batch(i).num_rows for i in range(self.file.num_batches)]
            self._ends = np.cumsum(rows)

    def find(self, pack: int) -> tuple[Record, int]:
        """Return the record batch of a pack and the pack's row in it."""
        if self._compressed:  # each holds one pack and is not kept
            return Record(self.file, pack), 0
        number = int(np.searchsorted(self._ends, pack, side="right"))
        record = self._records.get(number)
        if record is None:
            record = self._records.setdefault(number, Record(self.file, number))
        return record, pack - int(self._ends[number] - record.batch.num_rows)


class Maps:
    """The most recently used parts, mapped. Each iterator and each epoch maps them again.

    Batches may lie in the maps themselves. A training loop that writes into a batch changes the map, not the file, and
    the change must be gone when the pack is read again.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[tuple[int, int], _MappedPart] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Maps], tuple[()]]:
        return Maps, ()

    def part(self, reader: ShardReader, number: int, epoch: int, compressed: bool) -> _MappedPart:
        """Return part `number` of the reader's shards, mapped for this epoch."""
        with self._lock:
            if (epoch, number) in self._open:
                self._open.move_to_end((epoch, number))
                return self._open[epoch, number]
        fd = reader.open(number)
        try:
            part = _MappedPart(fd, compressed)
        finally:
            os.close(fd)
        with self._lock:
            part = self._open.setdefault((epoch, number), part)
            while len(self._open) > _MAPS:
                self._open.popitem(last=False)
        return part
