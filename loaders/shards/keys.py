"""Keys of samples as names of tar members that webdataset reads back and that unpack safely, and their order."""

from __future__ import annotations

import re
from collections.abc import Container
from itertools import count

import xxhash

_DIGITS = re.compile(r"(\d+)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MAX_BYTES = 200  # of a folder or of a file's stem; file systems allow 255


def escape_key(key: str) -> str:
    """Return the key as the stem of a tar member: the same, if webdataset and file systems can have it as it is.

    Dots of the last part become underscores, because webdataset ends a key at the first dot. So do control characters,
    empty parts, and the parts "." and "..". Of the underscores that end a folder's name one is left, because webdataset
    skips folders called `__NAME__`. A part of more than 200 bytes is cut and ends in a digest.

    >>> escape_key("a.b/IMG.01"), escape_key("__x__/a"), escape_key("../a"), escape_key("")
    ('a.b/IMG_01', '__x_/a', '__/a', '_')
    """
    *folders, stem = _CONTROL.sub("_", key).split("/")
    folders = [folder.replace(".", "_") if folder in (".", "..") else folder for folder in folders]
    folders = [folder if folder in ("_", "__") else re.sub("__+$", "_", folder) for folder in folders]
    return "/".join(_shortened(part) or "_" for part in (*folders, stem.replace(".", "_")))


def escape_extension(name: str) -> str:
    """Return a member's name as the extension of a tar member.

    >>> escape_extension("seg.png"), escape_extension("image/encoded"), escape_extension("x__")
    ('seg.png', 'image_encoded', 'x_')
    """
    name = re.sub("__+$", "_", _CONTROL.sub("_", name).replace("/", "_"))
    return (name if len(name.encode("utf-8", "surrogateescape")) < 50 else _digest(name)) or "_"


def unused(name: str, used: Container[str]) -> str:
    """Return the name or, if it is used, the name with the first number that makes it unused.

    >>> unused("a", {"a", "a_2"})
    'a_3'
    """
    return name if name not in used else next(new for i in count(2) if (new := f"{name}_{i}") not in used)


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a key that sorts names as people do: runs of digits by their number.

    >>> sorted(["p10", "p2", "cover", "p2b", ""], key=natural_key)
    ['', 'cover', 'p2', 'p2b', 'p10']
    """
    parts = _DIGITS.split(name)
    return tuple((0, int(part), part) if i % 2 else (1, 0, part) for i, part in enumerate(parts) if part)


def _shortened(part: str) -> str:
    data = part.encode("utf-8", "surrogateescape")
    return part if len(data) <= _MAX_BYTES else f"{data[: _MAX_BYTES - 17].decode('utf-8', 'ignore')}-{_digest(part)}"


def _digest(text: str) -> str:
    return xxhash.xxh3_64_hexdigest(text.encode("utf-8", "surrogateescape"))
