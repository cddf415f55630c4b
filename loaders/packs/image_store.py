"""The image store: encoded images in the order of their packs, with the other members of their samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from patchnpack.loaders.assembly.samples import IndexedBatchContext, read_member
from patchnpack.loaders.assembly.transform import Transform
from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.index.table import Index
from patchnpack.loaders.labels.label_rule import Classes, Label
from patchnpack.loaders.labels.labels import Labels
from patchnpack.loaders.packs.arrow_file import Codec, byte_lists, digest_of, file_bytes, value_offsets
from patchnpack.loaders.packs.manifest import Manifest, bad_entry
from patchnpack.loaders.packs.recipe import SCHEMA, Recipe
from patchnpack.loaders.packs.stored_index import IMAGE, MEMBER, Places, other_members
from patchnpack.loaders.shards.reader import ShardReader
from patchnpack.packer import Packing, Plan

# N packs of a part, M images in them


class ImageStore:
    """The `PackStore` that keeps each image's encoded bytes and all members of its sample."""

    keeps_samples = True

    def decoders(self) -> str:
        """Return "": nothing is decoded, so the bytes depend on no decoder."""
        return ""

    def part_epochs(self, recipe: Recipe) -> int:
        """Return 1: all epochs read their images from the parts of the first."""
        return 1

    def pack_bytes(self, packing: Packing, index: Index, plans: Iterator[Plan]) -> int:
        """Return the mean number of encoded bytes per pack of the first plan that has packs."""
        first = next((plan for plan in plans if len(plan)), None)
        return 1 if first is None else int(index.nbytes[first.images.row].sum()) // len(first)

    def part_file(
        self, plan: Plan, context: IndexedBatchContext, compression: Codec
    ) -> tuple[pa.Buffer, dict[str, Any]]:
        """Return the file of a part, one row per pack, and its marker.

        Each image's bytes are compared with the digest in the index. Bytes that differ are kept as they are and noted
        in the marker; a loader finds the same difference.

        Raises:
            OSError: a shard has changed since it was indexed.
        """
        index, rows, images = context.index, plan.images.row, plan.images
        data = {IMAGE: _read(context, rows, index.offset[rows], index.nbytes[rows], context.reader.read)}
        bad = _bad_images(context, rows, data[IMAGE][0], data[IMAGE][1])
        for extension, where in other_members(index, rows).items():
            data[MEMBER + extension] = _read(context, rows, where[:, 0], where[:, 1], context.reader.read_member)

        ends = plan.offsets.astype(np.int32)

        def lists(values: np.ndarray) -> pa.ListArray:
            flat = pa.array(np.ascontiguousarray(values).ravel())
            if values.ndim == 2:
                flat = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
            return pa.ListArray.from_arrays(pa.array(ends), flat)

        columns: dict[str, pa.Array] = {
            "patch_size": pa.array(plan.patch_size, pa.int32()),
            "row": lists(rows),
            "key": pa.ListArray.from_arrays(
                pa.array(ends), pa.array([index.keys[row] for row in rows.tolist()], pa.string())
            ),
            **{
                name: lists(getattr(index, name)[rows])
                for name in ("width", "height", "orientation", "format", "digest")
            },
            **{name: lists(getattr(images, name)) for name in ("box", "size", "grid", "keep")},
            **{name: byte_lists(ends, *parts) for name, parts in data.items()},
        }
        metadata = {b"patchnpack": b'{"schema": %d, "store": "images"}' % SCHEMA}
        batch = pa.RecordBatch.from_arrays(list(columns.values()), list(columns)).replace_schema_metadata(metadata)
        file = file_bytes([batch])
        marker = {
            "nbytes": file.size,
            "digest": digest_of(file),
            "packs": len(plan),
            "images": len(rows),
            "begins": value_offsets(file, list(data)),
            "bad": bad,
        }
        return file, marker

    def locate(self, places: Places, number: int, rows: np.ndarray, marker: dict[str, Any]) -> None:
        """Move the offsets of a part's images from its marker to `places`."""
        places.add(number, rows, marker.pop("begins"))

    def check_options(
        self,
        recipe: Recipe,
        where: str,
        *,
        label: Label,
        classes: Classes,
        extras: Sequence[str],
        transform: Transform | None,
    ) -> None:
        """Accept any label, extras and transform: images and members are read as from shards."""

    def labels(self, manifest: Manifest, index: Index, reader: ShardReader, label: Label, classes: Classes) -> Labels:
        """Return labels that are read from the members of the samples."""
        return Labels(index, label, classes, partial(read_member, index, reader))

    def batch_context(
        self, context: IndexedBatchContext, recipe: Recipe, part_numbers: Callable[[int, int], list[int]]
    ) -> IndexedBatchContext:
        """Return the context as it is: images are decoded as from shards."""
        return context

    def draw_seed(self, recipe: Recipe, seed: int) -> int:
        """Return the loader's seed: it decides which tokens are kept."""
        return seed


def _bad_images(
    context: IndexedBatchContext, rows: np.ndarray, values: np.ndarray, offsets: np.ndarray
) -> list[dict[str, Any]]:
    """Return an entry for each image whose bytes differ from the digest in the index."""
    samples = context.samples(rows)
    digests = context.index.digest[rows].tolist()
    bad: list[dict[str, Any]] = []
    for i, (low, high) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        if xxhash.xxh3_64_intdigest(values[low:high].data) != digests[i]:
            try:
                samples.read(i)  # raises OSError if the whole shard has changed
            except BadImage as error:
                bad.append(bad_entry(samples.bad_row(i, error.stage, str(error))))
    return bad


def _read(
    context: IndexedBatchContext,
    rows: np.ndarray,
    offset: np.ndarray,
    nbytes: np.ndarray,
    read: Callable[[int, int, int], bytes],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read one byte range per row with `read(shard, offset, nbytes)`; a negative offset stands for no range.

    Returns:
        All bytes, uint8; where each row's begin and, last, the end, int64 (M + 1,); which rows have a range, bool (M,).
    """
    valid = offset >= 0
    ends = np.concatenate([[0], np.cumsum(np.where(valid, nbytes, 0))]).astype(np.int64)
    values, shard = np.empty(int(ends[-1]), np.uint8), context.index.shard_of(rows)
    # In the order of the shards' bytes, which is the fastest to read.
    for i in np.lexsort([offset, shard]).tolist():
        if valid[i]:
            data = read(int(shard[i]), int(offset[i]), int(nbytes[i]))
            values[ends[i] : ends[i + 1]] = np.frombuffer(data, np.uint8)
    return values, ends, valid
