"""AVIF and HEIC (ISO/IEC 23008-12): the header from the boxes; pixels from libavif, or from libheif in pillow-heif."""

from __future__ import annotations

import functools
import importlib.util
import re
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from patchnpack.loaders.errors import MAX_PIXELS
from patchnpack.loaders.imaging.readers.boxed.boxes import Box, boxes, sample_count
from patchnpack.loaders.imaging.readers.codecs import codec
from patchnpack.loaders.imaging.readers.facts import Facts, Run, unsupported_kind, whole_dtype

_IMAGES = {b"av01", b"hvc1", b"grid", b"iovl", b"iden", b"jpeg", b"j2k1", b"unci"}  # types of items with pixels
# EXIF orientation by quarter turns to the left and axis of the mirror behind them; -1 is no mirror.
_ORIENTATIONS = {
    **{(turns, -1): number for turns, number in enumerate((1, 8, 3, 6))},
    **{(turns, 0): number for turns, number in enumerate((4, 5, 2, 7))},
    **{(turns, 1): number for turns, number in enumerate((2, 7, 4, 5))},
}
_ALPHA = re.compile(rb"auxiliary:alpha|auxid:1\0")  # URNs of an alpha image, of AVIF and HEIC
MISSING = "HEIC images are read with pillow-heif: pip install 'patchnpack[heif]'"


class _Item(NamedTuple):
    """What the boxes say of the item that is shown first."""

    width: int
    height: int
    bits: int
    channels: int
    turns: int  # quarter turns to the left
    mirror: int  # axis of the mirror, -1 for none
    bands: int  # channels and alpha


