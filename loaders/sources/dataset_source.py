"""A data set as a source: Hugging Face, torchvision, or any object with `__len__` and `__getitem__`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from patchnpack.loaders.assembly.buffers import BufferPool
from patchnpack.loaders.datasets.items import Items, is_iterable_only, items_of
from patchnpack.loaders.datasets.labels import ItemLabels, check_extras
from patchnpack.loaders.datasets.samples import DatasetContext
from patchnpack.loaders.datasets.sizes import fingerprint_of, index_of
from patchnpack.loaders.imaging.formats import PIXELS
from patchnpack.loaders.index.table import IMAGE, Index
from patchnpack.loaders.order.order import Order
from patchnpack.loaders.order.row_filter import RowFilter
from patchnpack.loaders.process import cpu_share
from patchnpack.loaders.shards.reader import ShardReader
from patchnpack.loaders.sources.options import LoaderOptions
from patchnpack.loaders.sources.shard_source import ShardSource, shard_opener
from patchnpack.packer import Packing


@dataclass(frozen=True, kw_only=True)
class DatasetSource(ShardSource):
    """The images of a map-style data set; see `Source`.

    Attributes:
        items: the images.
        item_labels: their labels.
        data: a text that changes with the data, for a saved state; "" where digests of the images say as much.
    """

    items: Items
    item_labels: ItemLabels
    data: str

    @classmethod
    def accepts(cls, given: Any) -> bool:
        """Return whether `given` is a data set; iterable ones and dicts of splits too, which `open` refuses."""
        if isinstance(given, str | bytes | os.PathLike | Index):
            return False
        if isinstance(given, Sequence | np.ndarray):  # lists of shards are sequences, too
            return len(given) > 0 and not isinstance(given[0], str | os.PathLike)
        if isinstance(given, Mapping) or hasattr(given, "__getitem__") or is_iterable_only(given):
            return True
        # A DataLoader, for example; names of shards may come from a generator or a set.
        return (
            hasattr(given, "__iter__")
            and hasattr(given, "__len__")
            and not isinstance(given, Iterator | set | frozenset)
        )

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
        image = "" if options.image == IMAGE else options.image
        items = items_of(given, image, thread_safe=options.thread_safe, named=options.classes is not None)
        labels = ItemLabels(items, options.label, options.classes)
        check_extras(items, tuple(options.extras))
        data, opener = fingerprint_of(given, items, options.fingerprint), shard_opener(options)
        index = index_of(
            items,
            sizes=options.sizes,
            fingerprint=data,
            folder=opener.folder / "indexes",
            num_threads=options.num_threads or cpu_share(),
        )
        rows = RowFilter.of(index, options.where, options.policy, options.decode)
        packing = rows.decide(index, options.packing or Packing(), options.seed)
        return cls(
            options=options.settled(),
            index=index,
            rows=rows,
            packing=packing,
            opener=opener,
            items=items,
            item_labels=labels,
            data=(data or "") if (index.format == PIXELS).any() else "",
        )

    def labels(self, reader: ShardReader) -> ItemLabels:  # type: ignore[override]  # the labels of items, not of members
        """Return labels that come with the items."""
        return self.item_labels

    def batch_context(self, buffers: BufferPool) -> DatasetContext:
        """Return a context that reads and decodes the items."""
        options = self.options
        return DatasetContext(
            index=self.index,
            reader=self.reader(),
            packing=self.packing,
            labels=self.item_labels,
            extras=options.extras,
            transform=options.transform,
            seed=options.seed,
            buffers=buffers,
            errors=options.policy,
            user_decode=options.decode,
            items=self.items,
        )

    def fingerprint(self, order: Order) -> dict[str, str]:
        """Return what the order depends on, with the fingerprint of data whose images have no digest."""
        return {**super().fingerprint(order), "data": self.data}
