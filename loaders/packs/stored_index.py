"""The index of a packed folder: the rows of the source, and the parts that hold their bytes now."""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa

from patchnpack.loaders.assembly.encoded import other_members, shared
from patchnpack.loaders.imaging.formats import usual_extension
from patchnpack.loaders.index.index_file import index_of_table, index_table
from patchnpack.loaders.index.table import Index
from patchnpack.loaders.packs.arrow_file import file_bytes
from patchnpack.loaders.packs.recipe import PARTS
from patchnpack.loaders.shards.parquet import INDEX_KEY

# n rows of the source

IMAGE = "image"  # column of a part with the encoded images
MEMBER = "member."  # prefix of the columns with other members
# Columns whose values the marker of a part records if the index does not know them.
MARKER_COLUMNS = ("nbytes", "orientation", "format", "digest")
_PART = "part"
_KEY = b"patchnpack.rows"


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredIndex(Index):
    """The source's index, row by row, in which `shards` are the parts that hold the images now.

    The names of the source's shards follow the parts in `shards`: a row that is in no part is in one of them. `starts`
    counts the source's shards, so `row_id` is the same as for the source.

    Attributes:
        part: int32 (n,), number in `shards` of the file that each row is in.
    """

    part: np.ndarray

    def shard_of(self, rows: np.ndarray | int) -> np.ndarray:
        """Return the number in `shards`, int64 (m,), of the file that each row is in."""
        return np.asarray(self.part[rows], np.int64)

    def source_index(self) -> Index:
        """Return the same rows in the source's own shards. It serves planning; its offsets are those of the parts."""
        s = len(self.starts) - 1
        columns = {field.name: getattr(self, field.name) for field in fields(Index)}
        for name in ("shards", "shard_bytes", "versions"):
            columns[name] = columns[name][-s:]
        return Index(**columns)


