"""Shards of images with masks, maps, boxes, outlines and points, and what batches hold of them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from patchnpack import Boxes, Keypoints, Map, Mask, Polygons
from patchnpack.packer import PackedBatch
from patchnpack.packer.batch.objects import PackedObjects
from tests.images import draw_image, encode_image, write_tar

COUNT = 24
CLASSES = {"kind": 0, "owl": 1, "cat": 2}  # one of them is called as a field of recipes
TARGETS: dict[str, Any] = {
    "mask": Mask("seg.png", fill=254, num_classes=12),
    "token": Mask("SEG.png", dtype="int64", fill=-1, per_token="majority"),
    "depth": Map("depth.npy", channels=2, fill=float("nan")),
    "mean": Map("depth.npy", channels=2, per_token="mean"),
    "boxes": Boxes("json:objects.bbox", format="xywh", labels="json:objects.name", classes=CLASSES, min_visible=0.1),
    "outlines": Polygons("json:objects.outline"),
    "joints": Keypoints("json:objects.points", format="xyv"),
}
WRONG_SIZE, MISSING = 5, 11  # images whose masks cannot be used
DENSE = ("mask", "token", "depth", "mean")


def annotated_image(i: int) -> tuple[bytes, dict[str, bytes]]:
    """Return an encoded image, every third one turned by EXIF, and its members."""
    rng = np.random.default_rng(i)
    width, height = (int(side) for side in rng.integers(20, 60, 2))
    exif = Image.Exif()
    if i % 3 == 0:
        exif[0x0112] = 1 + i % 8
    image = draw_image(width, height, seed=i)
    data = encode_image(image, "JPEG", exif=exif) if i % 2 else encode_image(image, "PNG", exif=exif)
    mask = Image.fromarray(rng.integers(0, 12, (height, width), np.uint8)).resize((width, height))
    if i == WRONG_SIZE:
        mask = mask.resize((width + 1, height))
    if i % 4 == 1:  # indices of a palette
        mask = mask.convert("L")
        mask.putpalette([value for k in range(256) for value in (255 - k, k, k)])
    depth = io.BytesIO()
    np.save(depth, rng.normal(size=(height, width, 2)).astype(np.float32))
    objects = []
    for k in range(i % 4):
        x, y = rng.uniform(-5, width), rng.uniform(-5, height)
        w, h = rng.uniform(1, 40, 2)
        objects.append(
            {
                "bbox": [x, y, w, h],
                "name": [*CLASSES][k % 3],
                "outline": [[x, y, x + w, y, x + w / 2, y + h]],
                "points": [x, y, 2, x + w, y + h, 1, 0, 0, 0],
            }
        )
    members = {
        "seg.png": encode_image(mask, "PNG"),
        "depth.npy": depth.getvalue(),
        "json": json.dumps({"objects": objects}).encode(),
        "cls": str(i // 3 % 5).encode(),
    }
    if i == MISSING:
        del members["seg.png"]
    return data, members


def write_annotated(folder: Path, count: int = COUNT) -> list[str]:
    """Write two shards of annotated images; the neighbours `2/0`, `2/1` ... are one sample by `key:([^/]+)/.*`."""
    folder.mkdir(parents=True, exist_ok=True)
    members: list[list[tuple[str, bytes]]] = [[], []]
    for i in range(count):
        data, others = annotated_image(i)
        extension = "jpg" if i % 2 else "png"
        for name, content in {extension: data, **others}.items():
            members[i * 2 // count].append((f"s{i // 3}/{i:03d}.{name}", content))
    return [write_tar(folder / f"train-{n:06d}.tar", part) for n, part in enumerate(members)]


def targets_of(batch: PackedBatch, names: Sequence[str] = tuple(TARGETS)) -> dict[str, Any]:
    """Return what `batch.targets` holds as bytes and lists, which are equal for equal targets."""
    found: dict[str, Any] = {"fill": repr(batch.target_fill)}
    for name in names:
        target = batch.targets[name]
        if not isinstance(target, PackedObjects):
            found[name] = str(target.dtype), tuple(target.shape), target.numpy().tobytes()
            continue
        fields = {field: getattr(target, field) for field in target.__dataclass_fields__}
        found[name] = {
            field: value if value is None or isinstance(value, list | bool) else (str(value.dtype), value.tolist())
            for field, value in fields.items()
        }
    assert len(batch.targets) == len(names)
    return found
