"""The patch store: packs as they are trained on, written once and read through memory maps."""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from patchnpack.loaders.assembly.samples import IndexedBatchContext, Transform, extra
from patchnpack.loaders.errors import BadRow, StallError
from patchnpack.loaders.index.labels import NO_LABEL, Classes, KnownLabels, Label
from patchnpack.loaders.index.table import Index
from patchnpack.loaders.order.order import Pack
from patchnpack.loaders.order.state import decoders
from patchnpack.loaders.packs.arrow_file import Codec, MappedFile
from patchnpack.loaders.packs.manifest import Manifest
from patchnpack.loaders.packs.patch_part import EXTRA, FIXED, patch_part
from patchnpack.loaders.packs.recipe import Recipe
from patchnpack.loaders.packs.stored_index import Places
from patchnpack.loaders.packs.stored_order import StoredPlan
from patchnpack.loaders.shards.reader import ShardReader
from patchnpack.packer import PackedBatch, Packing, Plan

# B packs in a batch, N packs of a part, L token slots in a pack, K images in a pack at most, D values in a target

_MAPS = 32  # parts that are mapped at a time
_PAGE = 4096


class PatchStore:
    """The `PackStore` that keeps packs as they are trained on: patches, labels and the extras that were asked for."""

    keeps_samples = False

    def decoders(self) -> str:
        """Return the builds that the pixels depend on."""
        return decoders()

    def part_epochs(self, recipe: Recipe) -> int:
        """Return the number of plans: each has parts of its own."""
        return recipe.epochs

    def pack_bytes(self, packing: Packing, index: Index, plans: Iterator[Plan]) -> int:
        """Return the bytes of a pack's patches, at the largest patch size."""
        return packing.seq_len * max(packing.token_bytes(size) for size in packing.patch_sizes)

    def part_file(
        self, plan: Plan, context: IndexedBatchContext, compression: Codec
    ) -> tuple[pa.Buffer, dict[str, Any]]:
        """Decode the images of a part; return its file and its marker. See `patch_part`."""
        return patch_part(plan, context, compression)

    def locate(self, places: Places, number: int, rows: np.ndarray, marker: dict[str, Any]) -> None:
        """Note nothing: packs are found by their numbers, not by the rows in them."""

    def check_options(
        self,
        recipe: Recipe,
        where: str,
        *,
        label: Label,
        classes: Classes,
        extras: Sequence[str],
        transform: Transform | None,
    ) -> None:
        """Raise ValueError for a transform, another label, or extras that the packs do not hold."""
        if transform is not None:
            raise ValueError(
                f"transform= cannot be given for the packs in {where!r}, which are made: leave it out, or pack with "
                "store='images', where it is applied as images are read"
            )
        for name, value, stored in (("label", label, recipe.label), ("classes", classes, None)):
            if value is not None and value != stored:
                raise ValueError(
                    f"{name} is {value!r}, and the packs in {where!r} hold the labels of {recipe.label!r}; leave it "
                    "out, or pack again with it"
                )
        if missing := [name for name in extras if name.lstrip(".").lower() not in recipe.extras]:
            raise ValueError(
                f"extras asks for {missing[0]!r}, and the packs in {where!r} hold {list(recipe.extras)}; pack again "
                "with it"
            )

    def labels(
        self, manifest: Manifest, index: Index, reader: ShardReader, label: Label, classes: Classes
    ) -> KnownLabels:
        """Return the labels that were stored with the packs."""
        return KnownLabels(
            shape=manifest.label_shape, num_classes=manifest.num_classes, classes=manifest.recipe.classes
        )

    def batch_context(
        self, context: IndexedBatchContext, recipe: Recipe, part_numbers: Callable[[int, int], list[int]]
    ) -> IndexedBatchContext:
        """Return a context that reads packs from the parts of each epoch and stream."""
        numbers = {
            (epoch, stream): part_numbers(epoch, stream)
            for epoch in range(recipe.epochs)
            for stream in range(recipe.num_streams)
        }
        return StoredBatchContext(
            **{field.name: getattr(context, field.name) for field in fields(IndexedBatchContext)},
            numbers=numbers,
            part_packs=recipe.part_packs,
            compressed=recipe.compression is not None,
        )

    def draw_seed(self, recipe: Recipe, seed: int) -> int:
        """Return the recipe's seed: the kept tokens were drawn when the packs were written."""
        return recipe.seed


