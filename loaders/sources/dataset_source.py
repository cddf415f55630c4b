"""A data set as a source: Hugging Face, torchvision, or any object with `__len__` and `__getitem__`."""

from __future__ import annotations

import os
from collections.abc import Iterator, KeysView, Mapping, Sequence, ValuesView
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from patchnpack.loaders.assembly.buffers import BufferPool
from patchnpack.loaders.assembly.transform import watched
from patchnpack.loaders.datasets.items import Items, is_iterable_only, items_of
from patchnpack.loaders.datasets.labels import ItemLabels, check_extras
from patchnpack.loaders.datasets.samples import DatasetContext
from patchnpack.loaders.datasets.sizes import fingerprint_of, index_of
from patchnpack.loaders.imaging.formats import PIXELS
from patchnpack.loaders.imaging.readers.boxed.heif import has_heif
from patchnpack.loaders.imaging.user_decode import in_order, user_formats
from patchnpack.loaders.imaging.values.bands import band_request
from patchnpack.loaders.index.samples.grouping import warn_of_unread_pages, with_samples
from patchnpack.loaders.index.samples.page_rows import files_of
from patchnpack.loaders.index.table import IMAGE, Index
from patchnpack.loaders.order.mixture import Mixture
from patchnpack.loaders.order.order import Order
from patchnpack.loaders.order.row_filter import RowFilter
from patchnpack.loaders.process import cpu_share
from patchnpack.loaders.shards.opener import ShardOpener
from patchnpack.loaders.shards.reader import ShardReader
from patchnpack.loaders.shards.sample_rule import is_by_members, sample_rule
from patchnpack.loaders.sources.options import LoaderOptions
from patchnpack.loaders.sources.shard_source import ShardSource, shard_opener
from patchnpack.packer import Packing


@dataclass(frozen=True, kw_only=True)
class OpenedDataset:
    """A map-style data set with the sizes of its images.

    Attributes:
        items: the images.
        labels: their labels.
        index: one row per image.
        data: a text that changes with the data, for a saved state; "" where digests of the images say as much.
    """

    items: Items
    labels: ItemLabels
    index: Index
    data: str

    @classmethod
    def open(cls, given: Any, options: LoaderOptions, opener: ShardOpener) -> Self:
        """Adapt the data set, and find or read the sizes of its images; raises as `DatasetSource.open`."""
        items = items_of_options(given, options)
        labels = ItemLabels(items, options.label, options.classes)
        check_extras(items, tuple(options.extras))
        data = fingerprint_of(given, items, options.fingerprint)
        rule = sample_rule(options.sample)
        index = index_of(
            items,
            sizes=options.sizes,
            fingerprint=data,
            folder=opener.folder / "indexes",
            num_threads=options.num_threads or cpu_share(),
            by_members=is_by_members(rule),
            values=options.packing is not None and band_request(options.packing) is not None,
            formats=user_formats(options.formats),
        )
        index = with_samples(index, rule)
        warn_of_unread_pages(index)
        if len(index) > len(items) and index.samples is not None:  # a row for each page
            items = items.take(files_of(index.samples))
            labels = ItemLabels(items, options.label, options.classes)
        if index.samples is not None:
            labels.join(index.samples)
        index = replace(index, outside=np.array([labels.digest()], np.uint64))
        return cls(items=items, labels=labels, index=index, data=(data or "") if (index.format == PIXELS).any() else "")

    def context(
        self, options: LoaderOptions, packing: Packing, reader: ShardReader, buffers: BufferPool
    ) -> DatasetContext:
        """Return a context that reads and decodes the items."""
        return DatasetContext(
            index=self.index,
            reader=reader,
            packing=packing,
            labels=self.labels,
            extras=options.extras,
            transform=watched(options.transform),
            seed=options.seed,
            buffers=buffers,
            errors=options.policy,
            user_decode=options.decode,
            formats=in_order(user_formats(options.formats), self.index.formats),
            items=self.items,
            pages=options.pages,
        )


