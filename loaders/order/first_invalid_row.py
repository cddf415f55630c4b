"""Naming the image that makes a plan impossible: the packer knows rows and sizes, the loader keys and shards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from patchnpack.loaders.index.table import Index
from patchnpack.loaders.remote.addresses import redact
from patchnpack.packer import Packing, Rows
from patchnpack.packer.planning.measure import measure


@contextmanager
def naming_first_invalid_row(index: Index, rows: Rows, packing: Packing, *, seed: int, epoch: int) -> Iterator[None]:
    """Add to a ValueError about rows the key and the shard of the first row that causes it."""
    try:
        yield
    except ValueError as error:
        row = first_invalid_row(rows, packing, seed, epoch)
        if row is None:
            raise
        shard, several = redact(index.place(row)[0]), index.samples is not None
        first = f"the first {'such sample begins with' if several else 'is'} {index.keys[row]!r}"
        raise ValueError(f"{error}; {first} in shard {shard!r}, row {row}") from error


def first_invalid_row(rows: Rows, packing: Packing, seed: int, epoch: int) -> int | None:
    """Return the first row that cannot be measured, by bisection; None if all can."""
    if _measurable(rows, packing, seed, epoch):
        return None
    while len(rows) > 1:
        half = len(rows) // 2
        first = rows.take(slice(0, half))
        rows = rows.take(slice(half, None)) if _measurable(first, packing, seed, epoch) else first
    return int(rows.row[0])


def _measurable(rows: Rows, packing: Packing, seed: int, epoch: int) -> bool:
    try:
        for size in packing.patch_sizes:
            measure(rows, packing, seed=seed, epoch=epoch, patch_size=size)
    except ValueError:
        return False
    return True
