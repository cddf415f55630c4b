"""The report of a loader's next epochs: the same quantities as `stats` once such an epoch has ended."""

from __future__ import annotations

from patchnpack.loaders.packed_loader import PackedImageLoader
from patchnpack.packer import Plan, Rows
from patchnpack.packer.analysis.report import PackingReport, report


def planned_rows(loader: PackedImageLoader, epoch: int = 0) -> Rows:
    """Return the rows of an epoch in the order in which they are planned.

    For a packed folder that is the order of the shards' loader that planned the packs.

    Raises:
        ValueError: the loader plans several streams, and each is packed by itself.
    """
    order = loader.steps().order
    if order.num_streams > 1 and planned_before(loader, epoch) is None:
        raise ValueError(
            f"num_streams is {order.num_streams}; each stream is packed by itself, and a report is of one. Make the "
            "report of a loader with num_streams=1: its padding differs by a few packs a stream at most"
        )
    return order.planning_order().planned_rows(order.planned_epoch(epoch))


def report_of(loader: PackedImageLoader, epoch: int = 0, *, width: int = 768) -> PackingReport:
    """Return the report of an epoch of this loader: its order, batch size and number of ranks.

    Args:
        loader: not started, or at any place; it does not move.
        epoch: which epoch.
        width: features of the model that is trained.
    """
    order = loader.steps().order
    return report(
        planned_rows(loader, epoch),
        loader.packing,
        seed=order.planning_order().seed,
        epoch=order.planned_epoch(epoch),
        batch_size=loader.batch_size,
        ranks=loader.rank()[1],
        width=width,
        made=planned_before(loader, epoch),
    )


def planned_before(loader: PackedImageLoader, epoch: int = 0) -> Plan | None:
    """Return the plan of an epoch of a packed folder; None where the loader plans."""
    return loader.steps().order.stored_plan(epoch)
