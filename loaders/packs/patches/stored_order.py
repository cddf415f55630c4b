"""`StoredOrder`: the order of packs whose plans are stored, in place of an `Order` that makes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import repeat, zip_longest
from typing import Any

import numpy as np

from patchnpack.loaders.order.order import Order, Pack
from patchnpack.packer import Images, PatchSizes, Plan
from patchnpack.packer.policies.random import Purpose, counter_hash, image_ids

# N packs of a stream, M images in them

_CHUNK = 4096  # packs that are taken out of a plan together


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredPlan(Plan):
    """Some packs of a stored plan.

    Attributes:
        epoch, stream: which plan; epochs count from 0 to the number of plans - 1.
        numbers: int64 (N,), the numbers of these packs in the stream.
    """

    epoch: int
    stream: int
    numbers: np.ndarray


@dataclass(frozen=True, kw_only=True)
class StoredOrder(Order):
    """The order of stored packs, cut into blocks and balanced as in `Order`.

    `seed` and `shuffle` are those that the packs were planned with, unless packs are mixed.

    Attributes:
        planned: the order of rows in which the packs were planned.
        plan: returns the arrays of the plan of an (epoch, stream), epochs from 0 to the number of plans - 1.
        counts: packs of each stream, for each of these epochs.
        mixed_packs: whether packs are read in another order each epoch, `shuffle_window` parts at a time.
        draw_seed: seed that decides which tokens are kept.
        part_packs: packs per part.
        part_numbers: returns the numbers of the parts of an (epoch, stream); none where its images lie in other parts.
        num_parts: number of all parts.
    """

    planned: Order
    plan: Callable[[int, int], Mapping[str, np.ndarray]]
    counts: list[list[int]]
    mixed_packs: bool
    draw_seed: int
    part_packs: int
    part_numbers: Callable[[int, int], list[int]]
    num_parts: int
    _cached: dict[tuple[int, int], Mapping[str, np.ndarray]] = field(default_factory=dict, repr=False, compare=False)

    def planning_order(self) -> Order:
        """Return the order of rows in which the packs were planned."""
        return self.planned

    def planned_epoch(self, epoch: int) -> int:
        """Return the epoch of the stored plan: after the last plan the first repeats."""
        return epoch % len(self.counts)

    def stored_plan(self, epoch: int) -> Plan:
        """Return all packs of an epoch, stream by stream, in the order in which they are read."""
        plans: list[Plan] = []
        for stream in range(self.num_streams):
            deque(self._planned_packs(epoch, stream, plans.append), maxlen=0)
        return Plan.concatenate(plans)

    def _planned_packs(self, epoch: int, stream: int, on_plan: Callable[[Plan], None]) -> Iterator[Pack]:
        arrays, first = self._arrays(epoch, stream), True
        for numbers in self._numbers(epoch, stream):
            part = self._take(arrays, numbers, epoch, stream, first)
            first = False
            on_plan(part)
            yield from map(
                Pack, part.patch_size.tolist(), repeat(part), range(len(part)), arrays["cost"][numbers].tolist()
            )
        if first:
            on_plan(self._take(arrays, np.zeros(0, np.int64), epoch, stream, True))

    def _take(
        self, arrays: Mapping[str, np.ndarray], numbers: np.ndarray, epoch: int, stream: int, first: bool
    ) -> StoredPlan:
        """Take packs out of a plan by number; the `first` ones bring the samples that the plan left out."""
        ends = arrays["offsets"]
        low, count = ends[numbers], ends[numbers + 1] - ends[numbers]
        offsets = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
        which = np.repeat(low - offsets[:-1], count) + np.arange(offsets[-1])
        row, none = arrays["row"][which], np.zeros(0, np.int64)
        ids, page, frame = self.index.row_id(row), None, None
        if "frame" in arrays:
            page, frame, views = arrays["page"][which], arrays["frame"][which], self.packing.views
            ids = image_ids(ids, page, 0 if views is None else frame % views.count)
        images = Images(
            row=row,
            # Keyed by the epoch itself, not by its plan's: other tokens are kept each epoch.
            key=counter_hash(Purpose.TOKEN_DROP, self.draw_seed, epoch, ids),
            box=arrays["box"].reshape(-1, 4)[which],
            size=arrays["size"].reshape(-1, 2)[which],
            grid=arrays["grid"].reshape(-1, 2)[which],
            keep=arrays["keep"][which],
            page=page,
            frame=frame,
            flip=arrays["flip"][which] if "flip" in arrays else None,
        )
        return StoredPlan(
            offsets=offsets,
            patch_size=arrays["patch_size"][numbers],
            images=images,
            skipped=arrays["skipped"] if first else none,
            oversize=arrays["oversize"] if first else none,
            undersize=arrays.get("undersize", none) if first else none,
            algorithm=self.packing.algorithm,
            few=arrays.get("few", none) if first else none,
            scope=self.packing.scope,
            epoch=self.planned_epoch(epoch),
            stream=stream,
            numbers=numbers,
        )

    def _numbers(self, epoch: int, stream: int) -> Iterator[np.ndarray]:
        """Yield the numbers of the stream's packs in the order in which they are read, chunk by chunk."""
        packs = self._counts(epoch)
        count = packs[stream]
        if not self.mixed_packs:
            yield from (np.arange(low, min(count, low + _CHUNK)) for low in range(0, count, _CHUNK))
            return
        # With patch sizes whole blocks change places, in all streams alike, since a block has one patch size.
        sizes = isinstance(self.packing.patch_size, PatchSizes)
        unit = self.block // self.num_streams if sizes else 1
        units = (min(packs) if sizes else count) // unit
        salt = np.uint64(0 if sizes else stream << 40)
        for window in self._windows(epoch, units, max(1, self.part_packs // unit), salt):
            drawn = counter_hash(Purpose.ROW_ORDER, self.seed, epoch, window.astype(np.uint64) | salt)
            window = window[np.argsort(drawn, kind="stable")]
            yield (window[:, None] * unit + np.arange(unit)).ravel()
        if units * unit < count:
            yield np.arange(units * unit, count)

    def _windows(self, epoch: int, units: int, part: int, salt: np.uint64) -> Iterator[np.ndarray]:
        """Yield the units of each window of parts; the order of parts is drawn for each epoch."""
        parts = np.arange(-(-units // part))
        drawn = counter_hash(Purpose.SHARD_ORDER, self.seed, epoch, parts.astype(np.uint64) | salt)
        parts = parts[np.argsort(drawn, kind="stable")]
        for first in range(0, len(parts), self.shuffle_window):
            window = parts[first : first + self.shuffle_window]
            units_in = (window[:, None] * part + np.arange(part)).ravel()
            yield units_in[units_in < units]

    def _counts(self, epoch: int) -> list[int]:
        return self.counts[self.planned_epoch(epoch)]

    def _arrays(self, epoch: int, stream: int) -> Mapping[str, np.ndarray]:
        which = self.planned_epoch(epoch), stream
        arrays = self._cached.get(which)  # several iterators may plan at once, each in a thread of its own
        if arrays is None:
            if len(self._cached) > 2 * self.num_streams:
                self._cached.clear()
            arrays = self._cached[which] = self.plan(*which)
        return arrays

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": {}}

    def stream_counts(self, epoch: int) -> list[int]:
        """Return the number of packs in each stream."""
        return self._counts(epoch)

    def shards_in_order(self, epoch: int) -> Iterator[int]:
        """Yield the parts in approximate access order, each once; parts that the epoch does not read come last."""
        orders = [self._parts_in_order(epoch, stream) for stream in range(self.num_streams)]
        seen = dict.fromkeys(part for parts in zip_longest(*orders) for part in parts if part is not None)
        yield from seen
        yield from (part for part in range(self.num_parts) if part not in seen)

    def _parts_in_order(self, epoch: int, stream: int) -> list[int]:
        parts = self.part_numbers(self.planned_epoch(epoch), stream)
        if not parts:
            return []
        numbers = dict.fromkeys(
            number for chunk in self._numbers(epoch, stream) for number in np.unique(chunk // self.part_packs).tolist()
        )
        return [parts[number] for number in numbers]
