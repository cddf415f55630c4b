"""Opening a source by its kind."""

from __future__ import annotations

from typing import Any

from patchnpack.loaders.shards.patterns import is_image_folder
from patchnpack.loaders.sources.dataset_source import DatasetSource
from patchnpack.loaders.sources.mixture_source import MixtureSource
from patchnpack.loaders.sources.options import LoaderOptions
from patchnpack.loaders.sources.packed_source import PackedSource
from patchnpack.loaders.sources.shard_source import ShardSource
from patchnpack.loaders.sources.source import Source

# Asked in this order.
_KINDS: tuple[type[Source], ...] = (MixtureSource, PackedSource, DatasetSource, ShardSource)  # type: ignore[assignment]
_FOR_TABLES = ("path", "root")
_FOR_DATASETS = ("sizes", "thread_safe", "fingerprint")


def open_source(given: Any, options: LoaderOptions) -> Source:
    """Open the first kind of source that accepts what a loader was given; see `Source.open`."""
    kind = next(kind for kind in _KINDS if kind.accepts(given))
    if kind is PackedSource and is_image_folder(given, options.storage_options):
        kind = ShardSource
    for name in _FOR_DATASETS:
        if kind not in (DatasetSource, MixtureSource) and getattr(options, name) is not None:
            raise ValueError(f"{name}= is for data sets with __len__ and __getitem__; for other sources leave it out")
    for name in _FOR_TABLES:
        if kind in (PackedSource, DatasetSource) and getattr(options, name) is not None:
            raise ValueError(f"{name}= is for tables of paths (CSV, TSV, JSONL, parquet); leave it out")
    return kind.open(given, options)
