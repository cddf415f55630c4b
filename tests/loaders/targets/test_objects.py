from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from patchnpack import Boxes, Keypoints, Polygons
from patchnpack.loaders import BadImage
from patchnpack.loaders.targets.target import Source
from patchnpack.packer.geometry import Geometry
from tests.loaders.targets.carried import npy, value_of

SOURCE = Source(100, 80)
_BOXES: Any = Boxes  # for arguments of types that they do not take
_KEYPOINTS: Any = Keypoints
_POLYGONS: Any = Polygons
# The left half, at half its size, in 2 x 2 patches of 16 pixels: 25 x 40 pixels, cut to 25 x 32 by 4 at the top.
GEOMETRY = Geometry((100, 80), (0, 0, 50, 80), (25, 40), (False, False), (2, 2), 16)


def _found(target: Any, source: Source = SOURCE, geometry: Geometry = GEOMETRY, **members: Any) -> Any:
    objects = target.placed(target.decoded(members.get, source), source, geometry, "bicubic")
    return target.finished(objects, geometry)


@pytest.mark.parametrize(
    ("target", "box"),
    [
        (Boxes("json:objects"), [10, 20, 30, 40]),
        (Boxes("json:objects", format="xywh"), [10, 20, 20, 20]),
        (Boxes("json:objects", format="cxcywh"), [20, 30, 20, 20]),
        (Boxes("json:objects", normalized=True), [0.1, 0.25, 0.3, 0.5]),
    ],
)
def test_boxes_of_every_format_are_the_same(target: Boxes, box: list[float]) -> None:
    found = _found(target, json={"objects": [box]})
    assert np.allclose(found.boxes, [[5, 6, 15, 16]])
    assert found.labels.tolist() == [-100]


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("json:a.b", {"a": {"b": [[10, 20, 30, 40]]}}),
        ("json:a.b", {"a.b": [[10, 20, 30, 40]]}),
        ("json:a.b", {"a": [{"b": [10, 20, 30, 40]}]}),
        ("json:a", value_of({"a": [[10, 20, 30, 40]]})),
        ("json", [[10, 20, 30, 40]]),
        ("json", np.array([[10, 20, 30, 40]], np.float32)),
        ("json", npy(np.array([[10, 20, 30, 40]]))),
        ("json", "[[10, 20, 30, 40]]"),
        ("json", ((10, 20, 30, 40),)),
    ],
)
def test_boxes_are_found_in_fields_records_and_arrays(member: str, value: Any) -> None:
    assert np.allclose(_found(Boxes(member), json=value).boxes, [[5, 6, 15, 16]])


def test_boxes_are_clipped_and_those_outside_left_out_with_their_classes() -> None:
    boxes = [[-10, -10, 20, 20], [60, 0, 90, 70], [10, 10, 10, 50], [0, 0, 100, 80], [0, 0, 10, 8]]
    target = Boxes("json:b", labels="json:c", classes=["cat", "dog"])
    found = _found(target, json={"b": boxes, "c": ["dog", "cat", 0, "1", None]})
    assert np.allclose(found.boxes, [[0, 0, 10, 6], [0, 0, 25, 32]])
    assert found.index.tolist() == [0, 3]
    assert found.labels.tolist() == [1, 1]


def test_min_visible_is_a_share_of_the_mapped_area() -> None:
    # Of the first box half is visible, of the second a quarter.
    boxes = {"b": [[40, 20, 60, 40], [45, 20, 65, 40]]}
    assert _found(Boxes("json:b", min_visible=0.5), json=boxes).index.tolist() == [0]
    assert _found(Boxes("json:b", min_visible=0.25), json=boxes).index.tolist() == [0, 1]


def test_no_objects_are_an_empty_list() -> None:
    found = _found(Boxes("json:b", labels="json:c"), json={"b": [], "c": []})
    assert (len(found), found.boxes.shape) == (0, (0, 4))
    assert len(_found(Polygons("json:b"), json={"b": []})) == 0
    assert len(_found(Keypoints("json:b"), json={"b": []})) == 0


