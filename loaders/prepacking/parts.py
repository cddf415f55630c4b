"""Parts: the plans of a job cut into files of equally many packs, and the plan of a stream as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from patchnpack.loaders.order.order import Order
from patchnpack.loaders.packs.pack_store import store_of
from patchnpack.loaders.packs.recipe import Recipe, unit_name
from patchnpack.packer import Images, Plan


def parts(order: Order, recipe: Recipe) -> Iterator[tuple[str, Plan]]:
    """Yield the name and the packs of each part, in the order of the parts' numbers."""
    part_epochs = store_of(recipe.store).part_epochs(recipe)
    for epoch in range(part_epochs):
        for stream in range(recipe.num_streams):
            skipped: list[np.ndarray] = []
            number = 0
            for plan in cut(_noting_skipped(order.stream_plans(epoch, stream), skipped), recipe.part_packs):
                yield unit_name(epoch, stream, number), plan
                number += 1
            if part_epochs < recipe.epochs:
                # An epoch without parts of its own may give these samples a size that fits, or other frames.
                rows = np.concatenate([np.zeros(0, np.int64), *skipped])
                for low in range(0, len(rows), recipe.part_packs):
                    yield unit_name(epoch, stream, number), _one_per_pack(rows[low : low + recipe.part_packs])
                    number += 1


def cut(plans: Iterable[Plan], packs: int) -> Iterator[Plan]:
    """Yield the packs of all plans as plans of `packs` packs each; the last may have fewer."""
    waiting: list[Plan] = []
    count = 0  # of packs that wait
    for plan in plans:
        low = 0
        while count + len(plan) - low >= packs:
            high = low + packs - count
            yield Plan.concatenate([*waiting, plan.take(low, high)])
            waiting, count, low = [], 0, high
        if low < len(plan):
            waiting.append(plan.take(low, len(plan)))
            count += len(plan) - low
    if waiting:
        yield Plan.concatenate(waiting)


def plan_arrays(plans: Iterable[Plan]) -> dict[str, np.ndarray]:
    """Return the plan of a stream as arrays; see `StoredOrder.plan`."""
    plan = Plan.concatenate(list(plans))
    images = plan.images
    flips = {"flip": images.flip} if images.flip is not None else {}
    several = {"page": images.page, "frame": images.frame, "few": plan.few} if images.frame is not None else {}
    return {
        "offsets": plan.offsets,
        "patch_size": plan.patch_size,
        "cost": plan.attention_cost(),
        "row": images.row,
        **{name: getattr(images, name).ravel() for name in ("box", "size", "grid")},
        "keep": images.keep,
        **flips,
        "skipped": plan.skipped,
        "oversize": plan.oversize,
        "undersize": plan.undersize,
        **{name: column for name, column in several.items() if column is not None},
    }


def _noting_skipped(plans: Iterable[Plan], skipped: list[np.ndarray]) -> Iterator[Plan]:
    for plan in plans:
        skipped.append(plan.skipped)
        yield plan


def _one_per_pack(rows: np.ndarray) -> Plan:
    """Return packs of one image each, the first of each sample that no pack of this epoch holds."""
    n, none = len(rows), np.zeros(0, np.int64)
    images = Images(
        row=rows,
        key=np.zeros(n, np.uint64),
        box=np.zeros((n, 4), np.int32),
        size=np.zeros((n, 2), np.int32),
        grid=np.zeros((n, 2), np.int32),
        keep=np.zeros(n, np.int32),
    )
    return Plan(
        offsets=np.arange(n + 1),
        patch_size=np.zeros(n, np.int32),
        images=images,
        skipped=none,
        oversize=none,
        undersize=none,
        algorithm="auto",
    )
