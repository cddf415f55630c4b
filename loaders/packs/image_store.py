"""The image store: encoded images in the order of their packs, with the other members of their samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from patchnpack.loaders.packs.kept_rows import kept_rows, positions_in
from patchnpack.loaders.packs.manifest import Manifest, bad_entry
from patchnpack.loaders.packs.recipe import SCHEMA, Recipe
from patchnpack.loaders.packs.stored_index import IMAGE, MEMBER, Places
from patchnpack.loaders.shards.reader import ShardReader
from patchnpack.loaders.targets.target import Target
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

    def pack_bytes(self, packing: Packing, targets: Mapping[str, Target], index: Index, plans: Iterator[Plan]) -> int:
        """Return the mean number of encoded bytes per pack of the first plan that has packs; at most, of pixels."""
        first = next((plan for plan in plans if len(plan)), None)
        if first is None:
            return 1
        rows = kept_rows(first, index).files
        pixels = index.width[rows].astype(np.int64) * index.height[rows] * packing.token_bytes(1)
        return int(np.where(index.format[rows] == PIXELS, pixels, index.nbytes[rows]).sum()) // len(first)

    def part_file(
        self, plan: Plan, context: IndexedBatchContext, compression: Codec
    ) -> tuple[pa.Buffer, dict[str, Any]]:
        """Return the file of a part, one row per pack, and its marker.

        Raises:
            OSError: the source has changed since it was indexed.
        """
        index, images, kept = context.index, plan.images, kept_rows(plan, context.index)
        encoded = context.encoded(kept.files)
        data = {IMAGE: encoded.image} | {MEMBER + name: strings for name, strings in encoded.members.items()}
        files = np.cumsum(kept.file == np.arange(len(kept.rows))) - 1  # position in `encoded` of each row's file
        header = {name: column[files] for name, column in encoded.header.items()}
        header |= {name: getattr(index, name)[kept.rows] for name in ("width", "height")}
        by_image = {name: getattr(images, name) for name in ("box", "size", "grid", "keep")}
        if images.frame is not None:
            by_image |= {"image_row": positions_in(kept, images, plan.offsets), "frame": images.frame}
        if images.page is not None:
            by_image["page"] = images.page
        if images.flip is not None:
            by_image["flip"] = images.flip
        keys = pa.array([index.keys[row] for row in kept.rows.tolist()], pa.string())
        file_ends = np.append(files, len(kept.files))[kept.ends].astype(np.int32)
        columns: dict[str, pa.Array] = {
            "patch_size": pa.array(plan.patch_size, pa.int32()),
            "row": _lists(kept.rows, kept.ends),
            "key": pa.ListArray.from_arrays(pa.array(kept.ends), keys),
            **{name: _lists(column, kept.ends) for name, column in header.items()},
            **{name: _lists(column, plan.offsets.astype(np.int32)) for name, column in by_image.items()},
            **{name: byte_lists(file_ends, part.values, part.offsets, part.valid) for name, part in data.items()},
        }
        metadata = {b"patchnpack": b'{"schema": %d, "store": "images"}' % SCHEMA}
        batch = pa.RecordBatch.from_arrays(list(columns.values()), list(columns)).replace_schema_metadata(metadata)
        file = file_bytes([batch])
        marker = {
            "nbytes": file.size,
            "digest": digest_of(file),
            "packs": len(plan),
            "images": len(images),
            "begins": value_offsets(file, list(data)),
            "bad": [bad_entry(row) for row in encoded.bad],
        }
        return file, marker if encoded.told is None else marker | {"told": encoded.told}

    def locate(self, places: Places, number: int, plan: Plan, marker: dict[str, Any]) -> None:
        """Move the offsets of a part's images from its marker to `places`."""
        kept = kept_rows(plan, places.index)
        places.add(number, kept.files, marker.pop("begins"), marker.pop("told", None))
        places.repeat(kept.rows, kept.rows[kept.file])

    def check_options(
        self,
        recipe: Recipe,
        where: str,
        *,
        label: Label,
        classes: Classes,
        extras: Sequence[str],
        targets: Mapping[str, Target],
        transform: Transform | None,
    ) -> None:
        """Accept any label, extras, targets and transform: images and members are read as from shards."""

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


def _lists(values: np.ndarray, ends: np.ndarray) -> pa.ListArray:
    """Return a column of lists: list i holds the values `ends[i]` to `ends[i + 1] - 1`."""
    flat = pa.array(np.ascontiguousarray(values).ravel())
    if values.ndim == 2:
        flat = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.ListArray.from_arrays(pa.array(ends), flat)
