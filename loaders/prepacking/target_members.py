"""The targets of a patch store as members of samples: files that loaders read as masks, maps and objects again."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from PIL import Image

from patchnpack.loaders.targets.objects import ObjectTarget
from patchnpack.loaders.targets.target import Target
from patchnpack.packer import PackedBatch
from patchnpack.packer.batch.objects import PackedObjects
from patchnpack.packer.batch.packed_image import PackedImage

# P patch size, (gw, gh) grid of an image, n tokens of an image, V values per token, C values per pixel

_PNG_TYPES = (np.uint8, np.uint16)


def target_members(
    batch: PackedBatch, targets: Mapping[str, Target], taken: Collection[str] = ()
) -> list[list[tuple[str, bytes]]]:
    """Return the targets of each image of a batch as members, in pixels of the packed image.

    ```
    Mask, Map         (gh*P, gw*P, C), the fill where a patch was dropped: a PNG or an .npy with the name of the member
                      they were read from, whose extension becomes that of the file
    per token         (gh, gw, C) in NAME.tokens.npy
    boxes and points  NAME.json: {"boxes": [...], "labels": [...], "index": [...]}, or "points": outlines as lists of
                      [x, y], others of [x, y, v], where v is 0 for points that are not visible
    ```

    Args:
        batch: with these targets, on the CPU.
        targets: by NAME.
        taken: names that other members of the samples have; a target's member is then called by its NAME.
    """
    names = list(taken)
    members: list[list[tuple[str, bytes]]] = [[] for _ in batch.lengths]
    for name, target in targets.items():
        values = batch.targets[name]
        if isinstance(values, PackedObjects):
            assert isinstance(target, ObjectTarget)
            for i, found in enumerate(members):
                found.append((f"{name}.json", _objects_json(values.of(i))))
            continue
        flat, end, called = values.flatten(0, 1).numpy(), 0, ""
        for image, found, length in zip(batch.images(), members, batch.lengths, strict=True):
            slots = batch.token_index[end : end + length].numpy()
            end += length
            extension, data = _encoded(target, _laid_out(image, flat[slots].reshape(length, -1), target))
            called = called or _called(name, target, extension, names)
            found.append((called, data))
        names.append(called)
    return members


def _laid_out(image: PackedImage, values: np.ndarray, target: Any) -> np.ndarray:
    """The values of tokens (n, V) as a picture, (gh*P, gw*P, C), or (gh, gw, C) of values per token."""
    (gw, gh), side = image.grid, 1 if target.per_token else image.patch_size
    canvas = np.full((gh, gw, side, side, values.shape[1] // side**2), target.fill, values.dtype)
    x, y = image.coords.numpy().T
    canvas[y, x] = values.reshape(len(x), *canvas.shape[2:])
    return canvas.transpose(0, 2, 1, 3, 4).reshape(gh * side, gw * side, -1)


def _encoded(target: Any, picture: np.ndarray) -> tuple[str, bytes]:
    """The extension and the content of a file that holds a picture (height, width, C)."""
    file = io.BytesIO()
    picture = picture[..., 0] if picture.shape[2] == 1 else picture
    as_array = target.per_token or target.member.endswith(".npy") or picture.ndim == 3
    if as_array or picture.dtype not in _PNG_TYPES:
        np.save(file, picture)
        return "npy", file.getvalue()
    Image.fromarray(picture).save(file, "PNG")
    return "png", file.getvalue()


def _called(name: str, target: Any, extension: str, taken: Collection[str]) -> str:
    """The name of a target's member."""
    if target.per_token:
        return f"{name}.tokens.npy"
    stem, dot, _ = target.member.rpartition(".")
    called = f"{stem}.{extension}" if dot else target.member
    return f"{name}.{extension}" if called in taken else called


def _objects_json(objects: PackedObjects) -> bytes:
    """The objects of one image as JSON; coordinates are pixels of the packed image."""
    values: dict[str, Any] = {}
    if objects.boxes is not None:
        values["boxes"] = objects.boxes.tolist()
    if objects.points is not None:
        assert objects.visible is not None
        assert objects.lengths is not None
        seen = np.zeros((len(objects.points), 0)) if objects.outlines else 2.0 * objects.visible.numpy()[:, None]
        points = np.concatenate([objects.points.numpy().astype(np.float64), seen], axis=1)
        ends = np.cumsum(objects.lengths.numpy())[:-1]
        values["points"] = [each.tolist() for each in np.split(points, ends)] if len(objects) else []
    labels = [None if label < 0 else label for label in objects.labels.tolist()]
    return json.dumps({**values, "labels": labels, "index": objects.index.tolist()}).encode()
