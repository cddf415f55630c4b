"""Opening a source by its kind."""

from __future__ import annotations

from typing import Any

from patchnpack.loaders.shards.patterns import is_image_folder
from patchnpack.loaders.sources.mixture_source import MixtureSource
from patchnpack.loaders.sources.options import LoaderOptions
from patchnpack.loaders.sources.packed_source import PackedSource
from patchnpack.loaders.sources.shard_source import ShardSource
from patchnpack.loaders.sources.source import Source

_KINDS: tuple[type[Source], ...] = (MixtureSource, PackedSource, ShardSource)  # asked in this order


def open_source(given: Any, options: LoaderOptions) -> Source:
    """Open the first kind of source that accepts what a loader was given; see `Source.open`."""
    kind = next(kind for kind in _KINDS if kind.accepts(given))
    if kind is PackedSource and is_image_folder(given, options.storage_options):
        kind = ShardSource
    for name in ("path", "root"):
        if kind is PackedSource and getattr(options, name) is not None:
            raise ValueError(f"{name}= is for tables of paths (CSV, TSV, JSONL, parquet); leave it out")
    return kind.open(given, options)
