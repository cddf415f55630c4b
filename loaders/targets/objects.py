"""Objects of an image, in numpy: boxes or points with a class each; what boxes, polygons and keypoints share."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from patchnpack.loaders.labels.classes import Classes, class_table, listed_classes, remedy_of_unknown
from patchnpack.loaders.labels.label_rule import whole_number
from patchnpack.loaders.targets.target import (
    Read,
    Source,
    bad_target,
    check_member,
    check_upright,
    member_of,
    turned_points,
)
from patchnpack.packer.checks import check_flag, check_real, check_whole, kind_of, shown
from patchnpack.packer.config import Interpolation
from patchnpack.packer.geometry import Geometry
from patchnpack.packer.text import counted

# n objects of an image, m points of all objects together

NO_LABEL = -100

Move = Callable[[np.ndarray], np.ndarray]  # of points (k, 2)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Objects:
    """The objects of one image; a `transform` of three arguments gets them in pixels of the sized, mirrored image.

    Attributes:
        labels: int64 (n,), class of each object; -100 without one.
        index: int64 (n,), the place of each object in the file.
        boxes: float64 (n, 4), (left, top, right, bottom); None where objects are points.
        points: float64 (m, 2), points of all objects; None where objects are boxes.
        visible: bool (m,), whether each point is annotated and lies in the image; None likewise.
        lengths: int64 (n,), points of each object; None likewise.
    """

    labels: np.ndarray
    index: np.ndarray
    boxes: np.ndarray | None = None
    points: np.ndarray | None = None
    visible: np.ndarray | None = None
    lengths: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def moved(self, move: Move) -> Objects:
        """Return the objects with all points and corners of boxes moved; boxes stay (left, top, right, bottom)."""
        if self.points is not None:
            return replace(self, points=move(self.points))
        assert self.boxes is not None
        corners = move(self.boxes.reshape(-1, 2)).reshape(-1, 2, 2)
        return replace(self, boxes=np.concatenate([corners.min(1), corners.max(1)], axis=1))

    def take(self, kept: np.ndarray) -> Objects:
        """Return the objects where `kept`, bool (n,), is True."""
        taken = {"labels": self.labels[kept], "index": self.index[kept]}
        if self.boxes is not None:
            return Objects(**taken, boxes=self.boxes[kept])
        assert self.points is not None
        assert self.visible is not None
        assert self.lengths is not None
        points = np.repeat(kept, self.lengths)
        return Objects(**taken, points=self.points[points], visible=self.visible[points], lengths=self.lengths[kept])

    def each(self) -> list[np.ndarray]:
        """Return the points of each object, (k, 2)."""
        assert self.points is not None
        assert self.lengths is not None
        return np.split(self.points, np.cumsum(self.lengths)[:-1]) if len(self) else []


@dataclass(frozen=True)
class ObjectTarget:
    """What `Boxes`, `Polygons` and `Keypoints` share: where the objects and their classes lie.

    Subclasses turn one value of a file into objects (`_parsed`) and decide which objects stay (`kept`).
    """

    member: str
    labels: str | None = field(default=None, kw_only=True)
    classes: Classes = field(default=None, kw_only=True)
    num_classes: int | None = field(default=None, kw_only=True)
    normalized: bool = field(default=False, kw_only=True)
    upright: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        check_member("member", self.member, path=True)
        if self.labels is not None:
            check_member("labels", self.labels, path=True)
        if self.classes is not None and self.labels is None:
            raise ValueError("classes= names the classes of labels, and labels is None; give labels='json:FIELD'")
        if self.num_classes is not None:
            check_whole("num_classes", self.num_classes)
        check_flag("normalized", self.normalized, "True says that coordinates are shares of width and height, 0 to 1")
        check_upright(self.upright)
        if not (self.classes is None or isinstance(self.classes, Mapping)):
            classes = self.classes if isinstance(self.classes, str) else listed_classes(self.classes)
            object.__setattr__(self, "classes", class_table(classes))
        elif self.classes is not None:
            object.__setattr__(self, "classes", class_table(self.classes))

    def member_fields(self) -> tuple[str, ...]:
        """Return the fields that name members."""
        return ("member", "labels")

    @property
    def has_boxes(self) -> bool:
        """Whether the objects are boxes; otherwise they are points."""
        return False

    @property
    def has_outlines(self) -> bool:
        """Whether the points of an object are its outline."""
        return False

    def decoded(self, read: Read, source: Source) -> Objects:
        """Return the objects of a whole image, in pixels of the upright image. Raises BadImage."""
        values = read_field(read, self.member)
        try:
            objects = self._parsed(values)
        except (TypeError, ValueError, OverflowError) as error:
            raise bad_target(f"{_named(self.member)}: {error}") from error
        if self.labels is not None:
            labels = self._classes_of(read_field(read, self.labels), len(values))
            objects = replace(objects, labels=labels[objects.index])
        if self.normalized:
            shape = np.array(source._replace(orientation=1 if self.upright else source.orientation).stored, np.float64)
            objects = objects.moved(lambda points: points * shape)
        return objects.moved(lambda points: turned_points(points, source, upright=self.upright))

    def placed(self, decoded: Objects, source: Source, geometry: Geometry, interpolation: Interpolation) -> Objects:
        """Return the objects of the sized and mirrored image, in its pixels."""
        return decoded.moved(lambda points: geometry.to_image(points) + geometry.offset)

    def finished(self, objects: Objects, geometry: Geometry) -> Objects:
        """Return the objects of the packed image, cut to its extent; what lies outside is left out."""
        left, top = geometry.offset
        return self.kept(objects.moved(lambda points: points - (left, top)), geometry.extent)

    def kept(self, objects: Objects, extent: tuple[int, int]) -> Objects:
        """Return the objects that lie in an image of (width, height) pixels."""
        raise NotImplementedError

    def _parsed(self, values: Sequence[Any]) -> Objects:
        """Return the objects of a file's values, in its own coordinates. Raises ValueError."""
        raise NotImplementedError

    def _classes_of(self, values: Sequence[Any], count: int) -> np.ndarray:
        assert self.labels is not None
        if len(values) != count:
            raise bad_target(
                f"{_named(self.labels)} has {counted(len(values), 'value')} for {counted(count, 'object')}; give one "
                "for each"
            )
        labels = np.full(count, NO_LABEL, np.int64)
        for i, value in enumerate(values):
            if (number := self._class_of(value, i)) is not None:
                labels[i] = number
        return labels

    def _class_of(self, value: Any, i: int) -> int | None:
        """Return the class of object i, None where it has none."""
        assert self.labels is not None
        where = f"{_named(self.labels)}: the class of object {i}"
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return None
        text = str(
            int(value) if isinstance(value, float | np.floating) and float(value).is_integer() else value
        ).strip()
        table: Mapping[str, int] = self.classes or {}  # type: ignore[assignment]  # `__post_init__` made it a dict
        number = table.get(text)
        if number is None:
            number = whole_number(text)
            if number is not None and table and number not in table.values():
                number = None
            if number is None:
                remedy = remedy_of_unknown(text, table) if table else "give classes=, a list of their names"
                raise bad_target(
                    f"{where} is {shown(value, 60)}, which is neither a whole number nor a known class; {remedy}"
                )
        if number < 0 or number > np.iinfo(np.int64).max:
            raise bad_target(f"{where} is {shown(value, 60)}; classes are numbered from 0")
        if self.num_classes is not None and number >= self.num_classes:
            raise bad_target(
                f"{where} is {number}, and num_classes is {self.num_classes}; correct the label, or give more classes"
            )
        return number