@dataclass(frozen=True, kw_only=True)
class DatasetSource(ShardSource):
    """The images of a map-style data set; see `Source`.

    Attributes:
        dataset: the data set.
    """

    dataset: OpenedDataset

    @classmethod
    def accepts(cls, given: Any) -> bool:
        """Return whether `given` is a data set; iterable ones and dicts of splits too, which `open` refuses."""
        if isinstance(given, str | bytes | os.PathLike | Index):
            return False
        if isinstance(given, Mapping):  # of splits, unless it holds shards or a mixture
            return any(not _names_shards(value) for value in given.values())
        if isinstance(given, Sequence | np.ndarray):
            # A first item without images does not tell.
            return len(given) > 0 and not _names_shards(next((item for item in given if not _is_empty(item)), given[0]))
        if hasattr(given, "__getitem__") or is_iterable_only(given):
            return True
        # A DataLoader, for example; names of shards may come from a generator or a set.
        is_plain = isinstance(given, Iterator | set | frozenset | ValuesView | KeysView)
        return hasattr(given, "__iter__") and hasattr(given, "__len__") and not is_plain

    @classmethod
    def open(cls, given: Any, options: LoaderOptions) -> Self:
        """Adapt the data set, and find or read the sizes of its images.

        Raises:
            OSError, RuntimeError: an item cannot be read.
            ValueError: the object is no map-style data set, has no image, or an option contradicts it.
        """
        if options.index is not None:
            raise ValueError(
                "index= is the index of shards; for a data set give sizes= or fingerprint=, or leave it out"
            )
        opener = shard_opener(options)
        dataset = OpenedDataset.open(given, options, opener)
        index = dataset.index
        rows = RowFilter.of(
            index, options.where, options.policy, options.decode, options.pages, has_heif(), options.packing
        )
        index = rows.usable(index)
        packing = rows.decide(index, options.packing or Packing(), options.seed)
        return cls(
            options=options.settled(label=dataset.labels.label),
            index=index,
            rows=rows,
            packing=packing,
            opener=opener,
            dataset=dataset,
        )

    @property
    def name(self) -> str:
        """The kind of the data set."""
        return f"a {self.dataset.items.name}"

    # The labels of items, not of members.
    def labels(self, reader: ShardReader) -> ItemLabels:  # type: ignore[override]
        """Return labels that come with the items."""
        return self.dataset.labels

    def batch_context(self, buffers: BufferPool) -> DatasetContext:
        """Return a context that reads and decodes the items."""
        return self.dataset.context(self.options, self.packing, self.reader(), buffers)

    def fingerprint(self, order: Order) -> dict[str, str]:
        """Return what the order depends on, with the fingerprint of data whose images have no digest."""
        return {**super().fingerprint(order), "data": self.dataset.data}


def items_of_options(given: Any, options: LoaderOptions) -> Items:
    """Return the images of a data set with these options."""
    image, rule = "" if options.image == IMAGE else options.image, sample_rule(options.sample)
    lists = is_by_members(rule)
    return items_of(given, image, thread_safe=options.thread_safe, named=options.classes is not None, lists=lists)


def _is_empty(item: Any) -> bool:
    """Return whether an item is an empty list, or a pair with one."""
    if isinstance(item, tuple) and item:
        item = item[0]
    return isinstance(item, list | tuple) and not item


def _names_shards(item: Any) -> bool:
    """Return whether an item of a sequence or mapping is a shard, a source, or shards with a weight."""
    if isinstance(item, tuple | list):
        first = item[0] if item else ""
        if isinstance(first, tuple | list):  # of ([images], label), they are images
            first = first[0] if first else None
            return isinstance(first, str | os.PathLike) and os.fspath(first).endswith((".tar", ".parquet"))
        if isinstance(first, str | os.PathLike):  # of (path, label), the path is that of an image
            return len(item) == 1 or not first or os.fspath(first).endswith((".tar", ".parquet"))
        return isinstance(first, Index | Mixture)
    if isinstance(item, str | os.PathLike):
        return True
    return item is None or isinstance(item, bool | int | float | Index | Mixture)
