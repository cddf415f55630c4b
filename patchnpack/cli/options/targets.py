"""The flags that name targets: `--mask NAME=MEMBER,fill=255` becomes a `Mask`."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from patchnpack.cli.options.flags import FieldFlag, takes
from patchnpack.cli.options.parsers import parse_function

if TYPE_CHECKING:
    from patchnpack.loaders.targets.target import Target

_NUMBERS = {"channels", "fill", "min_visible", "num_classes"}
_SWITCHES = {"normalized", "upright"}
_KINDS = {"mask": "Mask", "map": "Map", "boxes": "Boxes", "polygons": "Polygons", "keypoints": "Keypoints"}
_EXAMPLES = {
    "mask": "mask=seg.png,fill=255",
    "map": "depth=depth.png,dtype=uint16",
    "boxes": "boxes=json:objects.bbox,format=xywh,labels=json:objects.category_id",
    "polygons": "outlines=json:objects.segmentation",
    "keypoints": "joints=json:objects.keypoints,format=xyv",
}
_HELP = {
    "mask": "Mask in a member, as NAME=MEMBER[,KEY=VALUE...]",
    "map": "Map of measured values in a member",
    "boxes": "Boxes in a member",
    "polygons": "Outlines in a member",
    "keypoints": "Named points in a member",
}


def make_targets(**texts: list[str] | None) -> dict[str, Target]:
    """Return the targets that the flags name.

    Raises:
        ValueError: a text is malformed, an option is unknown or out of range, or two targets have one name.

    >>> make_targets(mask=["seg=seg.png,fill=0"], map=None)
    {'seg': Mask(member='seg.png', fill=0, dtype='uint8', num_classes=None, per_token=None, upright=False, decode=None)}
    """
    targets: dict[str, Target] = {}
    for kind, given in texts.items():
        for text in given or ():
            name, target = _parse_target(kind, text)
            if name in targets:
                raise ValueError(f"--{kind} is {text!r}, and {name!r} is a target already; give each a name of its own")
            targets[name] = target
    return targets


def _parse_target(kind: str, text: str) -> tuple[str, Target]:
    from patchnpack import loaders

    make = getattr(loaders, _KINDS[kind])
    name, equals, rest = text.partition("=")
    member, *options = rest.split(",")
    if not (name and equals and member) or "=" in member:
        raise ValueError(f"--{kind} is {text!r}; give NAME=MEMBER[,KEY=VALUE...], such as {_EXAMPLES[kind]}")
    fields = [field.name for field in dataclasses.fields(make) if field.name != "member"]
    values: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if key not in fields or not equals or key in values:
            fault = "twice" if key in values else f"which is not one of {', '.join(sorted(fields))} with a value"
            raise ValueError(f"--{kind} is {text!r}: it has {option!r}, {fault}; give KEY=VALUE, each once")
        values[key] = _parse_value(key, value, f"--{kind} is {text!r}")
    try:
        return name, make(member, **values)
    except (OSError, ValueError) as error:
        raise ValueError(f"--{kind} is {text!r}: {error}") from error


def _parse_value(key: str, text: str, where: str) -> Any:
    if key == "decode":
        return parse_function(text, f"{where}: decode")
    if key in _SWITCHES:
        if text not in ("true", "false"):
            raise ValueError(f"{where}: {key} is {text!r}; it must be true or false")
        return text == "true"
    if key not in _NUMBERS:
        return text
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{where}: {key} is {text!r}; it must be a number") from None
    return int(text) if math.isfinite(number) and text.lstrip("+-").isdecimal() else number


TARGET_FLAGS = {
    kind: FieldFlag(
        None,
        f"{_HELP[kind]}, such as {_EXAMPLES[kind]}; may be repeated.",
        list[str] | None,
        metavar="NAME=MEMBER",
    )
    for kind in _KINDS
}
takes_targets = takes("targets", TARGET_FLAGS, make_targets)