class _Record:
    """A record batch's columns as arrays of N packs; `patches` are (N, bytes of a pack)."""

    def __init__(self, file: MappedFile, number: int) -> None:
        batch = file.batch(number)
        N = batch.num_rows
        self.batch = batch
        self.patch_size = batch.column("patch_size")[0].as_py()
        self.patches = file.values(batch.column("patches").buffers()[2], np.uint8)[: _used(batch)].reshape(N, -1)
        self.fixed = {}
        for name in FIXED:
            values = batch.column(name).values
            self.fixed[name] = file.values(values.buffers()[1], values.type.to_pandas_dtype())[: len(values)].reshape(
                N, -1
            )


def _used(batch: pa.RecordBatch) -> int:
    ends = np.frombuffer(batch.column("patches").buffers()[1], np.int64)
    return int(ends[batch.num_rows])


class _MappedPart:
    """A part in memory: its record batches, and in which of them each pack is."""

    def __init__(self, fd: int, compressed: bool) -> None:
        self.file = MappedFile(fd)
        self._records: dict[int, _Record] = {}
        self._compressed = compressed
        if not compressed:
            rows = [self.file.batch(i).num_rows for i in range(self.file.num_batches)]
            self._ends = np.cumsum(rows)

    def find(self, pack: int) -> tuple[_Record, int]:
        """The record batch of a pack, and the pack's row in it."""
        if self._compressed:  # of a pack each, and not kept
            return _Record(self.file, pack), 0
        number = int(np.searchsorted(self._ends, pack, side="right"))
        record = self._records.get(number)
        if record is None:
            record = self._records.setdefault(number, _Record(self.file, number))
        return record, pack - int(self._ends[number] - record.batch.num_rows)


