"""Parquet shards in Hugging Face's layout: a row is a sample, its columns are members, one of them the image.

Parquet has no random access to one row's bytes, so the rows of a file are written once, one after another, into a file
of the cache. The index's offsets count in that file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from patchnpack.loaders.remote.addresses import name_of
from patchnpack.loaders.shards.tar import IMAGE, TarSample

INDEX_KEY = b"patchnpack.index"  # metadata key of an index, which is a parquet file, too
LAYOUT = "1"  # version of the layout that `spill` writes
_KEY = "__key__"
_BYTES = (pa.types.is_binary, pa.types.is_large_binary)
_TEXTS = (pa.types.is_string, pa.types.is_large_string)
_SCALARS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
_ROWS = 256  # rows converted to bytes at a time


@dataclass(frozen=True, slots=True)
class Columns:
    """The roles of a parquet shard's columns, named in lower case.

    Attributes:
        image: the column of images.
        kinds: "txt" or "json", the encoding of each column that does not hold bytes.
    """

    image: str
    kinds: dict[str, str]


def read_columns(fd: int, shard: str, images: Sequence[str]) -> Columns:
    """Find the column of images: one of the names in `images`, else the only column that can hold images.

    Raises:
        ValueError: the file is not parquet or is an index, or not exactly one column qualifies.
    """
    with _opened(fd, shard) as file:
        schema = file.schema_arrow
    if INDEX_KEY in (schema.metadata or {}):
        raise ValueError(f"{shard!r} is an index, not a shard; name shards, or the index as the only source")
    kinds = {
        field.name.lower(): "txt" if any(test(field.type) for test in (*_TEXTS, *_SCALARS)) else "json"
        for field in schema
        if field.name != _KEY and not _can_hold_images(field.type)
    }
    return Columns(_image_column(schema, images, shard).lower(), kinds)


def read_samples(fd: int, shard: str) -> Iterator[tuple[TarSample, dict[str, bytes]]]:
    """Read the samples of a parquet shard in order, each with its members' bytes.

    Offsets count in the file that `spill` writes. Keys come from the column `__key__`, else from the shard's name and
    the row number.
    """
    offset, stem = 0, Path(name_of(shard)).stem
    with _opened(fd, shard) as file:
        for row, (key, members) in enumerate(_rows(file, shard)):
            sample = TarSample(key if key is not None else f"{stem}/{row:08d}")
            for name, data in members:
                sample.members[name.lower()] = (offset, len(data))
                offset += len(data)
            yield sample, {name.lower(): data for name, data in members}


def spill(fd: int, shard: str, to: Path) -> None:
    """Write the members of all rows one after another."""
    with _opened(fd, shard) as file, open(to, "wb") as out:
        for _, members in _rows(file, shard):
            for _, data in members:
                out.write(data)


class _opened:
    """The parquet file at a descriptor, which stays open.

    Arrow opens the file again by its descriptor: it would read a Python file in threads of its own, which can abort the
    process at exit.
    """

    def __init__(self, fd: int, shard: str) -> None:
        try:
            self._file = pq.ParquetFile(pa.OSFile(f"/dev/fd/{fd}"))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"shard {shard!r} cannot be read as parquet: {error}; copy or write it again") from error

    def __enter__(self) -> pq.ParquetFile:
        return self._file

    def __exit__(self, *_: object) -> None:
        self._file.close(force=True)


def _rows(file: pq.ParquetFile, shard: str) -> Iterator[tuple[str | None, list[tuple[str, bytes]]]]:
    """The key (None without a key column) and the non-null members of each row, in column order."""
    try:
        for group in range(file.num_row_groups):
            for batch in file.iter_batches(_ROWS, row_groups=[group], use_threads=False):
                names = [name for name in batch.schema.names if name != _KEY]
                columns = [_as_bytes(batch.column(name)) for name in names]
                keys = batch.column(_KEY).to_pylist() if _KEY in batch.schema.names else [None] * len(batch)
                for key, *values in zip(keys, *columns, strict=True):
                    yield (
                        None if key is None else str(key),
                        [(name, data) for name, data in zip(names, values, strict=True) if data is not None],
                    )
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"shard {shard!r} cannot be read to its end: {error}; copy or write it again") from error


def _as_bytes(column: pa.Array) -> list[bytes | None]:
    kind = column.type
    if pa.types.is_struct(kind) and _can_hold_images(kind):
        return [None if value is None else value["bytes"] for value in column.to_pylist()]
    values: list[Any] = column.to_pylist()
    if any(test(kind) for test in _BYTES):
        return values
    if any(test(kind) for test in _TEXTS):
        return [None if value is None else value.encode() for value in values]
    if any(test(kind) for test in _SCALARS):
        return [None if value is None else str(value).encode() for value in values]
    return [None if value is None else json.dumps(value, default=str).encode() for value in values]


def _can_hold_images(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold encoded images: bytes, or a struct with a field `bytes`."""
    if pa.types.is_struct(kind):
        i = kind.get_field_index("bytes")
        return i >= 0 and any(test(kind.field(i).type) for test in _BYTES)
    return any(test(kind) for test in _BYTES)


def _image_column(schema: pa.Schema, images: Sequence[str], shard: str) -> str:
    candidates: list[str] = [field.name for field in schema if _can_hold_images(field.type)]
    named = [name for wanted in images for name in candidates if name.lower() == wanted]
    if named or (len(candidates) == 1 and ";".join(images) == IMAGE):
        return (named or candidates)[0]
    structs = [name for name in candidates if pa.types.is_struct(schema.field(name).type)]
    if len(structs) == 1 and ";".join(images) == IMAGE:
        return structs[0]
    columns = ", ".join(schema.names)
    raise ValueError(
        f"shard {shard!r} has {len(candidates)} columns that can hold images ({', '.join(candidates) or 'none'}; its "
        f"columns are {columns}) and image={';'.join(images)!r}; name the column of images: image='COLUMN'"
    )
