"""The image store: encoded images in the order of their packs, with the other members of their samples."""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from patchnpack.loaders.assembly.samples import IndexedBatchContext
from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.index.index_file import index_of_table, index_table
from patchnpack.loaders.index.table import Index
from patchnpack.loaders.packs.arrow_file import byte_lists, digest_of, file_bytes, value_offsets
from patchnpack.loaders.packs.part import Part, noted
from patchnpack.loaders.packs.recipe import PARTS, SCHEMA
from patchnpack.loaders.shards.parquet import INDEX_KEY

# N packs of a part, M images in them, n rows of the source

IMAGE = "image"
MEMBER = "member."
_PART = "part"
_KEY = b"patchnpack.rows"


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredIndex(Index):
    """The index of the source, by its own rows, in which `shards` are the parts that images lie in now.

    Behind the parts stand the names of the source's shards: rows that no part holds are still said to be of them.

    Attributes:
        part: int32 (n,), which of `shards` a row lies in.
    """

    part: np.ndarray

    def shard_of(self, rows: np.ndarray | int) -> np.ndarray:
        """The part, int64 (m,), that each of the rows is in."""
        return np.asarray(self.part[rows], np.int64)

    def row_id(self, rows: np.ndarray) -> np.ndarray:
        """What draws are keyed by, uint64: the rows' shards in the source, and the rows in these."""
        shard = Index.shard_of(self, rows)
        row_id: np.ndarray = shard.astype(np.uint64) << np.uint64(32) | (rows - self.starts[shard]).astype(np.uint64)
        return row_id


def image_part(part: Part, sources: IndexedBatchContext) -> tuple[pa.Buffer, dict[str, Any]]:
    """The file of a part of an image store, a row a pack, and its marker.

    Each image's bytes are compared with the digest in the index. Those that differ are kept as they are, and noted in
    the marker: the loader will find out likewise.

    Raises:
        OSError: a shard that has changed since it was indexed.
    """
    index, rows, images = sources.index, part.images.row, part.images
    bad: list[dict[str, Any]] = []
    data = {IMAGE: _read(sources, rows, index.offset[rows], index.nbytes[rows])}
    samples = sources.samples(rows)
    values, offsets, _ = data[IMAGE]
    digests = index.digest[rows].tolist()
    for i, (low, high) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        if xxhash.xxh3_64_intdigest(values[low:high].data) != digests[i]:
            try:
                samples.read(i)  # raises OSError if it is the shard that has changed
            except BadImage as error:
                bad.append(noted(samples.bad_row(i, error.stage, str(error))))
    for extension, where in _beside(index, rows).items():
        data[MEMBER + extension] = _read(sources, rows, *where.T)

    ends = part.offsets.astype(np.int32)

    def lists(values: np.ndarray) -> pa.ListArray:
        flat = pa.array(np.ascontiguousarray(values).ravel())
        if values.ndim == 2:
            flat = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        return pa.ListArray.from_arrays(pa.array(ends), flat)

    columns: dict[str, pa.Array] = {
        "patch_size": pa.array(part.patch_size, pa.int32()),
        "row": lists(rows),
        "key": pa.ListArray.from_arrays(
            pa.array(ends), pa.array([index.keys[row] for row in rows.tolist()], pa.string())
        ),
        **{name: lists(getattr(index, name)[rows]) for name in ("width", "height", "orientation", "format", "digest")},
        **{name: lists(getattr(images, name)) for name in ("box", "size", "grid", "keep")},
        **{name: byte_lists(ends, *parts) for name, parts in data.items()},
    }
    metadata = {b"patchnpack": b'{"schema": %d, "store": "images"}' % SCHEMA}
    batch = pa.RecordBatch.from_arrays(list(columns.values()), list(columns)).replace_schema_metadata(metadata)
    file = file_bytes([batch])
    marker = {
        "nbytes": file.size,
        "digest": digest_of(file),
        "packs": len(part),
        "images": len(rows),
        "begins": value_offsets(file, list(data)),
        "bad": bad,
    }
    return file, marker


