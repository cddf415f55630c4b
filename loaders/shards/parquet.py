"""Parquet shards in Hugging Face's layout: a row is a sample, its columns are members, one or more of them its images.

Parquet has no random access to one row's bytes, so the rows of a file are written once, one after another, into a file
of the cache. The index's offsets count in that file.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from patchnpack.loaders.imaging.signatures import LFS_POINTER
from patchnpack.loaders.remote.addresses import name_of, redact
from patchnpack.loaders.shards.arrow_values import (
    can_hold_images,
    encode,
    encoding_of,
    holds_lists_of_images,
    list_items,
    plain_type,
)
from patchnpack.loaders.shards.member_names import find_member, member_names
from patchnpack.loaders.shards.tar import IMAGE, IMAGE_OR_VIDEO, TarSample

INDEX_KEY = b"patchnpack.index"  # metadata key of an index, which is a parquet file, too
LAYOUT = "2"  # version of the layout that `spill` writes
_KEY = "__key__"
_ROWS, _BYTES = 64, 8 << 20  # rows read at a time: at most so many, and about so many bytes
_BUFFER = 1 << 20  # bytes read ahead per column, where Arrow would hold all bytes of a row group


@dataclass(frozen=True, slots=True)
class Columns:
    """The roles of a parquet shard's columns, by the names that `member_names` gives them.

    Attributes:
        images: the columns of images, in the order of a sample's images.
        kinds: the encoding of each column that does not hold bytes: "txt" or "json", or "list", a list of images.
    """

    images: tuple[str, ...]
    kinds: dict[str, str]

    @property
    def lists(self) -> list[str]:
        """The columns of lists of images."""
        return [name for name, kind in self.kinds.items() if kind == "list"]


def read_columns(fd: int, shard: str, images: Sequence[str], *, several: bool = False) -> Columns:
    """Find the columns of images: those named in `images`, else the only column that can hold images.

    Without `several`, only the first of them, and no column of lists.

    Raises:
        ValueError: the file is not parquet or is an index, two columns have one name, or no column or several
            qualify.
    """
    with _opened(fd, shard) as file:
        schema = file.schema_arrow
    if INDEX_KEY in (schema.metadata or {}):
        raise ValueError(f"{shard!r} is an index, not a shard; name shards, or the index as the only source")
    names = _member_names(schema, shard)
    kinds: dict[str, str] = {member: encoding_of(schema.field(name).type) for name, member in names.items()}
    find = _image_columns if several else _image_column
    found = [names[name] for name in find(schema, list(names), images, redact(shard))]
    originals = {member: name for name, member in names.items()}
    lists = [member for member in found if holds_lists_of_images(schema.field(originals[member]).type)]
    kinds |= dict.fromkeys(lists, "list")
    return Columns(tuple(found), {member: kind for member, kind in kinds.items() if kind})


def read_samples(fd: int, shard: str, lists: Collection[str] = ()) -> Iterator[tuple[TarSample, dict[str, bytes]]]:
    """Read the samples of a parquet shard in order, each with its members' bytes.

    Offsets count in the file that `spill` writes. Keys come from the column `__key__`, else from the shard's name and
    the row number. An image of one of the columns `lists` is a member, called as `item_name` says.
    """
    offset, stem = 0, Path(name_of(shard)).stem
    with _opened(fd, shard) as file:
        for row, (key, members) in enumerate(_rows(file, shard, lists)):
            sample = TarSample(key if key is not None else f"{stem}/{row:08d}")
            for name, data in members:
                sample.members[name] = (offset, len(data))
                offset += len(data)
            yield sample, dict(members)


def spill(fd: int, shard: str, to: Path, lists: Collection[str] = ()) -> None:
    """Write the members of all rows one after another, and the images of the columns `lists` each by itself."""
    with _opened(fd, shard) as file, open(to, "wb") as out:
        for _, members in _rows(file, shard, lists):
            for _, data in members:
                out.write(data)


def item_name(column: str, number: int) -> str:
    """The name of an image as a member: of the column of a list, and its place there.

    >>> item_name("images", 2)
    'images[2]'
    """
    return f"{column}[{number}]"


def column_of(name: str) -> tuple[str, int]:
    """The column and the place of an image from its `item_name`; 0 for the image of a column without lists.

    >>> column_of("images[2]"), column_of("image")
    (('images', 2), ('image', 0))
    """
    column, bracket, number = name.rpartition("[")
    is_item = bracket and number.endswith("]") and number[:-1].isdecimal()
    return (column, int(number[:-1])) if is_item else (name, 0)


class _opened:
    """The parquet file at a descriptor, which stays open.

    Arrow opens the file again by its descriptor: it would read a Python file in threads of its own, which can abort the
    process at exit.
    """

    def __init__(self, fd: int, shard: str) -> None:
        try:
            self._file = pq.ParquetFile(pa.OSFile(f"/dev/fd/{fd}"), buffer_size=_BUFFER, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            if os.pread(fd, len(LFS_POINTER), 0) == LFS_POINTER:
                raise ValueError(
                    f"shard {redact(shard)!r} is a Git LFS pointer, not the shard itself; run `git lfs pull` in its "
                    "repository"
                ) from error
            raise ValueError(
                f"shard {redact(shard)!r} cannot be read as parquet: {error}; copy or write it again"
            ) from error

    def __enter__(self) -> pq.ParquetFile:
        return self._file

    def __exit__(self, *_: object) -> None:
        self._file.close(force=True)


def _member_names(schema: pa.Schema, shard: str) -> dict[str, str]:
    """The member name of each column except the keys; ValueError if two columns have one name."""
    if repeated := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        raise ValueError(
            f"shard {redact(shard)!r} has {schema.names.count(repeated[0])} columns named {repeated[0]!r}; rename or "
            "leave out all but one"
        )
    return member_names([name for name in schema.names if name != _KEY])


def _rows(
    file: pq.ParquetFile, shard: str, lists: Collection[str] = ()
) -> Iterator[tuple[str | None, list[tuple[str, bytes]]]]:
    """The key (None without one) and the members of each row, in column order; null and NaN are no member."""
    members = _member_names(file.schema_arrow, shard)
    is_list = [member in lists for member in members.values()]
    try:
        for group in range(file.num_row_groups):
            for batch in _batches(file, group, shard):
                columns = [
                    list_items(batch.column(name)) if as_list else encode(batch.column(name))
                    for name, as_list in zip(members, is_list, strict=True)
                ]
                keys = encode(batch.column(_KEY)) if _KEY in batch.schema.names else [None] * len(batch)
                for key, *values in zip(keys, *columns, strict=True):
                    yield (
                        None if key is None else key.decode("utf-8", "backslashreplace"),
                        _present(zip(members.values(), values, strict=True), lists),
                    )
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"shard {redact(shard)!r} cannot be read to its end: {error}; copy or write it again"
        ) from error


def _present(values: Iterable[tuple[str, Any]], lists: Collection[str]) -> list[tuple[str, bytes]]:
    """The members among the values of a row: those that are not None, and the images of lists."""
    if not lists:
        return [(name, data) for name, data in values if data is not None]
    found: list[tuple[str, bytes]] = []
    for name, data in values:
        items = enumerate(data or ()) if name in lists else ()
        found += [(item_name(name, i), item) for i, item in items if item is not None]
        found += [(name, data)] if name not in lists and data is not None else []
    return found


def _batches(file: pq.ParquetFile, group: int, shard: str) -> Iterator[pa.RecordBatch]:
    """The rows of a row group, so many at a time that they take about `_BYTES`.

    Arrow cannot hold more than 2 GiB of bytes of a column in lists or structs at a time. Where rows are heavier than
    the mean of their group says, the rows that are left are read again, fewer at a time.
    """
    about = file.metadata.row_group(group)
    rows = max(1, min(_ROWS, _BYTES * about.num_rows // max(1, about.total_byte_size)))
    done = 0
    while True:
        first = 0
        try:
            for batch in file.iter_batches(rows, row_groups=[group], use_threads=False):
                if first + len(batch) > done:
                    yield batch.slice(max(0, done - first))
                    done = first + len(batch)
                first += len(batch)
            return
        except (pa.ArrowNotImplementedError, pa.ArrowCapacityError) as error:
            if isinstance(error, pa.ArrowNotImplementedError) and "chunked array" not in str(error):
                raise
            if rows == 1:
                raise ValueError(
                    f"shard {redact(shard)!r} has more than 2 GiB in one column of row {done} of row group {group}, "
                    "which is more than can be read at once; write its images as several rows"
                ) from error
            rows = max(1, rows // 8)


def _image_columns(schema: pa.Schema, names: Sequence[str], images: Sequence[str], shard: str) -> list[str]:
    """The names of all columns of images, lists too: those in `images`, in this order, else the only one."""
    kinds = {name: schema.field(name).type for name in names}
    found: list[str] = []
    for wanted in images:
        name = _named(wanted, names, images, shard)
        if name is not None and (can_hold_images(kinds[name], fixed=True) or holds_lists_of_images(kinds[name])):
            found += [] if name in found else [name]
    if not found:
        lists = [name for name in names if holds_lists_of_images(kinds[name])]
        others = [name for name in names if can_hold_images(kinds[name])]
        structs = [name for name in others if pa.types.is_struct(plain_type(kinds[name]))]
        if lists and ";".join(images) in (IMAGE, IMAGE_OR_VIDEO):
            candidates = [*(structs or others), *lists]
            if len(candidates) > 1:
                raise ValueError(
                    f"shard {shard!r} has {len(candidates)} columns that can hold the images of a sample "
                    f"({', '.join(candidates)}); name those that do, in order: image={';'.join(candidates)!r}"
                )
            found = lists
    found = found or _image_column(schema, names, images, shard)
    for name in names:
        if column_of(name)[0] in found and name not in found:
            raise ValueError(
                f"shard {shard!r} has the columns {column_of(name)[0]!r} and {name!r}, which is also what an image of "
                "a list is called; rename the latter"
            )
    return found


def _named(wanted: str, names: Sequence[str], images: Sequence[str], shard: str) -> str | None:
    """The column that one of the names in `images` means; None if there is none."""
    try:
        return find_member(wanted, names)
    except ValueError as error:
        raise ValueError(f"shard {shard!r}: image={';'.join(images)!r}: {error}") from None


def _image_column(schema: pa.Schema, names: Sequence[str], images: Sequence[str], shard: str) -> list[str]:
    """The name of the column of images among the columns `names`, as a list of one."""
    kinds = {name: schema.field(name).type for name in names}
    candidates = [name for name in names if can_hold_images(kinds[name])]
    unfit: list[str] = []  # columns that were asked for
    for wanted in images:
        name = _named(wanted, names, images, shard)
        if name is not None and can_hold_images(kinds[name], fixed=True):
            return [name]
        unfit += [] if name is None else [name]
    if ";".join(images) in (IMAGE, IMAGE_OR_VIDEO):
        structs = [name for name in candidates if pa.types.is_struct(plain_type(kinds[name]))]
        if len(candidates) == 1 or len(structs) == 1:
            return structs if len(structs) == 1 else candidates
    lists = [name for name in unfit or names if holds_lists_of_images(kinds[name])]
    if lists and (unfit or not candidates):
        raise ValueError(
            f"column {lists[0]!r} of shard {shard!r} holds several images per row ({kinds[lists[0]]}), and a sample is "
            "one image: give sample='members' to make each row a sample of several images, or write one row per image, "
            f"in pandas with table.explode({lists[0]!r}); see 'Lists of images' in docs/loading.md"
        )
    if unfit:
        raise ValueError(
            f"column {unfit[0]!r} of shard {shard!r} holds {kinds[unfit[0]]}, which cannot be encoded images; "
            + (
                f"image= can name {', '.join(map(repr, candidates))}"
                if candidates
                else "write the bytes of the image files into it, or make tars of the files: patchnpack shard FOLDER"
            )
        )
    remedy = "name the column of images: image='COLUMN'"
    if not candidates:
        remedy = "write the bytes of the image files into a column, plain or as a struct with a field `bytes`"
    raise ValueError(
        f"shard {shard!r} has {len(candidates)} columns that can hold images ({', '.join(candidates) or 'none'}; its "
        f"columns are {', '.join(schema.names)}) and image={';'.join(images)!r}; {remedy}"
    )
