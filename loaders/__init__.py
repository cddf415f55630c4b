"""First floor: shards, the order of an epoch, decoding, and the loader in which they meet."""

from patchnpack.loaders.dataset import PackedDataset
from patchnpack.loaders.decode import BadImage
from patchnpack.loaders.errors import BadDataError, ErrorPolicy, StallError
from patchnpack.loaders.find_index import open_index, update_index
from patchnpack.loaders.image_folder import Written, write_shards
from patchnpack.loaders.index import Index
from patchnpack.loaders.index_file import load_index, save_index
from patchnpack.loaders.mixture import Mixture
from patchnpack.loaders.packed_loader import PackedImageLoader
from patchnpack.loaders.scanner import scan
from patchnpack.loaders.stream import PackedStream, pack_stream

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
