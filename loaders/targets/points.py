"""`Polygons` and `Keypoints`: outlines and named points of objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from patchnpack.loaders.targets.objects import NO_LABEL, Objects, ObjectTarget, check_share, finite_numbers
from patchnpack.packer.checks import check_choice, shown

PointFormat = Literal["xy", "xyv"]


@dataclass(frozen=True)
class Polygons(ObjectTarget):
    """Outlines of objects, mapped to pixels of the packed image.

    `batch.targets` holds `PackedObjects` with the points of each polygon. Points outside the image stay, with `visible`
    False; a polygon without area inside the image is left out. An object of several outlines, as COCO writes them, is
    several polygons with one `index`.

    Attributes:
        member: where the outlines lie, one value per object: a list of points, of numbers x, y, x, y ..., or of several
            of these. See `Boxes` for "json:FIELD".
        min_visible: a polygon is left out if less than this share of its mapped area lies in the packed image.
        normalized, labels, classes, num_classes, upright: as for `Boxes`.

    Raises:
        ValueError: a value of the wrong type or out of range.

    >>> Polygons("json:objects.segmentation", labels="json:objects.category_id").min_visible
    0.0
    """

    min_visible: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        ObjectTarget.__post_init__(self)
        check_share("min_visible", self.min_visible)

    @property
    def has_outlines(self) -> bool:
        """Whether the points of an object are its outline."""
        return True

    def kept(self, objects: Objects, extent: tuple[int, int]) -> Objects:
        """Return the polygons of which some area lies in an image of (width, height) pixels."""
        marked = _marked(objects, extent)
        areas = np.array([[_area(ring), _area(_clipped(ring, extent))] for ring in objects.each()]).reshape(-1, 2)
        return marked.take((areas[:, 1] > 0) & (areas[:, 1] >= self.min_visible * areas[:, 0]))

    def _parsed(self, values: Sequence[Any]) -> Objects:
        rings: list[np.ndarray] = []
        index: list[int] = []
        for i, value in enumerate(values):
            if isinstance(value, dict):
                raise ValueError(
                    f"polygon {i} is {shown(value, 60)}; run lengths are not read: write them as outlines, or as a mask"
                )
            for ring in _rings(value):
                points = finite_numbers(ring, 2)
                if points is None or len(points) < 3:
                    raise ValueError(
                        f"polygon {i} is {shown(value, 60)}; it must be at least three points of finite numbers, x and "
                        "y, or a list of such outlines"
                    )
                rings.append(points)
                index.append(i)
        return _objects(rings, index)


@dataclass(frozen=True)
class Keypoints(ObjectTarget):
    """Named points of objects, mapped to pixels of the packed image.

    `batch.targets` holds `PackedObjects` with the points of each object, in the order of the file. Points outside the
    image, and those that are not annotated, stay, with `visible` False; an object without a visible point is left out.
    A flip mirrors the points and does not exchange those of the left and the right.

    Attributes:
        member: where the points lie, one value per object: a list of points or of their numbers, one after another. See
            `Boxes` for "json:FIELD".
        format: of a point: "xy", or "xyv" with a third number that is 0 where the point is not annotated, as in COCO.
        normalized, labels, classes, num_classes, upright: as for `Boxes`.

    Raises:
        ValueError: a value of the wrong type or out of range.

    >>> Keypoints("json:people.keypoints", format="xyv").format
    'xyv'
    """

    format: PointFormat = field(default="xy", kw_only=True)

    def __post_init__(self) -> None:
        ObjectTarget.__post_init__(self)
        check_choice("format", self.format, get_args(PointFormat))

    def kept(self, objects: Objects, extent: tuple[int, int]) -> Objects:
        """Return the objects of which a point lies in an image of (width, height) pixels."""
        marked = _marked(objects, extent)
        assert marked.visible is not None
        assert marked.lengths is not None
        owner = np.repeat(np.arange(len(marked)), marked.lengths)
        return marked.take(np.bincount(owner, marked.visible, len(marked)) > 0)

    def _parsed(self, values: Sequence[Any]) -> Objects:
        columns, points, annotated = len(self.format), [], []
        for i, value in enumerate(values):
            numbers = finite_numbers(value, columns)
            if numbers is None:
                raise ValueError(
                    f"the points of object {i} are {shown(value, 60)}; they must be finite numbers, {self.format} for "
                    "each point"
                )
            points.append(numbers[:, :2])
            annotated.append(numbers[:, 2] > 0 if columns == 3 else np.ones(len(numbers), np.bool_))
        objects = _objects(points, list(range(len(values))))
        return replace(objects, visible=np.concatenate([*annotated, np.empty(0, np.bool_)]))


def _objects(points: list[np.ndarray], index: list[int]) -> Objects:
    flat = np.concatenate([*points, np.empty((0, 2))])
    return Objects(
        labels=np.full(len(points), NO_LABEL, np.int64),
        index=np.array(index, np.int64),
        points=flat,
        visible=np.ones(len(flat), np.bool_),
        lengths=np.array(list(map(len, points)), np.int64),
    )


def _rings(value: Any) -> list[Any]:
    """The outlines of a polygon: itself, or the several that it holds."""
    if not isinstance(value, list | tuple) or not value:
        return [value]
    depth, inner = 1, value[0]
    while isinstance(inner, list | tuple) and inner:
        depth, inner = depth + 1, inner[0]
    is_flat_list = depth == 2 and len(value[0]) > 2
    return list(value) if depth == 3 or is_flat_list else [value]


def _marked(objects: Objects, extent: tuple[int, int]) -> Objects:
    """The objects with `visible` False at points outside an image of (width, height) pixels."""
    assert objects.points is not None
    assert objects.visible is not None
    inside = ((objects.points >= 0) & (objects.points <= extent)).all(1)
    return replace(objects, visible=objects.visible & inside)


def _area(ring: np.ndarray) -> float:
    """The area of a polygon (k, 2) by the shoelace formula."""
    if len(ring) < 3:
        return 0.0
    following = np.roll(ring, -1, axis=0)
    return abs(float((ring[:, 0] * following[:, 1] - ring[:, 1] * following[:, 0]).sum())) / 2


def _clipped(ring: np.ndarray, extent: tuple[int, int]) -> np.ndarray:
    """A polygon (k, 2) cut to an image: Sutherland and Hodgman (1974), side by side."""
    for axis, limit, sign in ((0, 0, 1), (0, extent[0], -1), (1, 0, 1), (1, extent[1], -1)):
        if not len(ring):
            break
        distance = sign * (ring[:, axis] - limit)
        following, after = np.roll(ring, -1, axis=0), np.roll(distance, -1)
        kept: list[np.ndarray] = []
        for begin, end, here, there in zip(ring, following, distance, after, strict=True):
            if here >= 0:
                kept.append(begin)
            if (here >= 0) != (there >= 0):
                kept.append(begin + (end - begin) * here / (here - there))
        ring = np.array(kept).reshape(-1, 2)
    return ring
