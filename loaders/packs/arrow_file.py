"""Arrow IPC files of packed folders: equal content gives equal bytes, and files are read through memory maps."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

# n rows

Codec = str | None  # "lz4", "zstd", or None


def file_bytes(batches: Sequence[pa.RecordBatch], compression: Codec = None) -> pa.Buffer:
    """Return the file with these record batches of one schema, without anything that differs between runs."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression, use_threads=False)
    with pa.ipc.new_file(sink, batches[0].schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue()


def digest_of(data: Any) -> str:
    """Return the XXH3 of bytes, 128 bits as hexadecimal text."""
    return xxhash.xxh3_128(memoryview(data)).hexdigest()


def value_offsets(data: pa.Buffer, columns: Sequence[str]) -> dict[str, int]:
    """Return the offsets at which the values of list columns of byte strings begin.

    The file is uncompressed and has one record batch.
    """
    with pa.ipc.open_file(pa.BufferReader(data)) as file:
        batch = file.get_batch(0)
        found = {}
        for name in columns:
            values = batch.column(name).values.buffers()[2]
            found[name] = values.address - data.address if values is not None and values.size else 0
    return found


def byte_lists(ends: np.ndarray, values: np.ndarray, offsets: np.ndarray, valid: np.ndarray) -> pa.ListArray:
    """Return a column of lists of byte strings, without a copy of the strings.

    Args:
        ends: int32 (N + 1,), list i holds the strings `ends[i]` to `ends[i + 1] - 1`.
        values: uint8, all strings concatenated.
        offsets: int64 (n + 1,), string i is `values[offsets[i]:offsets[i + 1]]`.
        valid: bool (n,), False for a missing string.
    """
    bits = None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little").tobytes())
    strings = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(valid), [bits, pa.py_buffer(offsets), pa.py_buffer(values)]
    )
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), strings)


def arrays_bytes(arrays: Mapping[str, np.ndarray]) -> pa.Buffer:
    """Return a file of named arrays: one row, and a list column for each array, flattened."""
    columns = [
        pa.LargeListArray.from_arrays(
            pa.array([0, array.size], pa.int64()), pa.array(np.ascontiguousarray(array).ravel())
        )
        for array in arrays.values()
    ]
    return file_bytes([pa.RecordBatch.from_arrays(columns, list(arrays))])


def map_arrays(fd: int) -> dict[str, np.ndarray]:
    """Return the arrays of an open file that `arrays_bytes` made, mapped into memory."""
    table = pa.ipc.open_file(pa.py_buffer(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))).get_batch(0)
    return {name: table.column(name).values.to_numpy() for name in table.schema.names}


class MappedFile:
    """A file of record batches mapped into memory; writes to the memory do not change the file.

    Arrays from `values` are views of the map and keep it alive; arrays from compressed files are copies.
    """

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, 0, access=mmap.ACCESS_COPY)
        buffer = pa.py_buffer(self._map)
        self._address = buffer.address
        self._file = pa.ipc.open_file(buffer)
        self.nbytes = os.fstat(fd).st_size
        self.num_batches = self._file.num_record_batches

    def batch(self, i: int) -> pa.RecordBatch:
        """Return record batch i; an uncompressed file is read only when values are accessed."""
        return self._file.get_batch(i)

    def values(self, buffer: pa.Buffer, dtype: Any) -> np.ndarray:
        """Return the values in a buffer of a record batch, flattened."""
        at, count = buffer.address - self._address, buffer.size // np.dtype(dtype).itemsize
        if 0 <= at < self.nbytes:
            return np.frombuffer(self._map, dtype, count, at)
        return np.frombuffer(buffer, dtype, count)
