"""Which image makes a plan impossible: the packer knows rows and sizes, the loader knows keys and shards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from patchnpack.loaders.index.table import Index
from patchnpack.loaders.remote.addresses import redact
from patchnpack.packer import Packing, Rows
from patchnpack.packer.images import measure


@contextmanager
def naming_first_invalid_row(index: Index, rows: Rows, packing: Packing, *, seed: int, epoch: int) -> Iterator[None]:
    """A ValueError about one of the rows is raised again with the key and the shard of the first that is to blame."""
    try:
        yield
    except ValueError as error:
        row = _first(rows, packing, seed, epoch)
        if row is None:
            raise
        shard = redact(index.shards[int(index.shard_of(row))])
        raise ValueError(f"{error}; the first is {index.keys[row]!r} in shard {shard!r}, row {row}") from error


def _first(rows: Rows, packing: Packing, seed: int, epoch: int) -> int | None:
    """The first row that cannot be measured, found by halves; None where each can."""
    if _can(rows, packing, seed, epoch):
        return None
    while len(rows) > 1:
        half = len(rows) // 2
        first = rows.take(slice(0, half))
        rows = rows.take(slice(half, None)) if _can(first, packing, seed, epoch) else first
    return int(rows.row[0])


def _can(rows: Rows, packing: Packing, seed: int, epoch: int) -> bool:
    try:
        for size in packing.patch_sizes:
            measure(rows, packing, seed=seed, epoch=epoch, patch_size=size)
    except ValueError:
        return False
    return True