class Places:
    """Where the image and the members of each row of a source lie in the parts of a packed folder."""

    def __init__(self, index: Index) -> None:
        n = len(index)
        self.index = index
        self.part = np.full(n, -1, np.int32)
        self.offset = np.full(n, -1, np.int64)
        self.columns = {name: getattr(index, name).copy() for name in MARKER_COLUMNS}
        self.members = {extension: np.full((n, 2), -1, np.int64) for extension in index.members}

    def add(
        self, number: int, rows: np.ndarray, begins: Mapping[str, int], told: Mapping[str, Any] | None = None
    ) -> None:
        """Note that part `number` holds these rows, in this order; `begins` and `told` are from its marker."""
        self.part[rows] = number
        if told is not None:
            for name, column in self.columns.items():
                column[rows] = np.array(told[name], column.dtype)
        self.offset[rows] = _consecutive(begins[IMAGE], self.columns["nbytes"][rows])
        if told is None:
            self._add_members(rows, begins)
        else:
            self._add_told_members(rows, begins, told["members"])

    def _add_members(self, rows: np.ndarray, begins: Mapping[str, int]) -> None:
        """Note where the members lie whose sizes the index knows."""
        index = self.index
        others = other_members(index, rows)
        for extension, where in index.members.items():
            place = np.full((len(rows), 2), -1, np.int64)
            image = where[rows, 0] == index.offset[rows]
            place[image] = np.stack([self.offset[rows], index.nbytes[rows]], 1)[image]
            if extension in others:
                present = others[extension][:, 0] >= 0
                size = np.where(present, others[extension][:, 1], 0)
                place[present] = np.stack([_consecutive(begins[MEMBER + extension], size), size], 1)[present]
            if (again := shared(index, rows, where) & ~image).any():
                place = place[np.maximum.accumulate(np.where(again, 0, np.arange(len(rows))))]
            self.members[extension][rows] = place

    def _add_told_members(self, rows: np.ndarray, begins: Mapping[str, int], sizes: Mapping[str, list[int]]) -> None:
        """Note where the members lie, and the image as a member of its own; a size is -1 where a row has none."""
        for name, nbytes in sizes.items():
            size = np.array(nbytes, np.int64)
            place = np.stack([_consecutive(begins[MEMBER + name], np.maximum(size, 0)), size], 1)
            place[size < 0] = -1
            self.members[name][rows] = place
        for format in np.unique(self.columns["format"][rows]).tolist():
            name = usual_extension(format, self.index.formats)
            if name in self.index.members:
                name = IMAGE + "." + name
            here = rows[self.columns["format"][rows] == format]
            places = self.members.setdefault(name, np.full((len(self.part), 2), -1, np.int64))
            places[here] = np.stack([self.offset[here], self.columns["nbytes"][here]], 1)

    def repeat(self, rows: np.ndarray, files: np.ndarray) -> None:
        """Note that rows have the bytes and the members of other rows, `files`: further pages those of the first."""
        rows, files = rows[rows != files], files[rows != files]
        for column in (self.part, self.offset, self.columns["nbytes"], self.columns["digest"], *self.members.values()):
            column[rows] = column[files]

    def index_bytes(self, parts: Sequence[str], part_bytes: Sequence[int], names: Sequence[str]) -> pa.Buffer:
        """Return the file of the index.

        Args:
            parts: names of the parts.
            part_bytes: their sizes.
            names: names of the source's shards.
        """
        index = self.index
        away = self.part < 0
        part = np.where(away, len(parts) + index.shard_of(np.arange(len(index))), self.part).astype(np.int32)
        columns = (
            {field.name: getattr(index, field.name) for field in fields(Index)}
            | self.columns
            | {
                "versions": ("",) * (len(parts) + len(names)),
                "shard_bytes": np.array([*part_bytes, *[0] * len(names)], np.int64),
                "offset": np.where(away, index.offset, self.offset),
                "members": self.members,
                "files": (),
            }
        )
        table = index_table(Index(**columns), [*parts, *names])
        about = (table.schema.metadata or {})[INDEX_KEY]
        table = table.append_column(_PART, pa.array(part)).replace_schema_metadata({_KEY: about})
        batches = table.combine_chunks().to_batches()
        return file_bytes(batches or [pa.RecordBatch.from_pylist([], schema=table.schema)])


def _consecutive(begin: int, nbytes: np.ndarray) -> np.ndarray:
    """Return the offset of each of several byte strings that follow one another from `begin`."""
    offsets: np.ndarray = begin + np.cumsum(nbytes) - nbytes
    return offsets


def read_rows(fd: int, prefix: str, version: Callable[[str], str]) -> StoredIndex:
    """Read the index from an open file that `Places.index_bytes` made.

    Args:
        fd: descriptor of the file.
        prefix: what stands before the names of the parts.
        version: returns the version of a part, by its name.

    Raises:
        ValueError, KeyError, TypeError: the file holds something else.
    """
    table = pa.ipc.open_file(pa.py_buffer(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))).read_all()
    about = json.loads((table.schema.metadata or {})[_KEY])
    is_part = [name.startswith(PARTS + "/") for name in about["shards"]]
    shards = [prefix + name if stored else name for name, stored in zip(about["shards"], is_part, strict=True)]
    about["versions"] = [version(name) if stored else "" for name, stored in zip(about["shards"], is_part, strict=True)]
    index = index_of_table(table, about, shards)
    part = table.column(_PART).combine_chunks().to_numpy()
    return StoredIndex(**{field.name: getattr(index, field.name) for field in fields(Index)}, part=part)


def sample_starts(data: bytes) -> np.ndarray | None:
    """Return the first row of each sample, and the number of rows, of the file of `read_rows`; None without samples."""
    with pa.ipc.open_file(pa.BufferReader(data)) as file:
        table = file.read_all()
    about = json.loads((table.schema.metadata or {})[_KEY])
    index = index_of_table(table, about | {"versions": [""] * len(about["shards"])}, about["shards"])
    return None if index.samples is None else index.samples.starts
