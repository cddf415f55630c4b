"""`Boxes`: axis-parallel boxes, for detection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from patchnpack.loaders.targets.objects import NO_LABEL, Objects, ObjectTarget, check_share, finite_numbers
from patchnpack.packer.checks import check_choice, shown

BoxFormat = Literal["xyxy", "xywh", "cxcywh"]


@dataclass(frozen=True)
class Boxes(ObjectTarget):
    """Boxes of objects, mapped to pixels of the packed image and clipped to it.

    `batch.targets` holds `PackedObjects`, whose boxes are (left, top, right, bottom). A box without area inside the
    image is left out; `index` says which boxes of the file stayed. An image without boxes has an empty list.

    Attributes:
        member: where the boxes lie, one list of four numbers per object: "json:objects" is the field of a .json member;
            "json:objects.bbox" is the field of each record in a list, as COCO writes them. Of a data set, the field of
            an item.
        format: of the four numbers: "xyxy" (left, top, right, bottom), "xywh" (left, top, width, height) or "cxcywh"
            (the centre, width, height).
        normalized: whether they are shares of the image's width and height, 0 to 1, not pixels.
        labels: where the classes lie, one per object: "json:objects.category_id". None for no classes, which are -100.
        classes: names of the classes as a list, a file with one name per line, or a mapping from name to number.
        num_classes: a class at or above it makes the image bad; None does not check them.
        min_visible: a box is left out if less than this share of its mapped area lies in the packed image.
        upright: whether coordinates are those of the upright image. Otherwise they are those of the image as it is
            stored, and its EXIF orientation turns them.

    Raises:
        ValueError: a value of the wrong type or out of range.

    >>> Boxes("json:objects.bbox", format="coco")
    Traceback (most recent call last):
        ...
    ValueError: format is 'coco'; it must be one of 'xyxy', 'xywh', 'cxcywh'
    """

    format: BoxFormat = field(default="xyxy", kw_only=True)
    min_visible: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        ObjectTarget.__post_init__(self)
        check_choice("format", self.format, get_args(BoxFormat))
        check_share("min_visible", self.min_visible)

    @property
    def has_boxes(self) -> bool:
        """Whether the objects are boxes."""
        return True

    def kept(self, objects: Objects, extent: tuple[int, int]) -> Objects:
        """Return the boxes clipped to an image of (width, height) pixels, without those outside."""
        boxes = objects.boxes
        assert boxes is not None
        # As the batch holds them: what float32 rounds to nothing has no area.
        clipped = boxes.clip(0, np.tile(np.array(extent, np.float64), 2)).astype(np.float32).astype(np.float64)
        visible, area = _areas(clipped), _areas(boxes)
        return replace(objects, boxes=clipped).take((visible > 0) & (visible >= self.min_visible * area))

    def _parsed(self, values: Sequence[Any]) -> Objects:
        boxes = np.empty((len(values), 4), np.float64)
        for i, value in enumerate(values):
            numbers = finite_numbers(value, 4)
            if numbers is None or len(numbers) != 1:
                raise ValueError(f"box {i} is {shown(value, 60)}; it must be four finite numbers, {self.format}")
            boxes[i] = numbers[0]
        first, second = boxes[:, :2], boxes[:, 2:]
        sides = second - first if self.format == "xyxy" else second
        if (sides < 0).any():
            i = int((sides < 0).any(1).argmax())
            remedy = "give format='xywh' or 'cxcywh', or correct it" if self.format == "xyxy" else "correct it"
            raise ValueError(
                f"box {i} is {shown(boxes[i].tolist(), 60)}, {self.format}, whose width or height is negative; {remedy}"
            )
        if self.format == "xywh":
            boxes = np.concatenate([first, first + second], axis=1)
        elif self.format == "cxcywh":
            boxes = np.concatenate([first - second / 2, first + second / 2], axis=1)
        return Objects(
            labels=np.full(len(values), NO_LABEL, np.int64), index=np.arange(len(values), dtype=np.int64), boxes=boxes
        )


def _areas(boxes: np.ndarray) -> np.ndarray:
    areas: np.ndarray = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return areas
