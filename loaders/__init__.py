"""Loaders: shards, indexes, the order of an epoch, decoding, and the loader that combines them."""

from typing import TYPE_CHECKING

from patchnpack._lazy import lazy_names

if TYPE_CHECKING:
    from patchnpack.loaders.dataset import PackedDataset
    from patchnpack.loaders.error_policy import ErrorPolicy
    from patchnpack.loaders.errors import BadDataError, BadImage, StallError
    from patchnpack.loaders.imaging.user_decode import ImageHeader, ImageReader
    from patchnpack.loaders.index.index_file import load_index, save_index
    from patchnpack.loaders.index.resolve import open_index
    from patchnpack.loaders.index.scanner import scan
    from patchnpack.loaders.index.table import Index
    from patchnpack.loaders.index.update import update_index
    from patchnpack.loaders.order.mixture import Mixture
    from patchnpack.loaders.packed_loader import PackedImageLoader
    from patchnpack.loaders.packs.manifest import Manifest, read_manifest
    from patchnpack.loaders.plan_report import report_of
    from patchnpack.loaders.prepacking.job import Job
    from patchnpack.loaders.shards.folders.writer import Written, write_shards
    from patchnpack.loaders.streaming.pack_stream import PackedStream, ResumableStream, pack_stream
    from patchnpack.loaders.targets.boxes import Boxes
    from patchnpack.loaders.targets.map import Map
    from patchnpack.loaders.targets.mask import Mask
    from patchnpack.loaders.targets.objects import Objects
    from patchnpack.loaders.targets.points import Keypoints, Polygons

__all__ = [
    "BadDataError",
    "BadImage",
    "Boxes",
    "ErrorPolicy",
    "ImageHeader",
    "ImageReader",
    "Index",
    "Job",
    "Keypoints",
    "Manifest",
    "Map",
    "Mask",
    "Mixture",
    "Objects",
    "PackedDataset",
    "PackedImageLoader",
    "PackedStream",
    "Polygons",
    "ResumableStream",
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

if not TYPE_CHECKING:  # an index needs no torch, which takes more than a second to import
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "dataset": ("PackedDataset",),
            "error_policy": ("ErrorPolicy",),
            "errors": ("BadDataError", "BadImage", "StallError"),
            "imaging.user_decode": ("ImageHeader", "ImageReader"),
            "index.index_file": ("load_index", "save_index"),
            "index.resolve": ("open_index",),
            "index.scanner": ("scan",),
            "index.table": ("Index",),
            "index.update": ("update_index",),
            "order.mixture": ("Mixture",),
            "packed_loader": ("PackedImageLoader",),
            "packs.manifest": ("Manifest", "read_manifest"),
            "plan_report": ("report_of",),
            "prepacking.job": ("Job",),
            "shards.folders.writer": ("Written", "write_shards"),
            "targets.boxes": ("Boxes",),
            "targets.map": ("Map",),
            "targets.mask": ("Mask",),
            "targets.objects": ("Objects",),
            "targets.points": ("Keypoints", "Polygons"),
            "streaming.pack_stream": ("PackedStream", "ResumableStream", "pack_stream"),
        },
    )
