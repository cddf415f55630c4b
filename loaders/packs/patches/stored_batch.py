"""Batches of a patch store: packs read through memory maps, as they were written."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch

from patchnpack.loaders.assembly.builders.batch_builder import BatchBuilder
from patchnpack.loaders.assembly.samples import IndexedBatchContext, extra
from patchnpack.loaders.assembly.stats import BatchCounts
from patchnpack.loaders.errors import BadRow, StallError
from patchnpack.loaders.labels.labels import count_absent
from patchnpack.loaders.order.order import Pack
from patchnpack.loaders.packs.patches.mapped_parts import Maps, Record
from patchnpack.loaders.packs.patches.patch_part import EXTRA, SEVERAL, has_several
from patchnpack.loaders.packs.patches.stored_order import StoredPlan
from patchnpack.loaders.packs.patches.stored_targets import read_targets
from patchnpack.packer import PackedBatch

# B packs in a batch, L token slots in a pack, K images in a pack at most, D values in a target

_PAGE = 4096  # bytes of a memory page


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredBatchContext(IndexedBatchContext):
    """The batch context of a patch store.

    Attributes:
        numbers: the reader's shard number of each part, by (epoch, stream).
        part_packs: packs per part.
        compressed: whether the parts are compressed.
        maps: the mapped parts.
    """

    numbers: dict[tuple[int, int], list[int]]
    part_packs: int
    compressed: bool
    maps: Maps = field(default_factory=Maps)

    def fresh(self) -> Self:
        """Return the same context with maps of its own."""
        return replace(self, maps=Maps())

    def builder(self, packs: Sequence[Pack], patch_size: int, *, epoch: int, step: int, position: int) -> BatchBuilder:
        """Return the builder of the batch that holds these packs."""
        return StoredBatchBuilder(self, packs, patch_size, epoch=epoch, step=step, position=position)

    def find(self, pack: Pack, epoch: int) -> tuple[Record, int] | None:
        """Return the record batch that holds a pack and the pack's row in it; None for an empty pack."""
        if pack.plan is None:
            return None
        plan = pack.plan
        assert isinstance(plan, StoredPlan)
        part, within = divmod(int(plan.numbers[pack.number]), self.part_packs)
        number = self.numbers[plan.epoch, plan.stream][part]
        return self.maps.part(self.reader, number, epoch, self.compressed).find(within)


