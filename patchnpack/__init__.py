"""Load images at native resolution and pack them into sequences for vision transformers."""

from typing import TYPE_CHECKING

from patchnpack._lazy import lazy_names

if TYPE_CHECKING:
    from patchnpack.loaders import (
        Boxes,
        ErrorPolicy,
        Keypoints,
        Map,
        Mask,
        Mixture,
        PackedImageLoader,
        Polygons,
        pack_stream,
    )
    from patchnpack.packer import (
        BetaDrop,
        ComplexityDrop,
        ConstantDrop,
        DropToTokens,
        FitTokens,
        Frames,
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
        Views,
    )

__all__ = [
    "BetaDrop",
    "Boxes",
    "ComplexityDrop",
    "ConstantDrop",
    "DropToTokens",
    "ErrorPolicy",
    "FitTokens",
    "Frames",
    "Keypoints",
    "Map",
    "Mask",
    "Mixture",
    "Native",
    "NoDrop",
    "PackedBatch",
    "PackedImageLoader",
    "Packing",
    "PatchSizes",
    "Polygons",
    "RandomResizedCrop",
    "ResolutionDrop",
    "SampleSide",
    "ScheduledDrop",
    "ScheduledResolution",
    "Square",
    "Views",
    "pack_stream",
]

if not TYPE_CHECKING:  # `patchnpack --help` imports this package, and needs none of its names
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "loaders": (
                "Boxes",
                "ErrorPolicy",
                "Keypoints",
                "Map",
                "Mask",
                "Mixture",
                "PackedImageLoader",
                "Polygons",
                "pack_stream",
            ),
            "packer": (
                "BetaDrop",
                "ComplexityDrop",
                "ConstantDrop",
                "DropToTokens",
                "FitTokens",
                "Frames",
                "Native",
                "NoDrop",
                "PackedBatch",
                "Packing",
                "PatchSizes",
                "RandomResizedCrop",
                "ResolutionDrop",
                "SampleSide",
                "ScheduledDrop",
                "ScheduledResolution",
                "Square",
                "Views",
            ),
        },
    )
