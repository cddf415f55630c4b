"""`Target`: what a loader carries beside each image, and the checks of the option that names them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from patchnpack.loaders.errors import BadImage
from patchnpack.packer.checks import check_flag, kind_of, shown
from patchnpack.packer.config import Interpolation
from patchnpack.packer.geometry import Geometry

STAGE = "targets"  # at which an image with a bad target is bad

BY_MEMBERS = (
    "targets= is given, and samples hold several images beside each other, as sample='members' joins them, so that a "
    "mask or a box could be of any of these: give each image a sample of its own with its targets, and join these with "
    "sample='key:REGEX'"
)

Read = Callable[[str], Any]  # from the name of a member to its value, None where the sample lacks it


class Source(NamedTuple):
    """The image that a target belongs to.

    Attributes:
        width, height: upright size in pixels.
        orientation: EXIF orientation of the stored image, 1 to 8.
    """

    width: int
    height: int
    orientation: int = 1

    @property
    def stored(self) -> tuple[int, int]:
        """(width, height) of the image as it is stored."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


class Target(Protocol):
    """What `targets=` names: where a target lies, and how it follows its image. See `DenseTarget`, `ObjectTarget`."""

    @property
    def upright(self) -> bool:
        """Whether files and coordinates are upright although the image is stored in another orientation."""
        ...

    def member_fields(self) -> tuple[str, ...]:
        """Return the names of the fields that name members: "member" or "member:path"."""
        ...

    def decoded(self, read: Read, source: Source) -> Any:
        """Return the target of a whole image. Raises BadImage."""
        ...

    def placed(self, decoded: Any, source: Source, geometry: Geometry, interpolation: Interpolation) -> Any:
        """Return the target of a sized and mirrored image, in its pixels, before it is cut or padded to its grid."""
        ...


def bad_target(reason: str) -> BadImage:
    """Return the `BadImage` of a target that cannot be used."""
    return BadImage(reason, STAGE)


def member_of(spec: str) -> str:
    """Return the member that "member" or "member:path" names.

    >>> member_of("json:objects.bbox"), member_of(".seg.png")
    ('json', 'seg.png')
    """
    return spec.removeprefix(".").partition(":")[0]


def members_of(target: Any) -> tuple[str, ...]:
    """Return the members that a target is read from."""
    specs = (getattr(target, name) for name in target.member_fields())
    return tuple(dict.fromkeys(member_of(spec) for spec in specs if spec is not None))


def renamed(target: Any, find: Callable[[str], str]) -> Any:
    """Return a target whose members are spelled as `find` says."""
    changes = {}
    for name in target.member_fields():
        if (spec := getattr(target, name)) is not None:
            member, colon, path = spec.removeprefix(".").partition(":")
            changes[name] = find(member) + colon + path
    return dataclasses.replace(target, **changes)


def checked_targets(targets: object) -> dict[str, Any]:
    """Return `targets` as a dict; {} for None.

    Raises:
        ValueError: it is no dict from names to targets.

    >>> checked_targets({"mask": "seg.png"})
    Traceback (most recent call last):
        ...
    ValueError: targets['mask'] is 'seg.png'; give a target of it: Mask('seg.png'), Map, Boxes, Polygons or Keypoints
    """
    if targets is None:
        return {}
    if not isinstance(targets, Mapping):
        raise ValueError(
            f"targets is {shown(targets)}; give a dict from a name of your own to a target: {{'mask': Mask('seg.png')}}"
        )
    for name, target in targets.items():
        if not isinstance(name, str) or not name:
            raise ValueError(f"targets has the name {shown(name)}; each must be a text, such as 'mask'")
        if not hasattr(type(target), "member_fields"):
            meant = f"Mask({target!r})" if isinstance(target, str) else "Mask('seg.png')"
            called = (
                f"call it: {target.__name__}('seg.png')"
                if isinstance(target, type)
                else (f"give a target of it: {meant}, Map, Boxes, Polygons or Keypoints")
            )
            raise ValueError(f"targets[{name!r}] is {shown(target)}; {called}")
    return dict(targets)


def check_member(name: str, spec: object, *, path: bool) -> None:
    """Raise ValueError unless `spec` names a member, with a path of fields where `path` allows it."""
    example = "'json:objects'" if path else "'seg.png'"
    if not isinstance(spec, str) or not member_of(spec):
        raise ValueError(f"{name} is {shown(spec)}; it must name a member of the sample, such as {example}")
    if ":" in spec and not path:
        raise ValueError(
            f"{name} is {spec!r}; a mask or a map is a whole member: give {member_of(spec)!r}, without a field"
        )
    if ":" in spec and not spec.partition(":")[2].strip("."):
        raise ValueError(f"{name} is {spec!r}, which names no field; give one: {member_of(spec) + ':FIELD'!r}")


def check_upright(upright: object) -> None:
    """Raise ValueError unless `upright` is True or False."""
    check_flag("upright", upright, "True says that a target is upright although its image is stored otherwise")


def texts_of(targets: Mapping[str, Any]) -> dict[str, str]:
    """Return a text of each target's settings, which is equal in every process, for a saved state."""
    return {f"targets.{name}": settings_of(target) for name, target in targets.items()}


def settings_of(target: Any) -> str:
    """Return a target as a text; a function by its name."""
    values = {field.name: getattr(target, field.name) for field in dataclasses.fields(target)}
    shown_values = (
        f"{name}={getattr(value, '__qualname__', kind_of(value)) if callable(value) else repr(value)}"
        for name, value in values.items()
    )
    return f"{type(target).__name__}({', '.join(shown_values)})"


def turned_points(points: np.ndarray, source: Source, *, upright: bool) -> np.ndarray:
    """Turn points (n, 2) of a stored image as its orientation turns its pixels; upright ones stay.

    >>> turned_points(np.array([[0.0, 1.0]]), Source(3, 4, 6), upright=False)
    array([[2., 0.]])
    """
    turn = 1 if upright else source.orientation
    points = np.asarray(points, np.float64)
    if turn >= 5:
        points = points[:, ::-1]
    x, y = points[:, 0], points[:, 1]
    if turn in (2, 3, 6, 7):
        x = source.width - x
    if turn in (3, 4, 7, 8):
        y = source.height - y
    return np.stack([x, y], axis=1)
