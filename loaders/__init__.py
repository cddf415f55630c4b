"""Loaders: shards, indexes, the order of an epoch, decoding, and the loader that combines them."""

from patchnpack.loaders.dataset import PackedDataset
from patchnpack.loaders.error_policy import ErrorPolicy
from patchnpack.loaders.errors import BadDataError, BadImage, StallError
from patchnpack.loaders.index.index_file import load_index, save_index
from patchnpack.loaders.index.resolve import open_index, update_index
from patchnpack.loaders.index.scanner import scan
from patchnpack.loaders.index.table import Index
from patchnpack.loaders.order.mixture import Mixture
from patchnpack.loaders.packed_loader import PackedImageLoader
from patchnpack.loaders.packs.manifest import Manifest, read_manifest
from patchnpack.loaders.plan_report import report_of
from patchnpack.loaders.prepacking.job import Job
from patchnpack.loaders.shards.writer import Written, write_shards
from patchnpack.loaders.streaming.pack_stream import PackedStream, pack_stream

__all__ = [
    "BadDataError",
    "BadImage",
    "ErrorPolicy",
    "Index",
    "Job",
    "Manifest",
    "Mixture",
    "PackedDataset",
    "PackedImageLoader",
    "PackedStream",
    "StallError",
    "Written",
    "load_index",
    "open_index",
    "pack_stream",
    "read_manifest",
    "report_of",
    "save_index",
    "scan",
    "update_index",
    "write_shards",
]
