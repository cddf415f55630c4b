"""Samples whose targets say where they come from: masks of coordinates, boxes and points, in a tar or as dicts."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.images import encode_image, write_tar

# An array that is turned by one orientation is turned back by the other.
BACK = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}


@dataclass(frozen=True)
class Sample:
    """A picture with its targets, as it is stored.

    Attributes:
        width, height: upright size in pixels.
        orientation: EXIF orientation.
        boxes: (n, 4), (left, top, right, bottom) in pixels of the upright picture.
    """

    key: str
    width: int
    height: int
    orientation: int
    boxes: np.ndarray

    def members(self) -> dict[str, bytes]:
        """The members of the sample: masks `x.png` and `y.png` hold the upright coordinates of their pixels."""
        x, y = np.meshgrid(np.arange(self.width, dtype=np.uint16), np.arange(self.height, dtype=np.uint16))
        rng = np.random.default_rng((self.width, self.height))
        pixels = rng.integers(0, 256, (self.height, self.width, 3), np.uint8)
        exif = Image.Exif()
        exif[0x0112] = self.orientation
        objects = {
            "boxes": [stored_box(box, self).tolist() for box in self.boxes],
            "points": [stored_points(box.reshape(2, 2), self).tolist() for box in self.boxes],
            "classes": list(range(len(self.boxes))),
        }
        return {
            "png": encode_image(stored(pixels, self.orientation), "PNG", exif=exif.tobytes()),
            "x.png": encode_image(stored(x, self.orientation), "PNG"),
            "y.png": encode_image(stored(y, self.orientation), "PNG"),
            "json": json.dumps(objects).encode(),
        }


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The array that an orientation turns into `upright`, by PIL's own operations (EXIF 2.32, tag 0x0112)."""
    back = BACK[orientation]
    if back in (5, 6, 7, 8):  # columns become rows
        upright = upright.swapaxes(0, 1)
    if back in (2, 3, 6, 7):
        upright = upright[:, ::-1]
    if back in (3, 4, 7, 8):
        upright = upright[::-1]
    return np.ascontiguousarray(upright)


def stored_points(points: np.ndarray, sample: Sample) -> np.ndarray:
    """Points (n, 2) of an upright picture as they lie in the stored one."""
    side = stored(np.empty((sample.height, sample.width)), sample.orientation).shape
    back = BACK[sample.orientation]
    if back >= 5:
        points = points[:, ::-1]
    x, y = points.T
    x = side[1] - x if back in (2, 3, 6, 7) else x
    y = side[0] - y if back in (3, 4, 7, 8) else y
    return np.stack([x, y], axis=1)


def stored_box(box: np.ndarray, sample: Sample) -> np.ndarray:
    """A box of an upright picture as it lies in the stored one."""
    corners = stored_points(box.reshape(2, 2), sample)
    return np.concatenate([corners.min(0), corners.max(0)])


def tar_of(path: Path, samples: Sequence[Mapping[str, Any]]) -> str:
    """Write samples, dicts of members with `__key__`, into a tar."""
    members = [(f"{each['__key__']}.{name}", data) for each in samples for name, data in each.items() if name[0] != "_"]
    return write_tar(path, members)


def folder_of(folder: Path, samples: Sequence[Mapping[str, Any]]) -> str:
    """Write samples into a folder, a file per member."""
    folder.mkdir(parents=True)
    for each in samples:
        for name, data in each.items():
            if name[0] != "_":
                (folder / f"{each['__key__']}.{name}").write_bytes(data)
    return str(folder)


def table_of(folder: Path, samples: Sequence[Mapping[str, Any]]) -> str:
    """Write a table that names the files of the images and of `x.png` and `y.png`, and holds their objects."""
    folder_of(folder, samples)
    fields = list(json.loads(samples[0]["json"]))
    with open(folder / "table.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "x", "y", *fields])
        for each in samples:
            objects = json.loads(each["json"])
            files = [f"{each['__key__']}.{name}" for name in ("png", "x.png", "y.png")]
            rows.writerow([*files, *(json.dumps(objects[field]) for field in fields)])
    return str(folder / "table.csv")


def npy(array: np.ndarray) -> bytes:
    """The bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def value_of(objects: Any) -> bytes:
    """The bytes of a .json member."""
    return json.dumps(objects).encode()