@functools.cache
def has_heif() -> bool:
    """Whether pillow-heif is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


def avif_header(data: bytes) -> Facts:
    """What the boxes say. The size is the stored one; turns and mirrors become the orientation, as in PIL.

    Raises:
        ValueError, struct.error: the data end early or are damaged.
    """
    item, pages = _first_item(data)
    orientation = _ORIENTATIONS[item.turns, item.mirror]
    return _facts(item.width, item.height, pages, orientation, item)


def avif_runs(data: bytes) -> Iterator[Run]:
    """The frames of a sequence, or else the primary image: libavif decodes no other."""
    frames = sample_count(data)
    facts = avif_header(data)
    pixels = frames * facts.width * facts.height
    if frames > 1 and pixels > MAX_PIXELS:  # imagecodecs decodes all of them at once
        yield (
            ValueError(f"its {frames} frames have {pixels} pixels; an AVIF may have at most {MAX_PIXELS} in all"),
            frames,
        )
    else:
        yield facts, max(1, frames)


def heic_header(data: bytes) -> Facts:
    """What the boxes say. The size is upright, since libheif turns the pixels.

    Raises:
        ValueError, struct.error: the data end early or are damaged.
    """
    return _heic_facts(*_first_item(data))


def heic_runs(data: bytes) -> Iterator[Run]:
    """The primary image, then the others that a viewer shows. Frames of a sequence are not read."""
    found, primary = _meta(data)
    for number in sorted(_shown(data, found, primary), key=lambda number: number != primary):
        try:
            item = _item(data, list(_properties(data, found[b"iprp"], number)))
            yield _heic_facts(item._replace(bands=item.bands + _has_alpha(data, found, number))), 1
        except (ValueError, struct.error, IndexError) as error:
            yield error, 1


def _heic_facts(item: _Item, pages: int = 1) -> Facts:
    size = (item.height, item.width) if item.turns % 2 else (item.width, item.height)
    return _facts(*size, pages, 1, item)


def _facts(width: int, height: int, pages: int, orientation: int, item: _Item) -> Facts:
    unsupported = unsupported_kind(item.channels, item.bits)
    return Facts(width, height, pages, orientation, unsupported, item.bands, whole_dtype(item.bits), item.bits)


def decode_avif(data: bytes) -> np.ndarray:
    """The stored pixels of the primary item, (height, width) or (height, width, C), uint8 or, of more bits, uint16."""
    if data[8:12] == b"avis":  # a sequence of frames, all of which would be decoded: ask for the item instead
        data = data[:8] + b"avif" + data[12:]
    pixels: np.ndarray = codec("avif_decode")(data, numthreads=1)
    return pixels


def decode_heic(data: bytes) -> np.ndarray | Image.Image:
    """The upright pixels of the primary item, as `heic_frames` gives them.

    Raises:
        ValueError: pillow-heif is not installed, or cannot decode the image.
    """
    return next(heic_frames(data, (0,)))


def avif_frames(data: bytes, wanted: Sequence[int]) -> Iterator[np.ndarray]:
    """The stored pixels of the frames `wanted`; see `avif_runs`."""
    if sample_count(data) < 2:
        pixels = decode_avif(data)[None]
    else:  # one by one, imagecodecs 2026.3.6 writes outside its memory
        pixels = codec("avif_decode")(data[:8] + b"avis" + data[12:], numthreads=1)
    for number in wanted:
        if number >= len(pixels):
            raise ValueError(f"the AVIF has {len(pixels)} frames, not frame {number}")
        yield pixels[number]


def heic_frames(data: bytes, wanted: Sequence[int]) -> Iterator[np.ndarray | Image.Image]:
    """The upright pixels of the images `wanted`, of which the primary one is the first; uint16 arrays of more bits.

    Raises:
        ValueError: pillow-heif is not installed, or cannot decode the image.
    """
    if not has_heif():
        raise ValueError(MISSING)
    import pillow_heif

    try:
        images = pillow_heif.open_heif(data, convert_hdr_to_8bit=False, hdr_to_16bit=False)
        order = sorted(range(len(images)), key=lambda number: number != images.primary_index)
        for number in wanted:
            image = images[order[number]]
            pixels: np.ndarray | Image.Image = np.asarray(image) if image.info["bit_depth"] > 8 else image.to_pillow()
            yield pixels
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def _first_item(data: bytes) -> tuple[_Item, int]:
    """The primary item, and the number of items or frames that a viewer shows."""
    found, primary = _meta(data)
    properties = list(_properties(data, found[b"iprp"], primary))
    item = _item(data, properties)
    item = item._replace(bands=item.bands + _has_alpha(data, found, primary))
    return item, max(1, sample_count(data), len(_shown(data, found, primary)))


def _meta(data: bytes) -> tuple[dict[bytes, Box], int]:
    """The boxes that describe the items, and the number of the primary item."""
    meta = next((box for box in boxes(data) if box.kind == b"meta"), None)
    if meta is None:
        raise ValueError("the file has no image item")
    found = {box.kind: box for box in boxes(data, meta.begin + 4, meta.end)}
    if b"pitm" not in found or b"iprp" not in found:
        raise ValueError("the file has no primary image")
    return found, _number(data, found[b"pitm"].begin + 4, 2 if data[found[b"pitm"].begin] == 0 else 4)


def _item(data: bytes, properties: list[Box]) -> _Item:
    width = height = turns = 0
    bits, channels, mirror = 8, 1, -1
    for kind, at, end in properties:
        if kind == b"ispe":
            width, height = struct.unpack_from(">II", data, at + 4)
        elif kind == b"clap":  # the part that is shown, as fractions
            across, by, down, by_down = struct.unpack_from(">IIII", data, at)
            width, height = across // max(1, by), down // max(1, by_down)
        elif kind == b"pixi":
            channels = data[at + 4]
            bits = max(data[at + 5 : min(end, at + 5 + channels)], default=8)
        elif kind == b"av1C":
            bits = max(bits, 8 + (data[at + 2] >> 6 & 1) * (2 + (data[at + 2] >> 5 & 1) * 2))
        elif kind == b"hvcC":
            bits = max(bits, 8 + (data[at + 17] & 7))
        elif kind == b"irot":
            turns = data[at] & 3
        elif kind == b"imir":
            mirror = data[at] & 1
    if not (width and height):
        raise ValueError("the file does not say the size of its primary image")
    return _Item(width, height, bits, channels, turns, mirror, channels)


def _properties(data: bytes, iprp: Box, item: int) -> Iterator[Box]:
    """The properties of an item, in order."""
    inner = list(boxes(data, iprp.begin, iprp.end))
    known = [box for container in inner if container.kind == b"ipco" for box in boxes(data, *container[1:])]
    for table in inner:
        if table.kind != b"ipma":
            continue
        version, wide = data[table.begin], data[table.begin + 3] & 1
        at, id_bytes, index_bytes = table.begin + 8, 4 if version else 2, 2 if wide else 1
        for _ in range(_number(data, table.begin + 4, 4)):
            number, count, at = _number(data, at, id_bytes), _number(data, at + id_bytes, 1), at + id_bytes + 1
            if number == item:
                for each in range(count):
                    index = _number(data, at + each * index_bytes, index_bytes) & (0x7FFF if wide else 0x7F)
                    if 0 < index <= len(known):
                        yield known[index - 1]
            at += count * index_bytes


def _shown(data: bytes, found: dict[bytes, Box], primary: int) -> list[int]:
    """Numbers, ascending, of the images that are neither hidden nor a part, thumbnail or description of another."""
    items = set(_visible_items(data, found[b"iinf"])) if b"iinf" in found else set()
    if b"iref" in found:
        iref = found[b"iref"]
        size = 4 if data[iref.begin] else 2
        for box in boxes(data, iref.begin + 4, iref.end):
            of, count = _number(data, box.begin, size), _number(data, box.begin + size, 2)
            begin = box.begin + size + 2
            if box.kind == b"dimg":
                items -= {_number(data, begin + i * size, size) for i in range(count)}
            elif box.kind in (b"thmb", b"auxl", b"cdsc", b"prem"):
                items.discard(of)
    return sorted(items | {primary})


def _has_alpha(data: bytes, found: dict[bytes, Box], primary: int) -> bool:
    """Whether an auxiliary image of the primary one is its alpha."""
    if b"iref" not in found:
        return False
    iref = found[b"iref"]
    size = 4 if data[iref.begin] else 2
    for box in boxes(data, iref.begin + 4, iref.end):
        if box.kind == b"auxl" and _number(data, box.begin + size + 2, size) == primary:
            described = _properties(data, found[b"iprp"], _number(data, box.begin, size))
            if any(kind == b"auxC" and _ALPHA.search(data[at:end]) for kind, at, end in described):
                return True
    return False


def _visible_items(data: bytes, iinf: Box) -> Iterator[int]:
    for box in boxes(data, iinf.begin + (6 if data[iinf.begin] == 0 else 8), iinf.end):
        version, hidden = data[box.begin], data[box.begin + 3] & 1
        size = 2 if version == 2 else 4
        kind = data[box.begin + 6 + size : box.begin + 10 + size]
        if box.kind == b"infe" and version >= 2 and not hidden and kind in _IMAGES:
            yield _number(data, box.begin + 4, size)


def _number(data: bytes, at: int, size: int) -> int:
    if at + size > len(data):
        raise ValueError("the file ends in its header")
    return int.from_bytes(data[at : at + size], "big")
