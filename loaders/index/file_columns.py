"""The tables of files of an index as columns of its file: lists in the first row of each shard."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from patchnpack.loaders.files.table import FileTable
from patchnpack.loaders.files.texts import Texts
from patchnpack.loaders.index.table import Index

_PREFIX = "files."
_COLUMNS = {
    "path": pa.large_binary(),  # names of files may hold bytes that are not UTF-8
    "nbytes": pa.int64(),
    "version": pa.large_string(),
    "digest": pa.uint64(),
    "values": pa.large_binary(),  # in pieces: a parquet file holds less than 2 GiB per value
}
_PIECE = 64 << 20


def file_columns(index: Index) -> dict[str, pa.Array]:
    """Return a column of lists for each column of the tables; none where no shard has one."""
    if not any(index.files):
        return {}
    parts: dict[str, list[pa.Array]] = {name: [] for name in _COLUMNS}
    lengths = {name: np.zeros(len(index), np.int64) for name in _COLUMNS}
    for shard, table in enumerate(index.files):
        if table is None:
            continue
        pieces = [
            table.values.slice(at, min(_PIECE, table.values.size - at)) for at in range(0, table.values.size, _PIECE)
        ]
        columns = {
            "path": table.paths.column.view(pa.large_binary()),
            "nbytes": pa.array(table.nbytes, pa.int64()),
            "version": table.versions.column,
            "digest": pa.array(table.digest, pa.uint64()),
            "values": pa.array([memoryview(piece) for piece in pieces], pa.large_binary()),
        }
        for name, column in columns.items():
            parts[name].append(column)
            lengths[name][index.starts[shard]] = len(column)
    return {
        _PREFIX + name: pa.LargeListArray.from_arrays(
            pa.array(np.concatenate([[0], np.cumsum(lengths[name])]), pa.int64()), pa.concat_arrays(parts[name])
        )
        for name in _COLUMNS
    }


def tables_of(
    columns: Any, names: list[str], starts: np.ndarray, roots: list[str | None]
) -> tuple[FileTable | None, ...]:
    """Return the tables of files of each shard.

    Args:
        columns: returns a column of the index file, by name.
        names: the columns of the file.
        starts: int64 (s + 1,), the first row of each shard.
        roots: root of each shard's table, None for a shard that is a single file.
    """
    if _PREFIX + "path" not in names:
        return ()
    lists = {name: columns(_PREFIX + name) for name in _COLUMNS}

    def table(shard: int, root: str) -> FileTable:
        found = {name: column[int(starts[shard])].values for name, column in lists.items()}
        pieces = found["values"]
        return FileTable(
            root=root,
            paths=Texts(found["path"].view(pa.large_string())),
            nbytes=found["nbytes"].to_numpy(),
            versions=Texts(found["version"]),
            digest=found["digest"].to_numpy(),
            values=_joined(pieces),
        )

    return tuple(None if root is None else table(shard, root) for shard, root in enumerate(roots))


def _joined(pieces: pa.LargeBinaryArray) -> pa.Buffer:
    """The bytes of consecutive pieces, which lie one after another in memory."""
    _, offsets, data = pieces.buffers()
    ends = np.frombuffer(offsets, np.int64)[pieces.offset : pieces.offset + len(pieces) + 1] if len(pieces) else [0, 0]
    return pa.py_buffer(b"") if data is None else data.slice(int(ends[0]), int(ends[-1] - ends[0]))