class Maps:
    """The parts that are mapped, those used last; each iterator and each epoch maps them anew.

    Batches may lie in the maps themselves. What a training loop writes into one is in the map, not in the file, and so
    it must not be there when the pack is read again.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._open: OrderedDict[tuple[int, int], _MappedPart] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Maps], tuple[()]]:
        return Maps, ()

    def part(self, sources: StoredBatchContext, number: int, epoch: int) -> _MappedPart:
        """Part `number`, for an epoch."""
        with self._lock:
            if (epoch, number) in self._open:
                self._open.move_to_end((epoch, number))
                return self._open[epoch, number]
        fd = sources.reader.open(number)
        try:
            part = _MappedPart(fd, sources.compressed)
        finally:
            os.close(fd)
        with self._lock:
            part = self._open.setdefault((epoch, number), part)
            while len(self._open) > _MAPS:
                self._open.popitem(last=False)
        return part


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredBatchContext(IndexedBatchContext):
    """Where the packs of a patch store lie.

    Attributes:
        numbers: of each (epoch, stream) the numbers of its parts among the reader's shards.
        part_packs: packs of a part.
        compressed: whether parts are.
        maps: the parts in memory.
    """

    numbers: dict[tuple[int, int], list[int]]
    part_packs: int
    compressed: bool
    maps: Maps = field(default_factory=Maps)

    def fresh(self) -> StoredBatchContext:
        """The same with maps of its own."""
        return replace(self, maps=Maps())


class StoredBatchBuilder:
    """A batch of a patch store in the making; see `DecodedBatchBuilder`. One thread does all of it.

    Where its packs follow each other in one record batch, its tensors lie in the memory map; else they are copied.
    """

    num_parts = 1

    def __init__(
        self,
        sources: StoredBatchContext,
        packs: Sequence[Pack],
        patch_size: int,
        *,
        epoch: int,
        step: int,
        position: int,
    ) -> None:
        self.num_images = sum(map(_count, packs))
        self.bad: list[tuple[int, BadRow]] = []
        self.without_label = self.truncated = 0
        self._sources, self._packs, self._patch_size = sources, packs, patch_size
        self._epoch, self._step, self._position = epoch, step, position
        self._done = threading.Event()
        self._batch: PackedBatch | None = None
        self._error: BaseException | None = None

    def run(self, part: int) -> None:
        """Makes the batch; keeps what it raises for `finish`."""
        try:
            self._batch = self._make()
        except BaseException as error:  # noqa: BLE001 - it is raised again, in the training loop's thread
            self._error = error
        self._done.set()

    @property
    def is_done(self) -> bool:
        """Whether `finish` would not wait."""
        return self._done.is_set()

    def finish(self) -> PackedBatch:
        """Waits for the batch, and gives it.

        Raises:
            StallError: it takes longer than the policy allows.
        """
        if not self._done.wait(self._sources.errors.stall_s):
            raise StallError(
                f"a batch of stored packs was not read within {self._sources.errors.stall_s:g} seconds; look at the "
                "disk or the network that they lie on. If this is no fault, raise stall_s"
            )
        if self._error is not None:
            raise self._error
        assert self._batch is not None
        return self._batch

    def _find(self, pack: Pack) -> tuple[_Record, int] | None:
        if pack.plan is None:
            return None
        plan, sources = pack.plan, self._sources
        assert isinstance(plan, StoredPlan)
        part, within = divmod(int(plan.numbers[pack.number]), sources.part_packs)
        number = sources.numbers[plan.epoch, plan.stream][part]
        return sources.maps.part(sources, number, self._epoch).find(within)

    def _make(self) -> PackedBatch:
        found = [self._find(pack) for pack in self._packs]
        packing, P = self._sources.packing, self._patch_size
        B, L, K = len(found), packing.seq_len, packing.max_images
        labels = self._sources.labels
        target = labels.shape
        shapes: dict[str, tuple[tuple[int, ...], Any, Any]] = {
            "segment_ids": ((B, L), np.int32, 0),
            "coords": ((B, L, 2), np.int32, 0),
            "grids": ((B, K, 2), np.int32, 0),
            "image_sizes": ((B, K, 2), np.int32, 0),
            "rows": ((B, K), np.int64, -1),
            "labels": ((B, K, *target), labels.dtype, labels.absent),
        }
        arrays: dict[str, np.ndarray] = {}
        run = self._run_of(found)
        if run is not None and not self._sources.compressed:
            record, rows = run
            patches = record.patches[rows].reshape(B, L, -1)
            patches.reshape(-1)[::_PAGE].max(initial=0)  # read now, in this thread, not when the batch is used
            arrays = {name: record.fixed[name][rows].reshape(shape) for name, (shape, _, _) in shapes.items()}
        else:
            patches = self._sources.buffers.acquire((B, L, packing.token_bytes(P)))
            for b, place in enumerate(found):
                patches[b] = 0 if place is None else place[0].patches[place[1]].reshape(L, -1)
            for name, (shape, dtype, empty) in shapes.items():
                array = arrays[name] = np.full(shape, empty, dtype)
                for b, place in enumerate(found):
                    if place is not None:
                        array[b] = place[0].fixed[name][place[1]].reshape(shape[1:])
        mask = arrays["rows"] >= 0
        given = arrays["labels"][mask]
        self.without_label = int((np.isnan(given).all(-1) if given.ndim == 2 else given == NO_LABEL).sum())
        keys, extras = self._texts(found)
        return PackedBatch(
            patches=torch.from_numpy(patches),
            image_mask=torch.from_numpy(mask),
            **{name: torch.from_numpy(array) for name, array in arrays.items()},
            keys=keys,
            extras=extras,
            patch_size=P,
            step=self._step,
            epoch=self._epoch,
            position=self._position,
        )

    def _run_of(self, found: Sequence[tuple[_Record, int] | None]) -> tuple[_Record, slice] | None:
        """The rows of one record batch that these packs are, None if they are not such."""
        if found[0] is None:
            return None
        record, first = found[0]
        if any(place is None or place[0] is not record or place[1] != first + b for b, place in enumerate(found)):
            return None
        return record, slice(first, first + len(found))

    def _texts(self, found: Sequence[tuple[_Record, int] | None]) -> tuple[list[list[str]], dict[str, list[list[Any]]]]:
        """Keys and extras; what the packs' bad images were is noted on the way."""
        names, kinds = self._sources.extras, self._sources.index.kinds
        keys: list[list[str]] = []
        extras: dict[str, list[list[Any]]] = {name: [] for name in names}
        before = 0
        for pack, place in zip(self._packs, found, strict=True):
            if place is None:
                keys.append([])
                for name in names:
                    extras[name].append([])
                continue
            batch, row = place[0].batch, place[1]
            keys.append(batch.column("keys")[row].as_py())
            for name in names:
                kind, values = kinds.get(name, name), batch.column(EXTRA + name)[row].as_py()
                extras[name].append([extra(name, kind, value) for value in values])
            if (bad := batch.column("bad")[row].as_py()) != "[]":
                self.bad += [(before + number, BadRow(**about)) for number, about in json.loads(bad)]
            self.truncated += batch.column("truncated")[row].as_py()
            before += _count(pack)
        return keys, extras


def _count(pack: Pack) -> int:
    """Images that were planned for a pack."""
    if pack.plan is None:
        return 0
    return int(pack.plan.offsets[pack.number + 1] - pack.plan.offsets[pack.number])