def check_share(name: str, value: object) -> None:
    """Raise ValueError unless `value` is a share from 0 to 1."""
    wanted = "from 0 to 1, the least share of an object's area that must be visible"
    check_real(name, value, wanted)
    if not 0 <= value <= 1:  # type: ignore[operator]  # it is a number
        raise ValueError(f"{name} is {value}; it must be {wanted}")


def finite_numbers(value: Any, columns: int) -> np.ndarray | None:
    """Return the numbers of a value, float64 (k, columns); None if it holds anything else, NaN or infinity."""
    try:
        numbers = np.asarray(value)
    except ValueError:  # lists of several lengths
        return None
    if numbers.dtype.kind not in "iuf" and numbers.size:
        return None
    fits = numbers.size % columns == 0 if numbers.ndim == 1 else numbers.ndim == 2 and numbers.shape[1] == columns
    numbers = numbers.astype(np.float64)
    return numbers.reshape(-1, columns) if fits and np.isfinite(numbers).all() else None


def read_field(read: Read, spec: str) -> Sequence[Any]:
    """Return the list that "member" or "member:path" names, one value per object.

    A path names fields below fields, with dots; of a list of records, it names the field of each.

    Raises:
        BadImage: there is no such member or field, it is not JSON, or it holds no list.

    >>> record = {"objects": [{"bbox": [0, 0, 2, 3]}, {"bbox": [1, 1, 4, 4]}]}
    >>> read_field({"json": record}.get, "json:objects.bbox")
    [[0, 0, 2, 3], [1, 1, 4, 4]]
    """
    member, path = member_of(spec), spec.partition(":")[2]
    value = read(member)
    if value is None:
        raise bad_target(f"it has no .{member} member; an image without objects has an empty list")
    if isinstance(value, bytes | bytearray | str):
        value = _loaded(value, member)
    if path:
        value = _below(value, path, spec)
    if hasattr(value, "tolist"):  # an array or a tensor
        value = value.tolist()
    if isinstance(value, tuple):
        value = list(value)
    if not isinstance(value, list):
        raise bad_target(f"{_named(spec)} is of type {kind_of(value)}; it must be a list with one value per object")
    return value


def _loaded(data: bytes | bytearray | str, member: str) -> Any:
    if isinstance(data, bytes | bytearray) and data.startswith(b"\x93NUMPY"):
        try:
            return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise bad_target(f"its .{member} member cannot be read: {error}") from error
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:  # brackets nested thousands deep
        raise bad_target(f"its .{member} member cannot be read: {error}") from error


def _below(value: Any, path: str, spec: str) -> Any:
    if isinstance(value, Mapping) and path in value:
        return value[path]
    for name in path.split("."):
        try:
            value = [each[name] for each in value] if isinstance(value, list | tuple) else value[name]
        except (KeyError, TypeError, IndexError):
            raise bad_target(
                f"{_named(spec)}: there is no field {name!r}; an image without objects has an empty list there"
            ) from None
    return value


def _named(spec: str) -> str:
    member, _, path = spec.removeprefix(".").partition(":")
    return f"{path!r} of its .{member} member" if path else f"its .{member} member"
