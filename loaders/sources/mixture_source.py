"""A mixture as a source: several sources of shards, drawn from by weight."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any, Self

from patchnpack.loaders.imaging.readers.heif import has_heif
from patchnpack.loaders.index.file_sources import is_file_source, is_folder
from patchnpack.loaders.index.table import Index
from patchnpack.loaders.order.mixture import Mixed, Mixture
from patchnpack.loaders.order.order import Order
from patchnpack.loaders.order.row_filter import RowFilter
from patchnpack.loaders.shards.names import names_of
from patchnpack.loaders.shards.opener import ShardOpener
from patchnpack.loaders.sources.class_names import settle_names
from patchnpack.loaders.sources.options import LoaderOptions
from patchnpack.loaders.sources.shard_source import ShardSource, shard_index, shard_opener
from patchnpack.packer import Packing
from patchnpack.packer.text import counted


@dataclass(frozen=True, kw_only=True)
class MixtureSource(ShardSource):
    """The shards of several sources under one index; see `Source`.

    Attributes:
        mixed: which shards belong to which source, and how many images each gives an epoch.
    """

    mixed: Mixed

    @classmethod
    def accepts(cls, given: Any) -> bool:
        """Return whether `given` is a `Mixture`."""
        return isinstance(given, Mixture)

    @classmethod
    def open(cls, given: Mixture, options: LoaderOptions) -> Self:
        """Open the index of each source, and join them."""
        if options.index is not None:
            raise ValueError("index= is for one source; in a Mixture, name index files as sources")
        opener = shard_opener(options)
        parts = _indexes([source for source, _ in given.sources.values()], options, opener)
        index = parts[0] if len(parts) == 1 else Index.concatenate(parts)
        index, options = settle_names(index, options)
        rows = RowFilter.of(index, options.where, options.policy, options.decode, options.pages, has_heif())
        mixed = Mixed.of(given, parts, rows.mask)
        packing = rows.decide(index, options.packing or Packing(), options.seed, mixed.frequency(index, rows.mask))
        return cls(options=options.settled(), index=index, rows=rows, packing=packing, opener=opener, mixed=mixed)

    @property
    def name(self) -> str:
        """The names of the sources and the images that an epoch takes from each."""
        shares = zip(self.mixed.names, self.mixed.images, strict=True)
        return "a mixture of " + ", ".join(f"{name} ({counted(images, 'image')})" for name, images in shares)

    def order(self, block: int) -> Order:
        """Return the order of packs, whose rows are drawn from all sources."""
        return replace(super().order(block), mixed=self.mixed)


def _indexes(sources: list[Any], options: LoaderOptions, opener: ShardOpener) -> list[Index]:
    """Open the index of each source; `path` and `root` are for those that are tables of paths."""
    sources = [
        source if isinstance(source, Index | str | os.PathLike) else names_of(source)  # a generator yields names once
        for source in sources
    ]
    plain = replace(options, path=None, root=None)
    tables = [
        not isinstance(source, Index)
        and any(is_file_source(name, options.path) and not is_folder(name) for name in names_of(source))
        for source in sources
    ]
    if not any(tables):  # the first names the option that it has no use for
        plain = options
    return [
        shard_index(source, options if is_table else plain, opener)
        for source, is_table in zip(sources, tables, strict=True)
    ]
