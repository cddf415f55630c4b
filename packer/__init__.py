"""Ground floor: which images go into which pack, as integers, and the batch that comes of it."""

from patchnpack.packer.batch import PackedBatch, PackedImage
from patchnpack.packer.config import Packing
from patchnpack.packer.packing import pack_lengths
from patchnpack.packer.plan import Images, Plan, Planner, Rows, plan
from patchnpack.packer.resolution import FitTokens, Native, Square
from patchnpack.packer.token_drop import BetaDrop, ConstantDrop, DropToTokens, NoDrop, ResolutionDrop

__all__ = [
    "BetaDrop",
    "ConstantDrop",
    "DropToTokens",
    "FitTokens",
    "Images",
    "Native",
    "NoDrop",
    "PackedBatch",
    "PackedImage",
    "Packing",
    "Plan",
    "Planner",
    "ResolutionDrop",
    "Rows",
    "Square",
    "pack_lengths",
    "plan",
]
