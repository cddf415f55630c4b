"""The report of what a loader is going to do: the same quantities as `stats` once the epoch has ended."""

from __future__ import annotations

import dataclasses

import numpy as np

from patchnpack.loaders.packed_loader import PackedImageLoader
from patchnpack.loaders.packs.stored_order import StoredOrder
from patchnpack.packer import Plan, Rows
from patchnpack.packer.analysis.report import PackingReport, report


def planned_rows(loader: PackedImageLoader, epoch: int = 0) -> Rows:
    """The rows of an epoch in the order in which the loader plans them, or in that of packs planned before.

    Raises:
        ValueError: a loader of several streams, each of which is packed by itself.
    """
    order = loader.steps().order
    if isinstance(order, StoredOrder):
        made = order.whole_plan(epoch)
        return loader.index.rows(np.concatenate([made.images.row, made.skipped]))
    if order.num_streams > 1:
        raise ValueError(
            f"num_streams is {order.num_streams}; each stream is packed by itself, and a report is of one. Make the "
            "report of a loader with num_streams=1: its padding differs by a few packs a stream at most"
        )
    parts = list(order.stream_rows(epoch, 0))
    columns = [field.name for field in dataclasses.fields(Rows)]
    return Rows(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in columns})


def report_of(loader: PackedImageLoader, epoch: int = 0, *, width: int = 768) -> PackingReport:
    """The report of an epoch of this loader: its order, batch size and number of ranks.

    Args:
        loader: not started, or at any place; it is not moved.
        epoch: which epoch.
        width: features of the model that is trained.
    """
    order = loader.steps().order
    return report(
        planned_rows(loader, epoch),
        loader.packing,
        seed=order.seed,
        epoch=epoch,
        batch_size=loader.batch_size,
        ranks=loader.rank()[1],
        width=width,
        made=planned_before(loader, epoch),
    )


def planned_before(loader: PackedImageLoader, epoch: int = 0) -> Plan | None:
    """The plan of an epoch of a pre-packed folder; None where the loader plans."""
    order = loader.steps().order
    return order.whole_plan(epoch) if isinstance(order, StoredOrder) else None
