"""GIF (GIF89a): frames are counted here; PIL reads header and pixels without a system library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from PIL import Image

from patchnpack.loaders.imaging.readers import by_pil
from patchnpack.loaders.imaging.readers.facts import Facts


def header(data: bytes) -> Facts:
    """Size and frames."""
    return by_pil.facts("Gif", data, _frames(data))


def decode(data: bytes) -> Image.Image:
    """The first frame."""
    return by_pil.decode("Gif", data)


def frames(data: bytes, wanted: Sequence[int]) -> Iterator[Image.Image]:
    """The frames `wanted`, ascending, composited."""
    return by_pil.frames("Gif", data, wanted)


def _frames(data: bytes) -> int:
    """Count image descriptors; of a damaged file, those before the damage."""
    frames, at = 0, 13 + _table(data[10]) if len(data) > 10 else 0
    while at < len(data):
        if data[at] == 0x2C:  # an image: descriptor, colour table, code size, blocks
            frames += 1
            at += 11 + _table(data[at + 9]) if at + 9 < len(data) else len(data)
        elif data[at] == 0x21:  # an extension: label, blocks
            at += 2
        else:  # the trailer, or damage
            break
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
    return max(1, frames)


def _table(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
