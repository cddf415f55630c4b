"""Samples with a mask, a map, boxes and points, the targets that name them, and looks at their batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from patchnpack import Boxes, Keypoints, Map, Mask, PackedBatch, Packing
from patchnpack.packer.batch.objects import PackedObjects
from tests.images import encode_image
from tests.loaders.conftest import contents
from tests.loaders.targets.carried import value_of

SIZE = 24, 16
PACKING = Packing(seq_len=12, patch_size=8, max_images=4)
TARGETS: dict[str, Any] = {
    "seg": Mask("seg.png", num_classes=10),
    "token": Mask("seg.png", per_token="majority"),
    "depth": Map("depth.png"),
    "boxes": Boxes("json:boxes", labels="json:classes", num_classes=5),
    "points": Keypoints("json:points"),
}


def sample(key: str, size: tuple[int, int] = SIZE) -> dict[str, Any]:
    """A sample whose mask holds 1 in the left half of the image and 2 in the right, under one box each."""
    width, height = size
    rng = np.random.default_rng(len(key))
    mask = np.repeat(np.array([[1, 2]], np.uint8), width // 2, axis=1).repeat(height, axis=0)
    half = width // 2
    return {
        "__key__": key,
        "png": encode_image(rng.integers(0, 256, (height, width, 3), np.uint8), "PNG"),
        "seg.png": encode_image(mask, "PNG"),
        "depth.png": encode_image(mask.astype(np.uint16) * 1000, "PNG"),
        "json": value_of(
            {
                "boxes": [[0, 0, half, height], [half, 0, width, height]],
                "classes": [1, 2],
                "points": [[1, 1], [width - 1, height - 1]],
            }
        ),
    }


def objects_of(batch: PackedBatch, name: str) -> PackedObjects:
    """The objects of a target."""
    objects = batch.targets[name]
    assert isinstance(objects, PackedObjects)
    return objects


def tensor_of(batch: PackedBatch, name: str) -> torch.Tensor:
    """The values of a dense target."""
    tensor = batch.targets[name]
    assert isinstance(tensor, torch.Tensor)
    return tensor


def all_of(batch: PackedBatch) -> tuple[Any, ...]:
    """All contents of a batch, with its targets."""
    targets = {
        name: value.numpy().tobytes()
        if isinstance(value, torch.Tensor)
        else [value.counts_list, *(None if one is None else one.tolist() for one in (value.boxes, value.points))]
        for name, value in batch.targets.items()
    }
    return *contents(batch), targets


def mirror(image: np.ndarray, rng: np.random.Generator, targets: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Transform that mirrors an image with its targets."""
    width = image.shape[1]
    moved = dict(targets)
    for name in ("seg", "token", "depth"):
        moved[name] = targets[name][:, ::-1]
    for name in ("boxes", "points"):
        moved[name] = targets[name].moved(lambda points: points * np.array([-1, 1]) + np.array([width, 0]))
    return image[:, ::-1], moved
