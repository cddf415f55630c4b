from __future__ import annotations

import importlib
import subprocess
import sys
from importlib import metadata

import pytest
from packaging.requirements import Requirement

# Adding or removing a public name is a decision, so this list must change with it.
PUBLIC: dict[str, list[str]] = {
    "patchnpack": [
        "BetaDrop",
        "ComplexityDrop",
        "ConstantDrop",
        "DropToTokens",
        "ErrorPolicy",
        "FitTokens",
        "Frames",
        "Boxes",
        "Keypoints",
        "Map",
        "Mask",
        "Mixture",
        "Polygons",
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
        "Views",
        "pack_stream",
    ],
    "patchnpack.packer": [
        "Advice",
        "PackingReport",
        "Sweep",
        "advise",
        "report",
        "sweep",
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
        "Views",
        "pack_lengths",
        "plan",
    ],
    "patchnpack.loaders": [
        "Job",
        "Manifest",
        "read_manifest",
        "report_of",
        "BadDataError",
        "BadImage",
        "ErrorPolicy",
        "ImageHeader",
        "ImageReader",
        "Index",
        "Boxes",
        "Keypoints",
        "Map",
        "Mask",
        "Mixture",
        "Objects",
        "Polygons",
        "PackedDataset",
        "PackedImageLoader",
        "PackedStream",
        "ResumableStream",
        "StallError",
        "Written",
        "load_index",
        "open_index",
        "pack_stream",
        "save_index",
        "scan",
        "update_index",
        "write_shards",
    ],
    "patchnpack.models": [
        "DenseNaViT",
        "Features",
        "NaViT",
        "NaViTConfig",
        "TokenMap",
        "attention_backend",
        "classification_loss",
        "token_maps",
    ],
    "patchnpack.trainer": [
        "Checkpoint",
        "Classification",
        "Contrastive",
        "Distillation",
        "Objective",
        "Outcome",
        "TextTower",
        "TrainConfig",
        "TrainResult",
        "autocast",
        "autocast_dtype",
        "evaluate",
        "learning_rate",
        "load_checkpoint",
        "mix",
        "repatchify",
        "save_checkpoint",
        "sigmoid_loss",
        "train",
    ],
    "patchnpack.metrics": [
        "average_precision",
        "box_iou",
        "class_iou",
        "confusion_matrix",
        "generalized_iou",
        "mean_average_precision",
        "mean_iou",
    ],
    "patchnpack.report": [
        "baseline_rows",
        "print_report",
        "print_sweep",
        "report_fields",
        "setting_fields",
        "sweep_fields",
        "to_csv",
        "write_page",
    ],
    "patchnpack.weights": [
        "export_model",
        "from_big_vision",
        "from_timm",
        "from_transformers",
        "open_model",
        "to_big_vision",
        "to_timm",
    ],
}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_match_the_frozen_list(module: str) -> None:
    assert sorted(importlib.import_module(module).__all__) == sorted(PUBLIC[module])


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_exists_once(module: str) -> None:
    names = importlib.import_module(module).__all__
    assert len(set(names)) == len(names)
    assert all(hasattr(importlib.import_module(module), name) for name in names)


def test_importing_every_public_name_imports_no_optional_dependency() -> None:
    requirements = map(Requirement, metadata.requires("patchnpack") or [])
    optional = {requirement.name for requirement in requirements if "extra" in str(requirement.marker)}
    assert {"matplotlib", "jinja2", "fsspec", "obstore", "ray"} <= optional
    # The required dependencies may import some of these themselves.
    code = f"""
import sys
import numba, pyarrow, rich, simplejpeg, torch, typer, webdataset
before = set(sys.modules)
import patchnpack.cli.main, patchnpack.engines, patchnpack.predict, patchnpack.training
{"; ".join(f"from {package} import *" for package in PUBLIC)}
print(*({{name.split(".")[0] for name in set(sys.modules) - before}} & {optional}))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
