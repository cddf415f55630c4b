"""The extremes of what an index holds: the largest grids and the range of labels, each with its image."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from patchnpack.loaders.index.table import Index
from patchnpack.loaders.labels.labels import NO_LABEL, KnownLabels, Labels
from patchnpack.loaders.order.order import Order, chunks
from patchnpack.loaders.remote.addresses import redact
from patchnpack.packer.planning.measure import measure
from patchnpack.packer.policies.sampled_resolution import ScheduledResolution


class Extreme(NamedTuple):
    """An extreme value among images, and an image that has it, as a phrase with key and shard."""

    value: int
    image: str


def largest_grids(order: Order) -> dict[int, Extreme]:
    """Return the most patches per side at each patch size, in the sizes of the first epoch and of each stage."""
    largest, row = dict.fromkeys(order.packing.patch_sizes, -1), dict[int, int]()

    def see(patch_size: int, sides: np.ndarray, rows: np.ndarray) -> None:
        if len(sides) and sides.max() > largest[patch_size]:
            largest[patch_size], row[patch_size] = int(sides.max()), int(rows[sides.argmax()])

    plan, packing = order.stored_plan(0), order.packing
    if plan is not None:
        sizes, sides = np.repeat(plan.patch_size, np.diff(plan.offsets)), plan.images.grid.max(1)
        for patch_size in packing.patch_sizes:
            see(patch_size, sides[sizes == patch_size], plan.images.row[sizes == patch_size])
    policy = packing.resolution
    stages = [start for start, _ in policy.stages] if isinstance(policy, ScheduledResolution) else [0]
    for rows in chunks(order.usable) if plan is None else ():
        chunk = order.index.rows(rows)
        for patch_size in packing.patch_sizes:
            for seen in stages:
                images_seen = np.full(len(rows), seen)
                measured = measure(
                    chunk, packing, seed=order.seed, epoch=0, images_seen=images_seen, patch_size=patch_size
                )
                used, images = ~measured.skipped(packing), measured.images
                if images.frame is not None:
                    used = np.repeat(used, np.diff(images.sample_offsets()))
                see(patch_size, images.grid.max(1)[used], images.row[used])
    return {size: Extreme(largest[size], _describe(order.index, row[size])) for size in row}


def label_range(order: Order, labels: Labels | KnownLabels) -> tuple[Extreme, Extreme] | None:
    """Return the lowest and the highest class; None where the index does not hold the labels, or none is present."""
    if labels.shape or (isinstance(labels, KnownLabels) and not labels.are_indexed):
        return None
    found: list[tuple[int, int]] = []  # the extremes of each chunk: label and row
    for rows in chunks(order.usable):
        values = labels.known(rows)
        if values is None:
            return None
        present = np.flatnonzero(values != NO_LABEL)
        if len(present):
            ends = present[[values[present].argmin(), values[present].argmax()]]
            found += zip(values[ends].tolist(), rows[ends].tolist(), strict=True)
    if not found:
        return None
    (low, first), (high, last) = min(found), max(found)
    return Extreme(low, _describe(order.index, first)), Extreme(high, _describe(order.index, last))


def _describe(index: Index, row: int) -> str:
    return f"{index.keys[row]!r} in shard {redact(index.shards[int(index.shard_of(row))])!r}"
