"""Load images at native resolution and pack them into sequences for vision transformers."""

from patchnpack.loaders import ErrorPolicy, Mixture, PackedImageLoader, pack_stream
from patchnpack.packer import (
    BetaDrop,
    ConstantDrop,
    DropToTokens,
    FitTokens,
    Native,
    NoDrop,
    PackedBatch,
    Packing,
    PatchSizes,
    RandomResizedCrop,
    ResolutionDrop,
    SampleSide,
    ScheduledDrop,
    ScheduledResolution,
    Square,
)

__all__ = [
    "BetaDrop",
    "ConstantDrop",
    "DropToTokens",
    "ErrorPolicy",
    "FitTokens",
    "Mixture",
    "Native",
    "NoDrop",
    "PackedBatch",
    "PackedImageLoader",
    "Packing",
    "PatchSizes",
    "RandomResizedCrop",
    "ResolutionDrop",
    "SampleSide",
    "ScheduledDrop",
    "ScheduledResolution",
    "Square",
    "pack_stream",
]
