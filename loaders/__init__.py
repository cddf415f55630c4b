"""Loaders: shards, indexes, the order of an epoch, decoding, and the loader that combines them."""

from patchnpack.loaders.dataset import PackedDataset
from patchnpack.loaders.errors import BadDataError, BadImage, ErrorPolicy, StallError
from patchnpack.loaders.index.index_file import load_index, save_index
from patchnpack.loaders.index.resolve import open_index, update_index
from patchnpack.loaders.index.scanner import scan
from patchnpack.loaders.index.table import Index
from patchnpack.loaders.order.mixture import Mixture
from patchnpack.loaders.packed_loader import PackedImageLoader
from patchnpack.loaders.shards.writer import Written, write_shards
from patchnpack.loaders.streaming.pack_stream import PackedStream, pack_stream

__all__ = [
    "BadDataError",
    "BadImage",
    "ErrorPolicy",
    "Index",
    "Mixture",
    "PackedDataset",
    "PackedImageLoader",
    "PackedStream",
    "StallError",
    "Written",
    "load_index",
    "open_index",
    "pack_stream",
    "save_index",
    "scan",
    "update_index",
    "write_shards",
]
