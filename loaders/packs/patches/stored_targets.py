"""The targets of packs in a patch store: columns that are written with the packs and mapped with them.

A target with values per token is one column of bytes, as patches are. Objects are a list column for each of their
fields, and a column with the number of objects of each image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from patchnpack.loaders.packs.arrow_file import MappedFile
from patchnpack.loaders.targets.objects import ObjectTarget
from patchnpack.loaders.targets.target import Target
from patchnpack.packer import PackedBatch
from patchnpack.packer.batch.objects import PackedObjects

# B packs in a batch, N packs in a record batch, L token slots in a pack, K images in a pack at most, P patch size

TARGET = "target."  # prefix of the columns with targets
_PAGE = 4096  # bytes of a memory page
# Fields of objects, as `PackedObjects` holds them: type, and numbers per item. Arrow stores bool as bits.
_FIELDS: dict[str, tuple[Any, int]] = {
    "boxes": (np.float32, 4),
    "points": (np.float32, 2),
    "visible": (np.uint8, 1),
    "lengths": (np.int64, 1),
    "labels": (np.int64, 1),
    "index": (np.int64, 1),
}
_COUNTS = "counts"


class Column(NamedTuple):
    """The values of N packs, mapped: those of pack i are `values[ends[i]:ends[i + 1]]`."""

    values: np.ndarray
    ends: np.ndarray

    def of(self, low: int, high: int) -> np.ndarray:
        """Return the values of the packs from `low` to `high` - 1."""
        return self.values[self.ends[low] : self.ends[high]]


Columns = Mapping[str, Column]
Place = tuple[Columns, int]  # the columns of a record batch, and a pack in it


def target_bytes(targets: Iterable[Target], seq_len: int, patch_size: int) -> int:
    """Return the bytes of a pack's targets, without those of objects, which no index knows."""
    dense: list[Any] = [target for target in targets if not isinstance(target, ObjectTarget)]
    return sum(
        seq_len * int(np.prod(target.shape(patch_size), dtype=np.int64)) * np.dtype(target.dtype).itemsize
        for target in dense
    )


def target_columns(targets: Mapping[str, Target], batches: Sequence[PackedBatch]) -> dict[str, pa.Array]:
    """Return the columns of the targets of N batches, of one pack each."""
    columns: dict[str, pa.Array] = {}
    for name in targets:
        values = [batch.targets[name] for batch in batches]
        if isinstance(values[0], torch.Tensor):
            parts = [value.numpy().view(np.uint8).ravel() for value in values]  # type: ignore[union-attr]
            ends = np.cumsum([0, *map(len, parts)], dtype=np.int64)
            columns[TARGET + name] = pa.LargeBinaryArray.from_buffers(
                pa.large_binary(), len(parts), [None, pa.py_buffer(ends), pa.py_buffer(np.concatenate(parts))]
            )
            continue
        for field, (dtype, _) in (*_FIELDS.items(), (_COUNTS, (np.int32, 1))):
            if getattr(values[0], field) is not None:
                parts = [getattr(value, field).numpy().astype(dtype, copy=False).ravel() for value in values]
                ends = np.cumsum([0, *map(len, parts)], dtype=np.int64)
                columns[f"{TARGET}{name}.{field}"] = pa.LargeListArray.from_arrays(
                    pa.array(ends), pa.array(np.concatenate(parts))
                )
    return columns


def mapped_targets(batch: pa.RecordBatch, file: MappedFile) -> dict[str, Column]:
    """Return the columns of targets in a record batch of a mapped file, by name."""
    columns = {}
    for name in batch.schema.names:
        if not name.startswith(TARGET):
            continue
        column = batch.column(name)
        ends = np.frombuffer(column.buffers()[1], np.int64)[: len(column) + 1]
        if pa.types.is_large_binary(column.type):
            dtype, buffer = np.uint8, column.buffers()[2]
        else:
            dtype, buffer = column.values.type.to_pandas_dtype(), column.values.buffers()[1]
        empty = buffer is None or not buffer.size
        values = np.zeros(0, dtype) if empty else file.values(buffer, dtype)[: int(ends[-1])]
        columns[name] = Column(values, ends)
    return columns


def read_targets(
    targets: Mapping[str, Target],
    found: Sequence[Place | None],
    mask: np.ndarray,
    seq_len: int,
    patch_size: int,
    *,
    in_map: bool,
) -> dict[str, Any]:
    """Return the fields of `PackedBatch` that hold targets.

    Args:
        targets: by name.
        found: where each of the B packs lies; None for an empty pack.
        mask: bool (B, K), where there is an image.
        seq_len, patch_size: L and P.
        in_map: whether the packs follow each other in one uncompressed record batch: nothing is copied.
    """
    values: dict[str, Any] = {}
    for name, target in targets.items():
        if isinstance(target, ObjectTarget):
            values[name] = _objects(name, target, found, mask, in_map)
        else:
            values[name] = torch.from_numpy(_dense(TARGET + name, target, found, seq_len, patch_size, in_map))
    fills = {name: target.fill for name, target in targets.items() if not isinstance(target, ObjectTarget)}  # type: ignore[attr-defined]
    return {"targets": values, "target_fill": fills}


def _dense(
    column: str, target: Any, found: Sequence[Place | None], seq_len: int, patch_size: int, in_map: bool
) -> np.ndarray:
    shape, dtype = (seq_len, *target.shape(patch_size)), np.dtype(target.dtype)
    if in_map:
        columns, first = _place(found[0])
        values = columns[column].of(first, first + len(found))
        values[::_PAGE].max(initial=0)  # fault the pages in here, not in the training loop's thread
        mapped: np.ndarray = values.view(dtype).reshape(len(found), *shape)
        return mapped
    out = np.full((len(found), *shape), target.fill, dtype)
    for b, place in enumerate(found):
        if place is not None:
            out[b] = place[0][column].of(place[1], place[1] + 1).view(dtype).reshape(shape)
    return out


def _objects(
    name: str, target: ObjectTarget, found: Sequence[Place | None], mask: np.ndarray, in_map: bool
) -> PackedObjects:
    def joined(field: str) -> np.ndarray:
        column = f"{TARGET}{name}.{field}"
        if in_map:
            columns, first = _place(found[0])
            return columns[column].of(first, first + len(found))
        parts = [place[0][column].of(place[1], place[1] + 1) for place in found if place is not None]
        return np.concatenate(parts) if parts else np.zeros(0, _FIELDS.get(field, (np.int32, 1))[0])

    fields = ("boxes",) if target.has_boxes else ("points", "visible", "lengths")
    values: dict[str, Any] = {}
    for field in (*fields, "labels", "index"):
        values[field] = torch.from_numpy(joined(field))
        if (numbers := _FIELDS[field][1]) > 1:
            values[field] = values[field].reshape(-1, numbers)
    if "visible" in values:
        values["visible"] = values["visible"].view(torch.bool)
    counts = np.zeros(mask.shape, np.int32)
    counts[[place is not None for place in found]] = joined(_COUNTS).reshape(-1, mask.shape[1])
    return PackedObjects(
        **values,
        counts=torch.from_numpy(counts),
        counts_list=counts[mask].tolist(),
        outlines=target.has_outlines,
    )


def _place(place: Place | None) -> Place:
    assert place is not None, "packs in one record batch are not empty"
    return place