def test_polygons_stay_while_an_area_of_them_is_visible() -> None:
    around = [[-10, -10], [200, -10], [200, 200], [-10, 200]]  # no point of it is visible, and it covers the image
    flat = [10, 20, 30, 20, 30, 40]
    outside = [[60, 0], [90, 0], [90, 70]]
    line = [[0, 0], [10, 20], [20, 40]]
    found = _found(Polygons("json:p", labels="json:c"), json={"p": [around, flat, outside, line], "c": [4, 5, 6, 7]})
    assert found.index.tolist() == [0, 1]
    assert found.labels.tolist() == [4, 5]
    assert found.lengths is not None
    assert found.lengths.tolist() == [4, 3]
    assert found.visible is not None
    assert found.visible.tolist() == [False] * 4 + [True] * 3
    assert found.points is not None
    assert np.allclose(found.points[4:], [[5, 6], [15, 6], [15, 16]])


def test_the_outlines_of_one_object_are_polygons_with_one_index() -> None:
    rings = [[10, 20, 30, 20, 30, 40], [0, 20, 5, 20, 5, 40, 0, 40]]
    found = _found(Polygons("json:o.s", labels="json:o.c"), json={"o": [{"s": rings, "c": 3}]})
    assert (found.index.tolist(), found.labels.tolist()) == ([0, 0], [3, 3])
    points = [[[10, 20], [30, 20], [30, 40]], [[0, 20], [5, 20], [5, 40], [0, 40]]]
    assert _found(Polygons("json:o"), json={"o": [points]}).index.tolist() == [0, 0]


def test_a_polygon_of_little_area_inside_is_left_out() -> None:
    square = {"p": [[40, 20, 60, 20, 60, 40, 40, 40]]}
    assert len(_found(Polygons("json:p", min_visible=0.5), json=square)) == 1
    assert len(_found(Polygons("json:p", min_visible=0.6), json=square)) == 0


def test_keypoints_keep_their_order_and_say_which_are_visible() -> None:
    people = [[10, 20, 2, 90, 20, 2, 0, 0, 0], [90, 20, 2, 95, 20, 1, 0, 0, 0]]
    found = _found(Keypoints("json:k", format="xyv"), json={"k": people})
    assert found.index.tolist() == [0]
    assert found.points is not None
    assert np.allclose(found.points[0], [5, 6])
    assert found.visible is not None
    assert found.visible.tolist() == [True, False, False]
    assert found.lengths is not None
    assert found.lengths.tolist() == [3]


def test_one_point_per_object_needs_no_list() -> None:
    assert _found(Keypoints("json:k"), json={"k": [[10, 20], [90, 20]]}).index.tolist() == [0]


def test_orientation_turns_points_unless_they_are_upright() -> None:
    turned = Source(100, 80, 6)  # stored as 80 x 100
    whole = Geometry((100, 80), (0, 0, 100, 80), (100, 80), (False, False), (7, 5), 16)
    assert _found(Boxes("json:b"), turned, whole, json={"b": [[20, 10, 40, 30]]}).boxes.tolist() == [[70, 20, 90, 40]]
    upright = Boxes("json:b", upright=True)
    assert _found(upright, turned, whole, json={"b": [[20, 10, 40, 30]]}).boxes.tolist() == [[20, 10, 40, 30]]
    share = Boxes("json:b", normalized=True)
    assert np.allclose(_found(share, turned, whole, json={"b": [[0.25, 0.1, 0.5, 0.3]]}).boxes, [[70, 20, 90, 40]])


