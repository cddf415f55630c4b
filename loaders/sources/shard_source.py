"""Shards, folders of images and tables of paths as a source: what an index describes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Self

from patchnpack.loaders.assembly.buffers import BufferPool
from patchnpack.loaders.assembly.samples import IndexedBatchContext, read_member
from patchnpack.loaders.imaging.readers.boxed.heif import has_heif
from patchnpack.loaders.index.resolve import open_index
from patchnpack.loaders.index.table import Index, shards_shown
from patchnpack.loaders.labels.labels import Labels
from patchnpack.loaders.order.order import Order
from patchnpack.loaders.order.row_filter import RowFilter
from patchnpack.loaders.order.state import fingerprint, rows_digest
from patchnpack.loaders.shards.opener import ShardOpener
from patchnpack.loaders.shards.patterns import ShardNames
from patchnpack.loaders.shards.reader import ShardReader
from patchnpack.loaders.sources.class_names import settle_names
from patchnpack.loaders.sources.options import LoaderOptions
from patchnpack.loaders.sources.source import indexed_context
from patchnpack.packer import Packing


@dataclass(frozen=True, kw_only=True)
class ShardSource:
    """Images that lie in shards or in files; see `Source`.

    Attributes:
        options, index, rows, packing: as of `Source`.
        opener: opens the shards.
    """

    options: LoaderOptions
    index: Index
    rows: RowFilter
    packing: Packing
    opener: ShardOpener

    @classmethod
    def accepts(cls, given: Any) -> bool:
        """Return whether `given` is an index, a path or an address, or a sequence of these."""
        return True  # the last kind that is asked: `expand` names what is wrong with anything else

    @classmethod
    def open(cls, given: Any, options: LoaderOptions) -> Self:
        """Find or make the index of the shards."""
        opener = shard_opener(options)
        index, options = settle_names(shard_index(given, options, opener), options)
        rows = RowFilter.of(
            index, options.where, options.policy, options.decode, options.pages, has_heif(), options.packing
        )
        # Decided once, from all rows: every epoch and every stream is packed alike.
        index = rows.usable(index)
        packing = rows.decide(index, options.packing or Packing(), options.seed)
        return cls(options=options.settled(), index=index, rows=rows, packing=packing, opener=opener)

    @property
    def name(self) -> str:
        """The shards: their number, the first and the last."""
        return shards_shown(self.index.shards)

    @cached_property
    def digest(self) -> str:
        """A digest of everything that the index says of the images, and of which are used."""
        return rows_digest(self.index, self.rows.mask)

    def reader(self) -> ShardReader:
        """Return a reader of the shards."""
        return self.index.reader(self.opener)

    def labels(self, reader: ShardReader) -> Labels:
        """Return labels that are read from the members of the samples."""
        return labels_of(self.index, self.options, reader)

    def batch_context(self, buffers: BufferPool) -> IndexedBatchContext:
        """Return a context that reads and decodes the images."""
        return indexed_context(self, buffers)

    def order(self, block: int) -> Order:
        """Return the order of packs, planned as they are needed."""
        options = self.options
        return Order(
            index=self.index,
            usable=self.rows.heads(self.index),
            packing=self.packing,
            seed=options.seed,
            shuffle=options.shuffle,
            shuffle_window=options.shuffle_window,
            num_streams=options.num_streams,
            block=block,
        )

    def fingerprint(self, order: Order) -> dict[str, str]:
        """Return what the order depends on: index, packing and the options of the order."""
        return fingerprint(order, self.digest)


def labels_of(index: Index, options: LoaderOptions, reader: ShardReader, rows: Sequence[range] | None = None) -> Labels:
    """Return labels that are read from the members of the samples; for `rows` see `Labels`."""
    return Labels(index, options.label, options.classes, partial(read_member, index, reader), rows)


def shard_opener(options: LoaderOptions) -> ShardOpener:
    """Return what opens shards with these options."""
    return ShardOpener(options.cache_dir, options.cache_limit, options.storage_options)


def shard_index(
    given: ShardNames | Index,
    options: LoaderOptions,
    opener: ShardOpener,
) -> Index:
    """Return the index of shards with these options; remote shards are scanned only where there is one rank."""
    return open_index(
        given,
        index=options.index,
        image=options.image,
        sample=options.sample,
        path=options.path,
        root=options.root,
        opener=opener,
        may_scan=options.is_alone,
        num_threads=options.num_threads,
        formats=options.formats,
    )
