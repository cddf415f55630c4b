"""The image store: encoded images in the order of their packs, with the other members of their samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from patchnpack.loaders.assembly.samples import IndexedBatchContext, read_member
from patchnpack.loaders.assembly.transform import Transform
from patchnpack.loaders.imaging.formats import PIXELS
from patchnpack.loaders.index.table import Index
from patchnpack.loaders.labels.label_rule import Classes, Label
from patchnpack.loaders.labels.labels import Labels
from patchnpack.loaders.packs.arrow_file import Codec, byte_lists, digest_of, file_bytes, value_offsets
from patchnpack.loaders.packs.manifest import Manifest, bad_entry
from patchnpack.loaders.packs.recipe import SCHEMA, Recipe
from patchnpack.loaders.packs.stored_index import IMAGE, MEMBER, Places
from patchnpack.loaders.shards.reader import ShardReader
from patchnpack.packer import Packing, Plan

# N packs of a part, M images in them


class ImageStore:
    """The `PackStore` that keeps each image's encoded bytes and the members of its sample."""

    keeps_samples = True

    def decoders(self) -> str:
        """Return "": nothing is decoded, so the bytes depend on no decoder."""
        return ""

    def part_epochs(self, recipe: Recipe) -> int:
        """Return 1: all epochs read their images from the parts of the first."""
        return 1

    def pack_bytes(self, packing: Packing, index: Index, plans: Iterator[Plan]) -> int:
        """Return the mean number of encoded bytes per pack of the first plan that has packs; at most, of pixels."""
        first = next((plan for plan in plans if len(plan)), None)
        if first is None:
            return 1
        rows = first.images.row
        pixels = index.width[rows].astype(np.int64) * index.height[rows] * packing.channels
        return int(np.where(index.format[rows] == PIXELS, pixels, index.nbytes[rows]).sum()) // len(first)

    def part_file(
        self, plan: Plan, context: IndexedBatchContext, compression: Codec
    ) -> tuple[pa.Buffer, dict[str, Any]]:
        """Return the file of a part, one row per pack, and its marker.

        Raises:
            OSError: the source has changed since it was indexed.
        """
        index, rows, images = context.index, plan.images.row, plan.images
        encoded = context.encoded(rows)
        data = {IMAGE: encoded.image} | {MEMBER + name: strings for name, strings in encoded.members.items()}
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
            **{name: lists(column) for name, column in encoded.header.items()},
            **{name: lists(getattr(images, name)) for name in ("box", "size", "grid", "keep")},
            **{name: byte_lists(ends, part.values, part.offsets, part.valid) for name, part in data.items()},
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
            "bad": [bad_entry(row) for row in encoded.bad],
        }
        return file, marker if encoded.told is None else marker | {"told": encoded.told}

    def locate(self, places: Places, number: int, rows: np.ndarray, marker: dict[str, Any]) -> None:
        """Move the offsets of a part's images from its marker to `places`."""
        places.add(number, rows, marker.pop("begins"), marker.pop("told", None))

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
        is_packed = (label, classes) == (manifest.recipe.label, manifest.recipe.classes)
        return Labels(
            index,
            label,
            classes,
            partial(read_member, index, reader),
            num_classes=manifest.num_classes if is_packed else None,
        )

    def batch_context(
        self, context: IndexedBatchContext, recipe: Recipe, part_numbers: Callable[[int, int], list[int]]
    ) -> IndexedBatchContext:
        """Return the context as it is: images are decoded as from shards."""
        return context

    def draw_seed(self, recipe: Recipe, seed: int) -> int:
        """Return the loader's seed: it decides which tokens are kept."""
        return seed