BOX = [[1, 2, 3, 4]]
BAD: dict[str, tuple[Any, Any, str]] = {
    "missing member": (Boxes("json:b"), None, "it has no .json member; an image without objects has an empty list"),
    "missing field": (
        Boxes("json:a.b"),
        {"a": {}},
        "'a.b' of its .json member: there is no field 'b'; an image without",
    ),
    "not JSON": (Boxes("json:b"), b"{", "its .json member cannot be read: Expecting property name"),
    "deep JSON": (Boxes("json:b"), b"[" * 100_000, "its .json member cannot be read: "),
    "no list": (
        Boxes("json:b"),
        {"b": 3},
        "'b' of its .json member is of type int; it must be a list with one value",
    ),
    "three numbers": (
        Boxes("json:b"),
        {"b": [[1, 2, 3]]},
        r"box 0 is \[1, 2, 3\]; it must be four finite numbers, xyxy",
    ),
    "NaN": (Boxes("json:b"), b'{"b": [[1, 2, 3, NaN]]}', r"box 0 is \[1, 2, 3, nan\]; it must be four finite numbers"),
    "text": (Boxes("json:b"), {"b": ["1,2,3,4"]}, "box 0 is '1,2,3,4'; it must be four finite numbers"),
    "ragged": (Boxes("json:b"), {"b": [[1, 2, [3], 4]]}, r"box 0 is \[1, 2, \[3\], 4\]; it must be four"),
    "inverted": (
        Boxes("json:b"),
        {"b": [[3, 4, 1, 9]]},
        "whose width or height is negative; give format='xywh' or 'cxc",
    ),
    "negative side": (
        Boxes("json:b", format="xywh"),
        {"b": [[3, 4, -1, 9]]},
        "width or height is negative; correct it",
    ),
    "classes are missing": (
        Boxes("json:b", labels="json:c"),
        {"b": BOX, "c": []},
        "has 0 values for 1 object; give one for each",
    ),
    "a class beyond the head": (
        Boxes("json:b", labels="json:c", num_classes=3),
        {"b": BOX, "c": [3]},
        "the class of object 0 is 3, and num_classes is 3; correct the label, or give more classes",
    ),
    "a negative class": (Boxes("json:b", labels="json:c"), {"b": BOX, "c": [-1]}, "classes are numbered from 0"),
    "an unknown class": (
        Boxes("json:b", labels="json:c", classes=["cat", "dog"]),
        {"b": BOX, "c": ["Cat"]},
        "is 'Cat', which is neither a whole number nor a known class; classes has 'cat', and this is 'Cat'",
    ),
    "a number beyond the classes": (
        Boxes("json:b", labels="json:c", classes=["cat", "dog"]),
        {"b": BOX, "c": [2]},
        "is 2, which is neither a whole number nor a known class; classes has 2 others: cat, dog",
    ),
    "two points": (Polygons("json:b"), {"b": [[1, 2, 3, 4]]}, "polygon 0 is .* it must be at least three points"),
    "run lengths": (
        Polygons("json:b"),
        {"b": [{"counts": "x"}]},
        "polygon 0 is {'counts': 'x'}; run lengths are not read",
    ),
    "odd numbers": (
        Keypoints("json:b"),
        {"b": [[1, 2, 3]]},
        r"the points of object 0 are \[1, 2, 3\]; they must be finit",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_objects_that_cannot_be_used_say_why(kind: str) -> None:
    target, value, message = BAD[kind]
    with pytest.raises(BadImage, match=message) as caught:
        target.decoded({"json": value}.get, SOURCE)
    assert caught.value.stage == "targets"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: _BOXES(""), "member is ''; it must name a member of the sample, such as 'json:objects'"),
        (lambda: _BOXES("json:"), "member is 'json:', which names no field; give one: 'json:FIELD'"),
        (lambda: _BOXES("json:b", format="coco"), "format is 'coco'; it must be one of 'xyxy', 'xywh', 'cxcywh'"),
        (lambda: _BOXES("json:b", min_visible=2), "min_visible is 2; it must be from 0 to 1"),
        (lambda: _BOXES("json:b", classes=["a"]), "classes= names the classes of labels, and labels is None"),
        (lambda: _BOXES("json:b", labels="json:c", classes=3), "classes is 3; give the names of the classes as a list"),
        (lambda: _BOXES("json:b", labels=["json:c"]), "labels is ..json:c..; it must name a member"),
        (lambda: _BOXES("json:b", normalized=1), "normalized is 1; it must be True or False"),
        (lambda: _KEYPOINTS("json:b", format="xyz"), "format is 'xyz'; it must be one of 'xy', 'xyv'"),
        (lambda: _POLYGONS("json:b", min_visible="1"), "min_visible is '1'; it must be from 0 to 1"),
    ],
)
def test_a_mistake_in_objects_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
