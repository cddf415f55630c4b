"""`PackedImageLoader`: shards in, packed batches out. The plan and the decoding meet only here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import torch

from patchnpack.loaders.assembly.buffers import BufferPool
from patchnpack.loaders.assembly.pipeline import Pipeline, WorkerShard, check_rows
from patchnpack.loaders.assembly.stats import Stats
from patchnpack.loaders.assembly.transform import Transform
from patchnpack.loaders.dataset import PackedDataset, WorkerDatasets
from patchnpack.loaders.error_policy import ErrorMonitor, ErrorPolicy
from patchnpack.loaders.imaging.pages import Pages
from patchnpack.loaders.imaging.user_decode import Decode, ImageReader
from patchnpack.loaders.index.table import IMAGE, Index
from patchnpack.loaders.labels.label_rule import Classes, Label
from patchnpack.loaders.order.extremes import Extreme, label_range, largest_grids
from patchnpack.loaders.order.mixture import Mixture
from patchnpack.loaders.order.rank_steps import Even, Steps
from patchnpack.loaders.order.row_filter import Where
from patchnpack.loaders.order.state import Cursor, from_dict, to_dict
from patchnpack.loaders.process import cpu_share, process_rank
from patchnpack.loaders.shards.patterns import ShardNames
from patchnpack.loaders.shards.sample_rule import Sample
from patchnpack.loaders.sources.open_source import open_source
from patchnpack.loaders.sources.options import LoaderOptions
from patchnpack.loaders.targets.target import Target, texts_of
from patchnpack.packer import PackedBatch, Packing
from patchnpack.packer.checks import check_whole, shown

# B packs in a batch, W ranks, S streams


class PackedImageLoader:
    """Loads batches of packed images, at native resolution, from shards, a data set, a packed folder or a mixture.

    Sizes come from headers, so the order is planned from integers; threads decode each image once, into its batch. The
    batches are a function of the source, `packing`, `seed` and the epoch, for any number of threads and `prefetch`.

    Args:
        source: a folder of images; a table of paths (CSV, TSV, JSONL or, with `path`, parquet); shards by brace range,
            glob or list; an index file; an `Index`; a data set: of Hugging Face, of torchvision, or any object with
            `__len__` and `__getitem__` that returns (image, label), a dict or an image, where an image is encoded
            bytes, a PIL image, a uint8 array or the path of a file; a `Mixture` of several of these; or a folder that
            `patchnpack pack` wrote.
        packing: what a sequence looks like; None is `Packing()`, or the packing of the packed folder.
        batch_size: B, packs per batch of this rank.
        shuffle: whether to shuffle shards and, inside windows of `shuffle_window` shards, rows, differently each epoch.
        seed: seeds every shuffle and draw.
        repeat: whether `iter` continues with the next epoch without end; such a loader has no length.
        image: extensions of image files, separated by ";". Of a data set, the column or member that holds the images;
            by default, the only one.
        sample: which images belong together and share a pack, in order; None is each alone. "members": the images among
            the members of a sample or in a list, and the pages or frames of a file. "key:REGEX": neighbouring rows
            whose keys agree in the group, as in "key:(.+)_[0-9]+"; or a function from key to name of the sample.
        label: None, "cls" (or any member with a text), "json:FIELD", or a callable from a sample's members (extension
            to bytes) to an int or an array. In a folder, "folder" is the first folder of each path; in a table, a
            column is a member. Of a data set, a member, or a callable from a dict of them; pairs and torchvision's data
            sets need none. Of a `Mixture`, also a dict with the label of each source.
        classes: names of classes as a list, a file with one name per line, or a mapping to indices; without them,
            labels are whole numbers, and names of folders and in tables get the numbers of their sorted order.
        extras: extensions of members to return in `batch.extras`: txt as str, json as object, others as bytes; None
            where a sample has none. An undecodable member marks its image as bad.
        targets: what follows each image through crop, resize and flip into `batch.targets`, by name: `Mask("seg.png")`,
            `Map`, `Boxes("json:objects")`, `Polygons` or `Keypoints`. An image whose target cannot be used is bad.
        decode: called as `decode(data)` with the encoded bytes of an image. Returns (H, W, C) of the packing's channels
            and dtype, with the size that the file states (before EXIF orientation; TIFF, HEIC and JPEG XL upright), or
            None to leave the image to the loader. `BadImage` marks the image as bad.
        formats: readers of your own formats, {"ct": MyReader()}; see `ImageReader`. They come before all of `image`.
        pages: what becomes of a file with several pages or frames: "first" uses its first, "error" makes it bad.
        transform: called as `transform(image, rng)` with a uint8 (H, W, C) array and a Generator keyed by (seed, epoch,
            sample, view), in the decoding threads; returns an array of the same shape and type. With a third argument,
            it gets the targets, too, and returns (image, targets). Frames of a clip get equal generators.
        where: maps an `Index` to a bool array, the rows to use; others are skipped, with all rows of their samples.
        index: an `Index`, or the file or address of one. None looks beside the shards and in the cache, then scans.
        path: the column of paths in a table; None is the only one with a usual name, such as "path" or "file_name".
        root: the folder from which the paths in a table count; None is the table's own.
        sizes: of a data set, whole numbers (n, 2): width and height in pixels, after EXIF orientation, of each of its n
            images. None reads the headers of all images once and caches the sizes.
        thread_safe: of a data set, whether several threads may call its `__getitem__` at the same time. None is no,
            with a lock; Hugging Face's data sets and torchvision's folders are read without it.
        fingerprint: of a data set, a text that changes with its data, or a function from the data set to such a text:
            the key of its cached sizes. None is the data set's own; sizes of a data set without one are not cached.
        storage_options: options for remote shards, as fsspec or obstore name them; `retry`, a dict of attempts,
            deadline_s, stall_s, pause_s and max_pause_s, sets how long to retry.
        cache_dir: of indexes, remote shards, images of parquet files; None is $PATCHNPACK_CACHE or ~/.cache/patchnpack.
        cache_limit: maximum bytes of cached shards; beyond, those used longest ago are deleted.
        even: "pad" fills the last step with empty packs; "drop" leaves its packs out and counts their images.
        shuffle_window: shards inside which rows are shuffled.
        num_streams: S, slices of the epoch that are packed separately; 1 packs best.
        block: packs over which the streams take turns, all of one patch size; a multiple of S. None is the packs of one
            step over all ranks.
        num_threads: decoding threads; None is this rank's share of the CPUs.
        prefetch: batches prepared ahead of the one in use, at least 1; more if these hold under two images per thread.
        errors: what to do about bad images; None is `ErrorPolicy()`.
        rank, world_size: None asks `torch.distributed`, then the environment, when iteration starts.

    Raises:
        FileNotFoundError: a shard does not exist.
        ValueError: the source has no image or no label, `packing` refuses an image, or an option is invalid.

    `for batch in loader` is one epoch; the next loop is the next epoch.
    """

    def __init__(
        self,
        source: ShardNames | Index | Mixture | Any,
        packing: Packing | None = None,
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        repeat: bool = False,
        image: str = IMAGE,
        sample: Sample = None,
        label: Label | Mapping[str, Label] = None,
        classes: Classes = None,
        extras: Sequence[str] = (),
        targets: Mapping[str, Target] | None = None,
        transform: Transform | None = None,
        decode: Decode | None = None,
        formats: Mapping[str, ImageReader] | None = None,
        pages: Pages = "first",
        where: Where | None = None,
        index: Index | str | os.PathLike[str] | None = None,
        path: str | None = None,
        root: str | os.PathLike[str] | None = None,
        sizes: Any = None,
        thread_safe: bool | None = None,
        fingerprint: str | Callable[[Any], str] | None = None,
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
        self._options = LoaderOptions(
            packing=packing,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            repeat=repeat,
            image=image,
            sample=sample,
            label=label,
            classes=classes,
            extras=extras,
            targets=targets,
            transform=transform,
            decode=decode,
            formats=formats,
            pages=pages,
            where=where,
            index=index,
            path=path,
            root=root,
            sizes=sizes,
            thread_safe=thread_safe,
            fingerprint=fingerprint,
            storage_options=storage_options,
            cache_dir=cache_dir,
            cache_limit=cache_limit,
            even=even,
            shuffle_window=shuffle_window,
            num_streams=num_streams,
            block=block,
            num_threads=num_threads,
            prefetch=prefetch,
            errors=errors,
            rank=rank,
            world_size=world_size,
        )
        self.source = open_source(source, self._options)
        self._options = self.source.options
        self.packing, self.index = self.source.packing, self.source.index
        self.batch_size, self.repeat = batch_size, repeat
        self._rank_given, self.block = self._options.given_rank, self._options.block
        self.context = self.source.batch_context(BufferPool(keep=prefetch + 2))
        self._stats, self._monitor = Stats(), ErrorMonitor(self._options.policy)
        check_rows(self.source.rows, self.context, self._monitor)
        self._next = Cursor(0, 0)  # where the next iterator begins
        self._cursor: Cursor | None = self._next  # where training stands; None if worker processes decide
        self._steps: Steps | None = None
        self._datasets = WorkerDatasets()

    def __repr__(self) -> str:
        """A few lines: source, packing and position. Nothing is planned and no process group is asked."""
        (used, unused), cursor = self.source.rows.describe(self.index), self._cursor or self._next
        return (
            f"PackedImageLoader of {used} in {self.source.name}{unused}\n"
            f"  packing: {self.packing.summary()}\n"
            f"  batches: {self._options.summary()}\n"
            f"  epoch {cursor.epoch}, {cursor.position:,} packs used"
        )

    def __iter__(self) -> Iterator[PackedBatch]:
        begin, batches = self._next, self.batches()
        self._next, self._cursor = Cursor(begin.epoch + 1, 0), begin
        return self._tracked(batches.run(begin, WorkerShard()), begin)

    def _tracked(self, batches: Iterator[PackedBatch], begin: Cursor) -> Iterator[PackedBatch]:
        """Yield the batches; move the cursor to each as it is yielded."""
        for batch in batches:
            self._cursor = Cursor(batch.epoch, batch.position)
            if self.repeat or batch.epoch > begin.epoch:
                self._next = Cursor(batch.epoch + 1, 0)
            yield batch
            del batch

    def __getitem__(self, number: Any) -> NoReturn:
        raise TypeError(
            "a PackedImageLoader yields its batches in order, not by number; give a DataLoader its dataset: "
            "DataLoader(loader.as_dataset(), batch_size=None)"
        )

    def __len__(self) -> int:
        if self.repeat:
            raise TypeError("a loader with repeat=True never ends and has no length; use total_steps(epochs)")
        return self.steps().count(self.next_cursor())

    def total_steps(self, epochs: int) -> int:
        """Return the number of batches in the first `epochs` epochs together, for a learning-rate schedule."""
        check_whole("epochs", epochs, least=0)
        return sum(self.steps().count(Cursor(epoch, 0)) for epoch in range(epochs))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next `iter`, from its start; the epoch of a state just loaded still resumes.

        The setting also reaches the worker processes of `as_dataset`.
        """
        check_whole("epoch", epoch, least=0)
        if epoch != self._next.epoch:
            self._next = self._cursor = Cursor(epoch, 0)
        self._publish()

    def state_dict(self, after: PackedBatch | None = None) -> dict[str, Any]:
        """Return the state once `after`, or else the last yielded batch, has been used: a small JSON-able dict.

        The state is the same on every rank. Prefetched batches count as unused.

        Raises:
            ValueError: no batch is given, and the batches come from `as_dataset`.
        """
        if after is not None and not isinstance(after, PackedBatch):
            raise ValueError(f"after is {shown(after)}; give the last PackedBatch that was used")
        cursor = self._cursor if after is None else Cursor(after.epoch, after.position)
        if cursor is None:
            raise ValueError(
                "as_dataset() uses other processes; name the last batch that was used: state_dict(after=batch)"
            )
        return self.state_at(cursor)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume at `state` with the next `iter`; iterators that exist are not affected.

        On any number of ranks and with any batch size, the unused packs of the epoch follow in order. The steps are the
        same as long as a step takes the same number of packs over all ranks. After the last batch of an epoch the next
        epoch follows.

        Raises:
            ValueError: `state` is not a state, or it was saved with other shards, another packing or another order; the
                message names the difference.
        """
        self._next, self.block = self.read_state(state)
        self._cursor = self._next
        self._publish()

    def state_at(self, cursor: Cursor) -> dict[str, Any]:
        """Return the state of a loader that stands at `cursor`."""
        order = self.steps().order
        return to_dict(cursor, order, self.source.fingerprint(order) | texts_of(self.context.targets))

    def read_state(self, state: Mapping[str, Any]) -> tuple[Cursor, int]:
        """Return the cursor and the block of a state of this loader.

        Raises:
            ValueError: as `load_state_dict`.
        """
        return from_dict(state, self.source.fingerprint(self.steps().order) | texts_of(self.context.targets))

    def stats(self) -> dict[str, Any]:
        """Return the totals of this rank since the loader was made.

        batches, packs, empty_packs, images, samples, tokens, tokens_before_drop, tokens_native, slots, padding (share
        of slots), padding_in_packs (without empty packs), images_per_pack, images_per_sample, drop_rate, attention_cost
        (sum of squared lengths of images, or of samples with scope "sample"), attention_spread (standard deviation over
        mean of the packs' attention cost), bad_images, bad_by_stage and the first bad images in `bad` (row, key, shard,
        offset, page, stage, reason), bad_samples (of which no image is left) and left_out (images left out with a bad
        one of their sample), truncated (JPEGs that end early and were kept), multi_page (images of files of which only
        the first page was used), warnings (of decoders, by kind: odd files whose pixels are all there), skipped
        (samples by "oversize", "undersize", "frames", "where", "tail"), sources (images per source of a `Mixture`),
        oversize, undersize (samples), without_label, without_image (this rank's share of the samples that have no
        image, and so no row; the same in every epoch), cache_hits and cache_misses (of shards opened in the cache),
        wait_s (seconds that the training loop waited), images_per_s, tokens_per_s.

        Every sample is counted once: over all ranks, samples + bad_samples + skipped are those of the epochs. images +
        bad_images + left_out are the images that were planned, and those of samples that are bad by their headers.

        The totals include worker processes of `as_dataset`, except `bad`, `bad_by_stage`, `sources` and wait_s. The
        logger "patchnpack" reports the totals every minute, at level INFO.
        """
        (rank, world_size), total = self.rank(), int(self.index.without_image.sum())
        self._stats.without_image = len(range(rank, total, world_size))  # no rank reads them, so each counts a share
        return self._stats.plus(self._datasets.totals()).report()

    def as_dataset(self) -> PackedDataset:
        """Return the same batches as an iterable dataset, for `DataLoader(dataset, batch_size=None, num_workers=n)`.

        The batches and their order are those of the loader for any n; each worker process decodes its share with
        `num_threads` threads. Give each DataLoader its own dataset.
        """
        dataset = self._datasets.add(self)
        self._cursor = None
        return dataset

    @property
    def classes(self) -> dict[str, int] | None:
        """The number of each class name, in order; None where labels are numbers. Give them to a validation loader."""
        classes = self.context.labels.classes
        return None if classes is None else dict(sorted(classes.items(), key=lambda item: item[1]))

    @property
    def num_classes(self) -> int:
        """The number of outputs that a classifier needs; ValueError if only reading every label would show it."""
        count = self.context.labels.num_classes
        if count is None:
            raise ValueError(
                "the number of classes is unknown without a label or from these labels; give label=, classes=, or the "
                "number itself"
            )
        return count

    def largest_grids(self) -> dict[int, Extreme]:
        """Return the most patches per side at each patch size in epoch 0 and at the start of each stage."""
        return largest_grids(self.steps().order)

    def label_range(self) -> tuple[Extreme, Extreme] | None:
        """Return the lowest and the highest class; None where the index does not hold the labels."""
        return label_range(self.steps().order, self.context.labels)

    def _publish(self) -> None:
        if self._datasets.publish():
            self._cursor = None

    def numbers(self) -> torch.Tensor:
        """Return the totals of this process alone."""
        return self._stats.numbers()

    def configure_worker(self, rank: int, world_size: int, block: int | None) -> None:
        """Adopt the main process's rank and block in a worker process."""
        grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
        if self._rank_given is None and not grouped:
            self._rank_given = rank, world_size
        self.block = block

    def next_cursor(self) -> Cursor:
        """Return where the next iterator begins, which is never the end of an epoch."""
        begin = self._next
        return begin if not begin.position or self.steps().count(begin) else Cursor(begin.epoch + 1, 0)

    def batches(self) -> Pipeline:
        """Return the pipeline of an iterator that begins now."""
        steps = self.steps()
        return Pipeline(
            context=self.context,
            steps=steps,
            rank=self.rank()[0],
            repeat=self.repeat,
            rows=self.source.rows,
            stats=self._stats,
            monitor=self._monitor,
            num_threads=self._options.num_threads or cpu_share(),
            prefetch=self._options.prefetch,
        )

    def rank(self) -> tuple[int, int]:
        """Return rank and world size, as they are now."""
        return self._rank_given or process_rank()

    def steps(self) -> Steps:
        """Return the order of the epochs, cut into steps for the current ranks."""
        world_size = self.rank()[1]
        block, steps = self.block or self.batch_size * world_size, self._steps
        if steps is None or (steps.order.block, steps.world_size) != (block, world_size):
            order = self.source.order(block)
            steps = Steps(order=order, batch_size=self.batch_size, world_size=world_size, even=self._options.even)
            self._steps = steps
        return steps
