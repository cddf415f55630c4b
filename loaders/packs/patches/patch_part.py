"""A part of the patch store as a file: packs are assembled once and written as Arrow columns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from patchnpack.loaders.assembly.builders.batch_builder import BatchBuilder
from patchnpack.loaders.assembly.builders.sample_batch_builder import builder_of
from patchnpack.loaders.assembly.samples import IndexedBatchContext
from patchnpack.loaders.members import encode_member
from patchnpack.loaders.packs.arrow_file import Codec, digest_of, file_bytes
from patchnpack.loaders.packs.manifest import bad_entry
from patchnpack.loaders.packs.patches.stored_targets import target_columns
from patchnpack.loaders.packs.recipe import SCHEMA
from patchnpack.packer import PackedBatch, Plan

EXTRA = "extra."  # prefix of the columns with extras
# Columns of the same shape in all packs.
FIXED = ("segment_ids", "coords", "grids", "image_sizes", "rows", "labels", "boxes", "sizes", "flipped")
SEVERAL = ("samples", "frames")  # further such columns, where samples may hold several images


def has_several(context: IndexedBatchContext) -> bool:
    """Return whether samples may hold several images."""
    packing = context.packing
    return context.index.samples is not None or packing.views is not None or packing.frames is not None


def patch_part(plan: Plan, context: IndexedBatchContext, compression: Codec) -> tuple[pa.Buffer, dict[str, Any]]:
    """Return the file of a part of a patch store, one row per pack, and its marker.

    A record batch holds consecutive packs of one patch size; in a compressed file it holds a single pack.

    Raises:
        OSError: a shard has changed since it was indexed.
    """
    builders, batches = [], []
    for i, (low, high) in enumerate(pairwise(plan.offsets.tolist())):
        images, patch_size = plan.images.take(slice(low, high)), int(plan.patch_size[i])
        builder = builder_of(context, images, [high - low], patch_size, epoch=0, step=0, position=0)
        for part in range(builder.num_parts):
            builder.run(part)
        batches.append(builder.finish())
        builders.append(builder)
    edges = range(len(plan) + 1) if compression else [0, *(np.flatnonzero(np.diff(plan.patch_size)) + 1), len(plan)]
    records = [_record(batches[low:high], builders[low:high], context) for low, high in pairwise(edges) if low < high]
    file = file_bytes(records, compression)
    marker = {
        "nbytes": file.size,
        "digest": digest_of(file),
        "packs": len(plan),
        "images": len(plan.images),
        "without_label": sum(builder.without_label for builder in builders),
        "bad": [bad_entry(row) for builder in builders for _, row in builder.bad],
        "left_out": sum(len(builder.lost) - len(builder.bad) for builder in builders),
    }
    return file, marker


def _record(
    batches: Sequence[PackedBatch], builders: Sequence[BatchBuilder], context: IndexedBatchContext
) -> pa.RecordBatch:
    columns: dict[str, pa.Array] = {"patch_size": pa.array([batch.patch_size for batch in batches], pa.int32())}
    patches = np.concatenate([batch.patches.numpy().view(np.uint8).ravel() for batch in batches])
    ends = np.arange(len(batches) + 1, dtype=np.int64) * (patches.size // len(batches))
    columns["patches"] = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(batches), [None, pa.py_buffer(ends), pa.py_buffer(patches)]
    )
    for name in (*FIXED, *(SEVERAL if has_several(context) else ())):
        values = np.concatenate([getattr(batch, name).numpy() for batch in batches])
        values = values.view(np.uint8) if values.dtype == np.bool_ else values  # Arrow stores bool as bits
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values[0].size)
    columns["keys"] = pa.array([batch.keys[0] for batch in batches], pa.list_(pa.string()))
    for name in context.extras:
        kind = context.index.kinds.get(name, name)
        members = [
            [None if value is None else _encoded(value, name, kind) for value in batch.extras[name][0]]
            for batch in batches
        ]
        columns[EXTRA + name] = pa.array(members, pa.list_(pa.large_binary()))
    columns |= target_columns(context.targets, batches)
    bad = [json.dumps([[number, bad_entry(row)] for number, row in builder.bad]) for builder in builders]
    columns["bad"] = pa.array(bad, pa.string())
    columns["lost"] = pa.array([list(builder.lost) for builder in builders], pa.list_(pa.int32()))
    columns["bad_samples"] = pa.array([builder.bad_samples for builder in builders], pa.int32())
    columns["truncated"] = pa.array([builder.truncated for builder in builders], pa.int32())
    columns["warnings"] = pa.array([sorted(builder.warnings) for builder in builders], pa.list_(pa.string()))
    metadata = {b"patchnpack": b'{"schema": %d, "store": "patches"}' % SCHEMA}
    return pa.RecordBatch.from_arrays(list(columns.values()), list(columns)).replace_schema_metadata(metadata)


def _encoded(value: Any, name: str, kind: str) -> bytes:
    try:
        return encode_member(value, kind)
    except ValueError as error:
        error.add_note(f"raised for the extra {name!r}")
        raise