def _beside(index: Index, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Where the members of the rows' samples lie, but for the image, which is one of them, too."""
    members = {}
    for extension, where in index.members.items():
        if ((where[:, 0] >= 0) & (where[:, 0] != index.offset)).any():
            members[extension] = where[rows]
            members[extension][where[rows, 0] == index.offset[rows]] = -1
    return members


def _read(
    sources: IndexedBatchContext, rows: np.ndarray, offset: np.ndarray, nbytes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bytes of shards, one range a row: joined, where each begins, and which rows have any (offset >= 0)."""
    there = offset >= 0
    ends = np.concatenate([[0], np.cumsum(np.where(there, nbytes, 0))]).astype(np.int64)
    values, shard = np.empty(int(ends[-1]), np.uint8), sources.index.shard_of(rows)
    # In the order in which they lie in the shards, which is the fastest to read.
    for i in np.lexsort([offset, shard]).tolist():
        if there[i]:
            data = sources.reader.read(int(shard[i]), int(offset[i]), int(nbytes[i]))
            values[ends[i] : ends[i + 1]] = np.frombuffer(data, np.uint8)
    return values, ends, there


def _placed(begin: int, nbytes: np.ndarray) -> np.ndarray:
    """Where each of some byte strings begins that follow each other from `begin` on."""
    places: np.ndarray = begin + np.cumsum(nbytes) - nbytes
    return places


class Places:
    """Where the images and members of each row of a source lie in the parts of an image store."""

    def __init__(self, index: Index) -> None:
        n = len(index)
        self._index = index
        self.part = np.full(n, -1, np.int32)
        self.offset = np.full(n, -1, np.int64)
        self.members = {extension: np.full((n, 2), -1, np.int64) for extension in index.members}

    def add(self, number: int, rows: np.ndarray, begins: Mapping[str, int]) -> None:
        """Part `number` holds these rows, in this order; `begins` is its marker's."""
        index = self._index
        self.part[rows] = number
        self.offset[rows] = _placed(begins[IMAGE], index.nbytes[rows])
        beside = _beside(index, rows)
        for extension, where in index.members.items():
            place = np.full((len(rows), 2), -1, np.int64)
            image = where[rows, 0] == index.offset[rows]
            place[image] = np.stack([self.offset[rows], index.nbytes[rows]], 1)[image]
            if extension in beside:
                there = beside[extension][:, 0] >= 0
                size = np.where(there, beside[extension][:, 1], 0)
                place[there] = np.stack([_placed(begins[MEMBER + extension], size), size], 1)[there]
            self.members[extension][rows] = place

    def index_bytes(self, parts: Sequence[str], part_bytes: Sequence[int], names: Sequence[str]) -> pa.Buffer:
        """The file of the index; the parts' names and sizes, and the names of the source's shards."""
        index = self._index
        away = self.part < 0
        part = np.where(away, len(parts) + index.shard_of(np.arange(len(index))), self.part).astype(np.int32)
        given = {field.name: getattr(index, field.name) for field in fields(Index)} | {
            "versions": ("",) * (len(parts) + len(names)),
            "shard_bytes": np.array([*part_bytes, *[0] * len(names)], np.int64),
            "offset": np.where(away, index.offset, self.offset),
            "members": self.members,
        }
        table = index_table(Index(**given), [*parts, *names])
        about = (table.schema.metadata or {})[INDEX_KEY]
        table = table.append_column(_PART, pa.array(part)).replace_schema_metadata({_KEY: about})
        batches = table.combine_chunks().to_batches()
        return file_bytes(batches or [pa.RecordBatch.from_pylist([], schema=table.schema)])


def read_rows(fd: int, prefix: str, version: Callable[[str], str]) -> StoredIndex:
    """The index in an open file that `Places.index_bytes` made.

    Args:
        fd: the file.
        prefix: what stands before the parts' names.
        version: a part's version, by its name.

    Raises:
        ValueError, KeyError, TypeError: it holds something else.
    """
    table = pa.ipc.open_file(pa.py_buffer(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))).read_all()
    about = json.loads((table.schema.metadata or {})[_KEY])
    stored = [name.startswith(PARTS + "/") for name in about["shards"]]
    shards = [prefix + name if there else name for name, there in zip(about["shards"], stored, strict=True)]
    about["versions"] = [version(name) if there else "" for name, there in zip(about["shards"], stored, strict=True)]
    index = index_of_table(table, about, shards)
    part = table.column(_PART).combine_chunks().to_numpy()
    return StoredIndex(**{field.name: getattr(index, field.name) for field in fields(Index)}, part=part)