class StoredBatchBuilder:
    """Builds a batch from stored packs, in one part; see `BatchBuilder`.

    The batch's tensors lie in the memory map where its packs follow each other in one record batch of an uncompressed
    part. Otherwise the packs are copied.

    Args:
        context: where the packs lie.
        packs: the packs of the batch.
        patch_size: P, in pixels.
        epoch, step, position: of the batch.
    """

    def __init__(
        self,
        context: StoredBatchContext,
        packs: Sequence[Pack],
        patch_size: int,
        *,
        epoch: int,
        step: int,
        position: int,
    ) -> None:
        self.num_parts, self.num_images = 1, sum(map(_count, packs))
        self.bad: list[tuple[int, BadRow]] = []
        self.lost: list[int] = []
        self.bad_samples = 0
        self.without_label = self.truncated = self.multi_page = 0
        self.warnings: list[str] = []
        self._context, self._packs, self._patch_size = context, packs, patch_size
        self._epoch, self._step, self._position = epoch, step, position
        self._done = threading.Event()
        self._batch: PackedBatch | None = None
        self._error: BaseException | None = None

    def run(self, part: int) -> None:
        """Build the whole batch; `finish` raises what this raises."""
        try:
            self._batch = self._build()
            self.counts = BatchCounts.of(self._batch, self._context.packing.scope)
        except BaseException as error:  # noqa: BLE001 - `finish` raises it in the training loop's thread
            self._error = error
        self._done.set()

    @property
    def is_done(self) -> bool:
        """Whether `finish` returns without waiting."""
        return self._done.is_set()

    def finish(self) -> PackedBatch:
        """Wait for the batch and return it; see `BatchBuilder`.

        Raises:
            StallError: the batch was not read within `stall_s` seconds.
        """
        if not self._done.wait(self._context.errors.stall_s):
            raise StallError(
                f"a batch of stored packs was not read within {self._context.errors.stall_s:g} seconds; check the disk "
                "or network that holds the packs. If reading may take this long, raise stall_s"
            )
        if self._error is not None:
            raise self._error
        assert self._batch is not None
        return self._batch

    def _build(self) -> PackedBatch:
        context, P = self._context, self._patch_size
        found = [context.find(pack, self._epoch) for pack in self._packs]
        packing, labels = context.packing, context.labels
        B, L, K = len(found), packing.seq_len, packing.max_images
        shapes: dict[str, tuple[tuple[int, ...], Any, Any]] = {
            "segment_ids": ((B, L), np.int32, 0),
            "coords": ((B, L, 2), np.int32, 0),
            "grids": ((B, K, 2), np.int32, 0),
            "image_sizes": ((B, K, 2), np.int32, 0),
            "boxes": ((B, K, 4), np.int32, 0),
            "sizes": ((B, K, 2), np.int32, 0),
            "flipped": ((B, K, 2), np.uint8, 0),
            "rows": ((B, K), np.int64, -1),
            "labels": ((B, K, *labels.shape), labels.dtype, labels.absent),
            **(dict.fromkeys(SEVERAL, ((B, K), np.int32, 0)) if has_several(context) else {}),
        }
        arrays: dict[str, np.ndarray] = {}
        run = self._run_of(found)
        in_map = run is not None and not context.compressed
        if in_map:
            assert run is not None
            record, rows = run
            patches = record.patches[rows].reshape(B, L, -1)
            patches.reshape(-1)[::_PAGE].max(initial=0)  # fault the pages in here, not in the training loop's thread
            arrays = {name: record.fixed[name][rows].reshape(shape) for name, (shape, _, _) in shapes.items()}
        else:
            patches = context.buffers.acquire((B, L, packing.token_bytes(P)))
            for b, stored in enumerate(found):
                patches[b] = 0 if stored is None else stored[0].patches[stored[1]].reshape(L, -1)
            for name, (shape, dtype, empty) in shapes.items():
                array = arrays[name] = np.full(shape, empty, dtype)
                for b, stored in enumerate(found):
                    if stored is not None:
                        array[b] = stored[0].fixed[name][stored[1]].reshape(shape[1:])
        arrays["flipped"] = arrays["flipped"].view(np.bool_)
        mask = arrays["rows"] >= 0
        self.without_label = count_absent(arrays["labels"][mask])
        self.multi_page = int((context.index.pages[arrays["rows"][mask]] != 1).sum())
        keys, extras = self._keys_and_extras(found)
        places = [None if stored is None else (stored[0].targets, stored[1]) for stored in found]
        fields: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arrays.items()}
        fields |= read_targets(context.targets, places, mask, L, P, in_map=in_map)
        return PackedBatch(
            patches=torch.from_numpy(patches.view(packing.dtype)),
            image_mask=torch.from_numpy(mask),
            **fields,
            keys=keys,
            extras=extras,
            patch_size=P,
            step=self._step,
            epoch=self._epoch,
            position=self._position,
            scaled_decode=self._context.packing.scaled_decode,
        )

    def _run_of(self, found: Sequence[tuple[Record, int] | None]) -> tuple[Record, slice] | None:
        """Return the record batch and the rows that these packs are; None if they do not follow each other in one."""
        if found[0] is None:
            return None
        record, first = found[0]
        if any(stored is None or stored[0] is not record or stored[1] != first + b for b, stored in enumerate(found)):
            return None
        return record, slice(first, first + len(found))

    def _keys_and_extras(
        self, found: Sequence[tuple[Record, int] | None]
    ) -> tuple[list[list[str]], dict[str, list[list[Any]]]]:
        """Return keys and extras of each pack; note the bad and truncated images that were recorded with the packs."""
        names, kinds = self._context.extras, self._context.index.kinds
        keys: list[list[str]] = []
        extras: dict[str, list[list[Any]]] = {name: [] for name in names}
        before = 0
        for pack, stored in zip(self._packs, found, strict=True):
            if stored is None:
                keys.append([])
                for name in names:
                    extras[name].append([])
                continue
            batch, row = stored[0].batch, stored[1]
            keys.append(batch.column("keys")[row].as_py())
            for name in names:
                kind, values = kinds.get(name, name), batch.column(EXTRA + name)[row].as_py()
                extras[name].append([extra(name, kind, value) for value in values])
            if (bad := batch.column("bad")[row].as_py()) != "[]":
                self.bad += [(before + number, BadRow(**about)) for number, about in json.loads(bad)]
            lost = batch.column("lost")[row].as_py()
            self.lost += [before + number for number in lost]
            self.bad_samples += batch.column("bad_samples")[row].as_py()
            self.truncated += batch.column("truncated")[row].as_py()
            self.warnings += batch.column("warnings")[row].as_py()
            before += _count(pack)
        return keys, extras


def _count(pack: Pack) -> int:
    """Return the number of images that were planned for a pack."""
    if pack.plan is None:
        return 0
    return int(pack.plan.offsets[pack.number + 1] - pack.plan.offsets[pack.number])
