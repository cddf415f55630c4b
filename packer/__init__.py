"""Ground floor: which images go into which pack, as integers, and the batch that comes of it."""

from patchnpack.packer.batch import PackedBatch, PackedImage
from patchnpack.packer.config import Packing
from patchnpack.packer.images import Images, Rows
from patchnpack.packer.packing import pack_lengths
from patchnpack.packer.patch_sizes import PatchSizes
from patchnpack.packer.plan import Plan, Planner, plan
from patchnpack.packer.resolution import FitTokens, Native, Square
from patchnpack.packer.sampled_resolution import RandomResizedCrop, SampleSide, ScheduledResolution
from patchnpack.packer.token_drop import BetaDrop, ConstantDrop, DropToTokens, NoDrop, ResolutionDrop, ScheduledDrop

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
    "PatchSizes",
    "Plan",
    "Planner",
    "RandomResizedCrop",
    "ResolutionDrop",
    "Rows",
    "SampleSide",
    "ScheduledDrop",
    "ScheduledResolution",
    "Square",
    "pack_lengths",
    "plan",
]
