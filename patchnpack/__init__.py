"""Load images at native resolution and pack them into sequences for vision transformers."""

from patchnpack.loaders import PackedImageLoader
from patchnpack.packer import ConstantDrop, FitTokens, Native, NoDrop, PackedBatch, Packing, Square

__all__ = ["ConstantDrop", "FitTokens", "Native", "NoDrop", "PackedBatch", "PackedImageLoader", "Packing", "Square"]
