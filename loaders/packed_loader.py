"""`PackedImageLoader`: shards in, packed batches out. The one place where the plan and the decoding meet."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import torch

from patchnpack.loaders.assembly.buffers import BufferPool
from patchnpack.loaders.assembly.pipeline import Pipeline, WorkerShard
from patchnpack.loaders.assembly.samples import IndexedBatchContext, Transform, check_transform, read_member
from patchnpack.loaders.assembly.stats import Stats
from patchnpack.loaders.dataset import MOST_WORKERS, PackedDataset
from patchnpack.loaders.errors import ErrorMonitor, ErrorPolicy
from patchnpack.loaders.imaging.user_decode import Decode, check_decode
from patchnpack.loaders.index.labels import Classes, Label, Labels
from patchnpack.loaders.index.resolve import open_index
from patchnpack.loaders.index.table import IMAGE, Index
from patchnpack.loaders.order.mixture import Mixed, Mixture
from patchnpack.loaders.order.order import Order
from patchnpack.loaders.order.row_filter import RowFilter, Where
from patchnpack.loaders.order.state import Cursor, from_dict, to_dict
from patchnpack.loaders.order.steps import Even, Steps
from patchnpack.loaders.packs.source import Options, PackedFolder, is_prepacked
from patchnpack.loaders.process import checked_rank, cpu_share, process_rank
from patchnpack.loaders.shards.opener import ShardOpener
from patchnpack.loaders.shards.patterns import Source
from patchnpack.packer import PackedBatch, Packing
from patchnpack.packer.checks import check_whole

# B packs in a batch, W ranks, S streams


class PackedImageLoader:
    """Streams batches of packed images out of webdataset tar shards, at native resolution.

    Sizes come from headers, so the whole order is planned from integers; pixels are decoded once, by threads, straight
    into the batch. The sequence of batches is a function of the shards, `packing`, `seed` and the epoch: identical for
    any number of threads and any `prefetch`.

    Args:
        source: shards by brace range, glob or list, an index file, an `Index`, a `Mixture` of several of these, or a
            folder of packs that `patchnpack pack` wrote.
        packing: what a sequence looks like; `Packing()` by default.
        batch_size: B, packs in a batch of this rank.
        shuffle: shuffle shards and, inside windows of `shuffle_window` shards, rows; anew each epoch.
        seed: of every shuffle and draw.
        repeat: `iter` goes on from epoch to epoch for ever; such a loader has no length.
        image: extensions that are images, separated by ";".
        label: None, "cls" (or any member that holds a text), "json:FIELD", or a callable from a sample's members
            (extension to bytes) to an int or an array.
        classes: names of classes as a list, a file with one a line, or a mapping to indices; without, labels are whole
            numbers.
        extras: extensions of members to hand out in `batch.extras`: txt as str, json as object, others as bytes; None
            where a sample has none. One that cannot be read so makes its image a bad one.
        decode: called as `decode(data)` with an image's encoded bytes; gives uint8 (H, W, C), with the height and width
            that the file says (before EXIF orientation, which the loader applies; TIFF as PIL turns it) and the
            channels of `image_mode`; or None, which leaves the image to the loader. With it, 16-bit, float and
            multispectral images and files of several pages can be used. `BadImage` from it makes the image a bad one;
            all else is raised.
        transform: called as `transform(image, rng)` with a uint8 (H, W, C) array and a Generator keyed by (seed, epoch,
            row); gives an array of the same shape and type. Runs in the decoding threads.
        where: from an `Index` to a bool array, the rows to use; the others are counted as skipped.
        index: an index file that holds the shards, its address, or an `Index`; None looks beside the shards, then in
            the cache, and scans what it does not find.
        storage_options: of remote shards, as fsspec or obstore have them; `retry`, a dict of attempts, deadline_s,
            stall_s, pause_s and max_pause_s, says how long to try.
        cache_dir: where indexes, remote shards and the images of parquet files are cached; None is $PATCHNPACK_CACHE,
            or ~/.cache/patchnpack.
        cache_limit: bytes that shards may take there; beyond, those used longest ago are deleted.
        even: "pad" fills the last step with empty packs, "drop" leaves its packs out and counts their images.
        shuffle_window: shards inside which rows are shuffled.
        num_streams: S, slices that the epoch is cut into, each packed by itself; 1 packs best.
        block: packs in which the streams take turns, and of one patch size; a multiple of S. None is the packs of one
            step, over all ranks.
        num_threads: decoding threads; None is this rank's share of the CPUs.
        prefetch: batches made ahead of the one in use, at least 1.
        errors: what is done about bad images; None is `ErrorPolicy()`.
        rank, world_size: None asks `torch.distributed`, then the environment, when iteration starts.

    Raises:
        FileNotFoundError: a shard that does not exist.
        ValueError: a source without images, a label that no sample has, an image smaller than a patch, an option out of
            range.

    `for batch in loader` is one epoch, the next one the next epoch.
    """

    def __init__(
        self,
        source: Source | Index | Mixture,
        packing: Packing | None = None,
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        repeat: bool = False,
        image: str = IMAGE,
        label: Label = None,
        classes: Classes = None,
        extras: Sequence[str] = (),
        transform: Transform | None = None,
        decode: Decode | None = None,
        where: Where | None = None,
        index: Index | str | os.PathLike[str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_limit: int | None = None,
        even: Even = "pad",
        shuffle_window: int = 16,
        num_streams: int = 1,
        block: int | None = None,
        num_threads: int | None = None,
        prefetch: int = 2,
        errors: ErrorPolicy | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        for name, value in (
            ("batch_size", batch_size),
            ("shuffle_window", shuffle_window),
            ("num_streams", num_streams),
            ("block", block),
            ("num_threads", num_threads),
            ("prefetch", prefetch),
            ("world_size", world_size),
        ):
            if value is not None:
                check_whole(name, value)
        if even not in ("pad", "drop"):
            raise ValueError(f"even is {even!r}; it must be 'pad' or 'drop'")
        if (rank is None) != (world_size is None):
            raise ValueError(f"rank is {rank} and world_size is {world_size}; give both or neither")
        typed: tuple[tuple[str, object, type, str], ...] = (
            ("packing", packing, Packing, "Packing(seq_len=...)"),
            ("errors", errors, ErrorPolicy, "ErrorPolicy(on_error=...)"),
            ("image", image, str, "extensions as one text: 'jpg;png'"),
        )
        for name, given, kind, remedy in typed:
            if given is not None and not isinstance(given, kind):
                raise ValueError(f"{name} is {given!r}; give {remedy}")
        check_decode(decode)
        check_transform(transform)
        check_whole("seed", seed, least=-(1 << 63))
        if cache_limit is not None:
            check_whole("cache_limit", cache_limit)
        if isinstance(extras, str):
            raise ValueError(f"extras is {extras!r}; give a list of extensions: [{extras!r}]")
        if block is not None and block % num_streams:
            raise ValueError(f"block is {block}; it must be a multiple of num_streams, {num_streams}")

        self.packing = packing if packing is not None else Packing()
        self.batch_size, self.repeat = batch_size, repeat
        self._rank_given = None if rank is None or world_size is None else checked_rank(rank, world_size)
        opener = ShardOpener(cache_dir, cache_limit, storage_options)
        alone = self.rank()[1] == 1
        if isinstance(source, Mixture) and index is not None:
            raise ValueError("index= is for one source; in a Mixture, name index files as sources")
        stored = None
        parts: list[Index]
        if isinstance(source, str | os.PathLike) and is_prepacked(source):
            stored = PackedFolder.open(
                source, cache_dir=cache_dir, cache_limit=cache_limit, storage_options=storage_options
            )
            given = Options(
                packing=packing,
                label=label,
                classes=classes,
                extras=extras,
                block=block,
                num_streams=num_streams,
                where=where,
                index=index,
                transform=transform,
                errors=errors,
            )
            settled = stored.settle(given)
            self.packing, opener = stored.recipe.packing, stored.store
            label, classes, extras = settled.label, settled.classes, settled.extras
            block, num_streams = settled.block, settled.num_streams
            parts = [stored.index]
        else:
            parts = [
                open_index(part, index=index, image=image, opener=opener, may_scan=alone, num_threads=num_threads)
                for part in ([part for part, _ in source.sources.values()] if isinstance(source, Mixture) else [source])
            ]
        self._prepacked = stored
        self.index = parts[0] if len(parts) == 1 else Index.concatenate(parts)
        self._shuffle, self._seed, self._even = shuffle, seed, even
        self._shuffle_window, self._num_streams, self._block = shuffle_window, num_streams, block
        self._num_threads, self._prefetch = num_threads, prefetch
        policy = errors if errors is not None else ErrorPolicy()
        self._rows = RowFilter.of(self.index, where, policy if stored is None else stored.limits, decode)
        self._mixed = Mixed.of(source, parts, self._rows.mask) if isinstance(source, Mixture) else None
        if stored is None:
            # Decided once, from the first rows of the index: every epoch and every stream is packed alike.
            self.packing = self._rows.with_algorithm(self.index, self.packing, seed)

        reader = self.index.reader(opener) if stored is None else stored.reader()
        labels = (stored and stored.labels()) or Labels(
            self.index, label, classes, partial(read_member, self.index, reader)
        )
        extras = [extension.lstrip(".").lower() for extension in extras]
        for extension in extras:
            if extension not in self.index.members:
                found = ", ".join(sorted(self.index.members))
                raise ValueError(f"extras asks for {extension!r}, which no sample has; their members are {found}")
        self._sources = IndexedBatchContext(
            index=self.index,
            reader=reader,
            packing=self.packing,
            labels=labels,
            extras=extras,
            transform=transform,
            seed=seed,
            buffers=BufferPool(keep=prefetch + 2),
            errors=policy,
            user_decode=decode,
        )
        if stored is not None:
            self._sources = stored.sources(self._sources)
        self._stats, self._monitor = Stats(), ErrorMonitor(policy)
        bad = self._rows.bad
        first = next((self._sources.bad_row(row, *why) for row, why in bad.items()), None)
        self._monitor.before_start(len(bad), len(bad) + int(self._rows.mask.sum()), first)
        self._next = Cursor(0, 0)  # where the next iterator begins
        self._stands: Cursor | None = self._next  # where training stands
        self._made_steps: Steps | None = None
        self._datasets: weakref.WeakSet[PackedDataset] = weakref.WeakSet()
        self._totals: list[torch.Tensor] = []  # of the workers of each dataset

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_datasets": None, "_totals": []}  # in another process it serves one dataset only

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {**state, "_datasets": weakref.WeakSet()}

    def __iter__(self) -> Iterator[PackedBatch]:
        begin, batches = self._next, self.batches()
        self._next, self._stands = Cursor(begin.epoch + 1, 0), begin
        return self._watched(batches.run(begin, WorkerShard()), begin)

    def _watched(self, batches: Iterator[PackedBatch], begin: Cursor) -> Iterator[PackedBatch]:
        """The batches; each is noted as the one that training stands at when it is handed out."""
        for batch in batches:
            self._stands = Cursor(batch.epoch, batch.position)
            if self.repeat or batch.epoch > begin.epoch:
                self._next = Cursor(batch.epoch + 1, 0)
            yield batch
            del batch

    def __getitem__(self, number: Any) -> NoReturn:
        raise TypeError(
            "a PackedImageLoader gives its batches in order, not by number; in a DataLoader give its dataset: "
            "DataLoader(loader.as_dataset(), batch_size=None)"
        )

    def __len__(self) -> int:
        if self.repeat:
            raise TypeError("a loader with repeat=True never ends and has no length; use total_steps(epochs)")
        return self.steps().count(self.next_cursor())

    def total_steps(self, epochs: int) -> int:
        """Batches in the first `epochs` epochs together: what a learning-rate schedule needs."""
        return sum(self.steps().count(Cursor(epoch, 0)) for epoch in range(epochs))

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch the next `iter` is, from its start; that of a state just loaded goes on where it stood.

        It reaches the worker processes of `as_dataset`, too.
        """
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}; it must be at least 0")
        if epoch != self._next.epoch:
            self._next = self._stands = Cursor(epoch, 0)
        self._publish()

    def state_dict(self, after: PackedBatch | None = None) -> dict[str, Any]:
        """Where training stands once `after`, or else the last batch handed out, has been used: a small JSON-able dict.

        It is the same on every rank. Batches that were made ahead count as not used.

        Raises:
            ValueError: no batch is given, and they are handed out by `as_dataset`.
        """
        place = self._stands if after is None else Cursor(after.epoch, after.position)
        if place is None:
            raise ValueError(
                "batches of as_dataset() may be made in other processes; say which one was the last that was used: "
                "state_dict(after=batch)"
            )
        return to_dict(place, self.steps().order)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next `iter` goes on where `state` was taken; an iterator that has not begun is left as it is.

        On any number of ranks and with any batch size, every pack of the epoch that was not used comes, in order; as
        long as a step takes as many packs over all ranks as before, the steps are the same. After the last batch of an
        epoch the next epoch comes.

        Raises:
            ValueError: no state, or one of other shards, another packing or another order; the difference is named.
        """
        self._next, self._block = from_dict(state, self.steps().order)
        self._stands = self._next
        self._publish()

    def stats(self) -> dict[str, Any]:
        """Totals since the loader was made, of this rank.

        batches, packs, empty_packs, images, tokens, tokens_before_drop, tokens_native, slots, padding (share of slots),
        padding_in_packs (without the empty ones), images_per_pack, drop_rate, attention_cost (sum of squared lengths),
        attention_spread (of a pack's: standard deviation over mean), bad_images, bad_by_stage and the first of them
        in `bad` (row, key, shard, offset, stage, reason), truncated (JPEGs that end early and were kept), skipped (by
        "oversize", "where", "tail"), sources (of a `Mixture`: images by source), oversize, without_label, cache_hits
        and cache_misses (of shards opened in the cache), wait_s (seconds that the training loop waited), images_per_s,
        tokens_per_s.

        Worker processes of `as_dataset` are counted in, but for `bad`, `bad_by_stage`, `sources` and wait_s, which only
        they know. Every minute the logger "patchnpack" gets a line of them, at level INFO.
        """
        return self._stats.plus(torch.cat([torch.zeros(0, Stats.NUMBERS), *self._totals])).report()

    def as_dataset(self) -> PackedDataset:
        """The same batches as an iterable dataset, for `DataLoader(dataset, batch_size=None, num_workers=n)`.

        The batches and their order are those of the loader, whatever n is; each worker process decodes its share, with
        `num_threads` threads. Give each DataLoader a dataset of its own.
        """
        totals = torch.zeros((MOST_WORKERS, Stats.NUMBERS), dtype=torch.float64).share_memory_()
        dataset = PackedDataset(self, totals)
        self._datasets.add(dataset)
        self._totals.append(totals)
        weakref.finalize(dataset, _fold, self._totals, totals).atexit = False
        self._stands = None
        return dataset

    @property
    def sources(self) -> IndexedBatchContext:
        """What the images of every batch are made with."""
        return self._sources

    @property
    def num_classes(self) -> int:
        """Outputs that a classifier of these labels needs; ValueError where only reading every label would tell."""
        count = self._sources.labels.num_classes
        if count is None:
            raise ValueError(
                "the number of classes cannot be told without a label or from these labels; give label=, classes=, or "
                "the number itself"
            )
        return count

    def _publish(self) -> None:
        for dataset in self._datasets:
            dataset.publish()
        if self._datasets:
            self._stands = None

    def numbers(self) -> torch.Tensor:
        """The totals of this process alone."""
        return self._stats.numbers()

    @property
    def block(self) -> int | None:
        """Packs of a block, None if it is the packs of a step."""
        return self._block

    def configure_worker(self, rank: int, world_size: int, block: int | None) -> None:
        """In a worker process: be of the rank and the blocks that the main process says."""
        grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
        if self._rank_given is None and not grouped:
            self._rank_given = rank, world_size
        self._block = block

    def next_cursor(self) -> Cursor:
        """Where the next iterator begins: not at the end of an epoch."""
        begin = self._next
        return begin if not begin.position or self.steps().count(begin) else Cursor(begin.epoch + 1, 0)

    def batches(self) -> Pipeline:
        """What an iterator that begins now makes its batches of."""
        steps = self.steps()
        return Pipeline(
            sources=self._sources,
            steps=steps,
            rank=self.rank()[0],
            repeat=self.repeat,
            filtered=self._rows.filtered,
            bad=self._rows.bad,
            stats=self._stats,
            monitor=self._monitor,
            num_threads=self._num_threads or cpu_share(),
            prefetch=self._prefetch,
        )

    def rank(self) -> tuple[int, int]:
        """Rank and world size, as they are now."""
        return self._rank_given or process_rank()

    def steps(self) -> Steps:
        """The order of the epochs, cut into steps for the ranks that there are now."""
        world_size = self.rank()[1]
        block, made = self._block or self.batch_size * world_size, self._made_steps
        if made is None or (made.order.block, made.world_size) != (block, world_size):
            order = self._order(block)
            made = Steps(order=order, batch_size=self.batch_size, world_size=world_size, even=self._even)
            self._made_steps = made
        return made

    def _order(self, block: int) -> Order:
        if self._prepacked is not None:
            return self._prepacked.order(
                usable=self._rows.mask,
                seed=self._seed,
                shuffle=self._shuffle,
                shuffle_window=self._shuffle_window,
                block=block,
            )
        return Order(
            index=self.index,
            usable=self._rows.mask,
            packing=self.packing,
            seed=self._seed,
            shuffle=self._shuffle,
            shuffle_window=self._shuffle_window,
            num_streams=self._num_streams,
            block=block,
            mixed=self._mixed,
        )


def _fold(all_totals: list[torch.Tensor], totals: torch.Tensor) -> None:
    """What the workers of a dataset that has gone have counted is kept; its shared memory is not."""
    for i, kept in enumerate(all_totals):
        if kept is totals:
            all_totals[i] = totals[totals.any(1)].clone()
    all_totals[:] = [kept for kept in all_totals if len(kept)]
