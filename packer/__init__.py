"""Packer: plan which images go into which pack, and hold them in a batch."""

from typing import TYPE_CHECKING

from patchnpack._lazy import lazy_names
from patchnpack.packer.analysis.advice import Advice, advise
from patchnpack.packer.analysis.report import PackingReport, report
from patchnpack.packer.analysis.setting import Sweep
from patchnpack.packer.analysis.sweep import sweep
from patchnpack.packer.binpacking.pack_lengths import pack_lengths
from patchnpack.packer.config import Packing
from patchnpack.packer.geometry import Geometry
from patchnpack.packer.planning.images import Images, Rows
from patchnpack.packer.planning.plan import Plan
from patchnpack.packer.planning.planner import Planner, plan
from patchnpack.packer.policies.frames import Frames
from patchnpack.packer.policies.patch_sizes import PatchSizes
from patchnpack.packer.policies.resolution import FitTokens, Native, Square
from patchnpack.packer.policies.sampled_resolution import RandomResizedCrop, SampleSide, ScheduledResolution
from patchnpack.packer.policies.token_drop import (
    BetaDrop,
    ComplexityDrop,
    ConstantDrop,
    DropToTokens,
    NoDrop,
    ResolutionDrop,
    ScheduledDrop,
)
from patchnpack.packer.policies.views import Views

if TYPE_CHECKING:
    from patchnpack.packer.batch.objects import PackedObjects
    from patchnpack.packer.batch.packed_batch import PackedBatch
    from patchnpack.packer.batch.packed_image import PackedImage, PackedSample

__all__ = [
    "Advice",
    "BetaDrop",
    "ComplexityDrop",
    "ConstantDrop",
    "DropToTokens",
    "FitTokens",
    "Frames",
    "Geometry",
    "Images",
    "Native",
    "NoDrop",
    "PackedBatch",
    "PackedImage",
    "PackedObjects",
    "PackedSample",
    "Packing",
    "PackingReport",
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
    "Sweep",
    "Views",
    "advise",
    "pack_lengths",
    "plan",
    "report",
    "sweep",
]

if not TYPE_CHECKING:  # these import torch, which takes more than a second
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "batch.objects": ("PackedObjects",),
            "batch.packed_batch": ("PackedBatch",),
            "batch.packed_image": ("PackedImage", "PackedSample"),
        },
    )
