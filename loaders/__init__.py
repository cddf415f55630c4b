"""First floor: shards, the order of an epoch, decoding, and the loader in which they meet."""

from patchnpack.loaders.index import Index, scan
from patchnpack.loaders.packed_loader import PackedImageLoader

__all__ = ["Index", "PackedImageLoader", "scan"]
