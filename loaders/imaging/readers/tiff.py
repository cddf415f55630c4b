"""TIFF 6.0 and BigTIFF: tags are read here; pixels come from libtiff in imagecodecs, as PIL would turn them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
from PIL import Image

from patchnpack.loaders.errors import MAX_BYTES
from patchnpack.loaders.imaging.exif import orientation
from patchnpack.loaders.imaging.readers import by_pil
from patchnpack.loaders.imaging.readers.codecs import codec
from patchnpack.loaders.imaging.readers.depth import turned
from patchnpack.loaders.imaging.readers.facts import Facts, Run, unsupported_kind
from patchnpack.packer import _turns
from patchnpack.packer.dtypes import holding

# h rows, w columns, n samples

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_ORIENTATION, _SAMPLES, _PLANAR, _COLORMAP, _EXTRA, _SAMPLE_FORMAT = 274, 277, 284, 320, 338, 339
_NUMPY_KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}  # by sample format; the last one is undefined data
# Where the pixels lie: strips of rows or, where these tags exist, tiles; and the tables of JPEG compression.
_STRIPS, _STRIP_ROWS, _STRIP_BYTES, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES = 273, 278, 279, 322, 323, 324, 325
_JPEG_TABLES = 347
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _SEPARATED, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8  # photometric
_UNCOMPRESSED, _JPEG = 1, 7  # compression
# LZW, old and new JPEG, deflate, PackBits, LZMA and Zstandard: of any other, libtiff would make a black image of YCbCr.
_YCBCR_COMPRESSIONS = {5, 6, _JPEG, 8, 32773, 32946, 34925, 50000}
_JPEG_UNKNOWN, _JPEG_RGB, _JPEG_YCBCR = 0, 2, 3  # colour spaces, as libjpeg numbers them
# Compressions that libtiff in imagecodecs cannot read, of slides (33003, 33005, 34712), raw photographs and maps.
_NOT_READ = {
    **dict.fromkeys((33003, 33004, 33005, 34712), "JPEG 2000"),
    **dict.fromkeys((22610, 34934), "JPEG XR"),
    **dict.fromkeys((50002, 52546), "JPEG XL"),
    34933: "PNG",
}
_IGNORED, _PREMULTIPLIED, _ALPHA = 0, 1, 2  # kinds of extra samples
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}  # field types
_READ = {
    *(_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _PLANAR, _COLORMAP, _EXTRA),
    _SAMPLE_FORMAT,
    *(_STRIPS, _STRIP_ROWS, _STRIP_BYTES, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _JPEG_TABLES),
}
_MAX_PAGES = 100_000  # directories that are counted

# PIL's mode of the pixels, by photometric interpretation, number of samples and first extra sample (None if none).
_GREY = {(0, 1, None), (1, 1, None), (6, 1, None)}
_MODES: dict[tuple[int, int, int | None], str] = {
    **dict.fromkeys(_GREY, "L"),
    (_BLACK_IS_ZERO, 2, _IGNORED): "L",
    (_BLACK_IS_ZERO, 2, _PREMULTIPLIED): "La",
    (_BLACK_IS_ZERO, 2, _ALPHA): "LA",
    (_PALETTE, 1, None): "P",
    (_PALETTE, 2, _IGNORED): "P",
    (_PALETTE, 2, _ALPHA): "PA",
    (_RGB, 3, None): "RGB",
    (_RGB, 4, None): "RGBA",
    (_RGB, 4, _IGNORED): "RGB",
    (_RGB, 4, _PREMULTIPLIED): "RGBa",
    (_RGB, 4, _ALPHA): "RGBA",
    (_RGB, 4, 999): "RGBA",  # written by Corel Draw
    (_SEPARATED, 4, None): "CMYK",
    (_YCBCR, 3, None): "YCbCr",
    (_LAB, 3, None): "LAB",
}


class _Tag(NamedTuple):
    values: tuple[int, ...]
    at: int  # where the values begin in the file
    format: str  # of one value, as `struct` names it


class _Directory(NamedTuple):
    order: str  # "<" or ">"
    tags: dict[int, _Tag]
    following: int  # where the next directory begins; 0 if there is none

    def first(self, tag: int, default: int) -> int:
        """The first value of a tag."""
        return self.tags[tag].values[0] if tag in self.tags else default


def header(data: bytes) -> Facts:
    """What the first directory says, and the number of directories. The size is upright.

    Raises:
        ValueError, struct.error: the data end early or are damaged.
    """
    return _facts(data, None)._replace(pages=_pages(data))


def _facts(data: bytes, at: int | None) -> Facts:
    """What a directory says; None is the first."""
    directory = _directory(data, at)
    width, height = directory.first(_WIDTH, 0), directory.first(_HEIGHT, 0)
    if orientation(data, at) >= 5:
        width, height = height, width
    bands, stored = _stored(directory)
    unsupported, bits = _unsupported(directory), max(_bits(directory))
    dtype = "uint8" if stored is None else holding(stored) or "uint8"
    return Facts(width, height, 1, 1, unsupported, bands, dtype, max(8, bits))


def runs(data: bytes) -> Iterator[Run]:
    """The header of each page. A directory that cannot be read is a page, too, and the last."""
    for at in _offsets(data):
        try:
            yield _facts(data, at), 1
        except (ValueError, struct.error) as error:
            yield error, 1


def page(data: bytes, number: int) -> bytes:
    """The file as one whose first page is this one.

    Raises:
        ValueError: there is no such page.
    """
    at = next(islice(_offsets(data), number, None), None)
    if at is None:
        raise ValueError(f"the TIFF has no page {number}")
    changed = bytearray(data)
    kind, place = ("Q", 8) if _is_big(data) else ("I", 4)
    struct.pack_into(_order(data) + kind, changed, place, at)
    return bytes(changed)


def decode(data: bytes) -> np.ndarray | Image.Image:
    """The upright pixels of the first page: uint8 (h, w) or (h, w, n), or an image in a mode that PIL converts."""
    directory = _directory(data)
    mode, compression = _mode(directory), directory.first(_COMPRESSION, _UNCOMPRESSED)
    is_raw_ycbcr = mode == "YCbCr" and compression == _UNCOMPRESSED
    if mode == "YCbCr" and not is_raw_ycbcr and compression not in _YCBCR_COMPRESSIONS:
        raise ValueError(f"YCbCr of compression {compression} is not read")
    if compression == _JPEG and directory.first(_PLANAR, 1) == 1:
        samples = _jpeg_samples(data, directory)
    else:
        samples = _decoded(_as_samples(data, directory, mode), directory)
    if samples.dtype.itemsize > 1:
        raise ValueError(f"the TIFF's samples are {samples.dtype}, its directory says {_bits(directory)} bits")
    pixels = _pixels(samples.view(np.uint8), directory, mode)
    if (turn := orientation(data)) > 1:
        flat = pixels[..., None] if pixels.ndim == 2 else pixels
        upright: np.ndarray = _turns.orient(np.ascontiguousarray(flat), turn)
        pixels = upright[..., 0] if pixels.ndim == 2 else upright
    if is_raw_ycbcr:
        return Image.frombytes("YCbCr", pixels.shape[1::-1], np.ascontiguousarray(pixels).tobytes())
    if mode in ("CMYK", "RGBa") and pixels.shape[2] == 4:
        raw = np.ascontiguousarray(pixels)
        return Image.frombytes(mode.upper(), pixels.shape[1::-1], raw.tobytes(), "raw", mode)
    return pixels


def values(data: bytes) -> np.ndarray | Image.Image:
    """The upright values of the first page as they are stored, (h, w) or (h, w, n) of any type.

    Images of 8-bit colours are what `decode` returns of them.
    """
    directory = _directory(data)
    bands, stored = _stored(directory)
    if stored is None:
        return decode(data)
    samples = _decoded(_as_values(data, directory), directory)
    if samples.dtype != stored:
        raise ValueError(f"the TIFF's samples are {samples.dtype}, its directory says {stored}")
    if bands == 1 and stored.kind == "u" and directory.first(_PHOTOMETRIC, 1) == _WHITE_IS_ZERO:
        samples = stored.type((1 << _bits(directory)[0]) - 1) - samples
    return turned(samples, orientation(data))


def numbers(data: bytes) -> np.ndarray:
    """The upright samples of the first page as numbers, (h, w) or (h, w, n): indices of a palette, bits as 0 and 1."""
    directory = _directory(data)
    return turned(_decoded(_as_samples(data, directory, None), directory), orientation(data))


def _decoded(data: bytes, directory: _Directory) -> np.ndarray:
    """The samples of the first page, (h, w) or (h, w, n), however the file has them laid out."""
    samples: np.ndarray = codec("tiff_decode")(data)
    if directory.first(_PLANAR, 1) == 2 and samples.ndim == 3 and samples.shape[0] == directory.first(_SAMPLES, 1):
        samples = np.moveaxis(samples, 0, -1)
    return samples


def _stored(directory: _Directory) -> tuple[int, np.dtype | None]:
    """The number of bands and the type of the samples; bands 0 if they are not read, no type for 8-bit colours."""
    n, bits = directory.first(_SAMPLES, 1), _bits(directory)
    if _unsupported(directory) is None:
        mode = _mode(directory)
        if (mode, n) in (("L", 2), ("RGB", 4)):  # the last band is no alpha, and no colour either
            return n, np.dtype(np.uint8)
        return by_pil.bands_of({"RGBa": "RGBA", "La": "LA", "PA": "RGBA"}.get(mode or "", mode or "")), None
    formats = directory.tags[_SAMPLE_FORMAT].values if _SAMPLE_FORMAT in directory.tags else (1,)
    kind = _NUMPY_KINDS.get(formats[0])
    stored = 16 if kind == "u" and 8 < bits[0] < 16 else bits[0]  # packed bits, which libtiff unpacks
    if len(set(bits)) > 1 or len(set(formats)) > 1 or kind is None or stored not in (8, 16, 32, 64):
        return 0, None
    if (kind == "f" and stored == 8) or directory.first(_COMPRESSION, _UNCOMPRESSED) in _NOT_READ:
        return 0, None
    if directory.first(_PHOTOMETRIC, _WHITE_IS_ZERO) == _YCBCR:  # whose colours may have fewer samples
        return 0, None
    return n, np.dtype(f"{kind}{stored // 8}")


def _pixels(samples: np.ndarray, directory: _Directory, mode: str | None) -> np.ndarray:
    """Samples (h, w) or (h, w, n) as grey, RGB or alpha, as PIL would unpack them."""
    if mode in ("P", "PA"):
        index = samples[..., 0] if samples.ndim == 3 else samples
        # 16-bit values: all red ones first, then green, then blue.
        palette = (np.array(directory.tags[_COLORMAP].values).reshape(3, -1) >> 8).astype(np.uint8).T
        pixels: np.ndarray = palette[index]
        return np.dstack([pixels, samples[..., 1]]) if mode == "PA" else pixels
    if mode == "L":
        grey = samples[..., 0] if samples.ndim == 3 else samples
        bits = directory.first(_BITS, 1)
        if bits < 8:
            grey = grey * np.uint8(255 // ((1 << bits) - 1))
        return ~grey if directory.first(_PHOTOMETRIC, 0) == _WHITE_IS_ZERO else grey
    return samples[..., :3] if mode == "RGB" else samples


def _jpeg_samples(data: bytes, directory: _Directory) -> np.ndarray:
    """The samples (h, w, n) of JPEG compression, YCbCr as RGB. libtiff in imagecodecs would convert others, too."""
    width, height, n = (directory.first(tag, 1) for tag in (_WIDTH, _HEIGHT, _SAMPLES))
    colors = {"colorspace": _JPEG_UNKNOWN, "outcolorspace": _JPEG_UNKNOWN}
    if directory.first(_PHOTOMETRIC, _WHITE_IS_ZERO) == _YCBCR and n == 3:
        colors = {"colorspace": _JPEG_YCBCR, "outcolorspace": _JPEG_RGB}
    tables = bytes(directory.tags[_JPEG_TABLES].values) if _JPEG_TABLES in directory.tags else None
    across, down = directory.first(_TILE_WIDTH, width), directory.first(_TILE_HEIGHT, 0)
    begins, sizes = (_TILES, _TILE_BYTES) if down else (_STRIPS, _STRIP_BYTES)
    down = down or min(height, directory.first(_STRIP_ROWS, height))
    places = [(y, x) for y in range(0, height, max(1, down)) for x in range(0, width, max(1, across))]
    samples = np.zeros((height, width, n), np.uint8)
    parts = zip(places, directory.tags[begins].values, directory.tags[sizes].values, strict=True)
    for (y, x), begin, size in parts:
        part = codec("jpeg8_decode")(data[begin : begin + size], tables=tables, **colors)
        rows, columns = min(down, height - y), min(across, width - x)
        samples[y : y + rows, x : x + columns] = part.reshape(*part.shape[:2], n)[:rows, :columns]
    return samples


def _as_samples(data: bytes, directory: _Directory, mode: str | None) -> bytes:
    """The file, changed so that libtiff does not turn the image, nor convert its colours.

    PIL rounds CMYK otherwise. Of uncompressed YCbCr, libtiff assumes another subsampling than PIL.
    """
    is_raw_ycbcr = mode == "YCbCr" and directory.first(_COMPRESSION, _UNCOMPRESSED) == _UNCOMPRESSED
    return _changed(data, directory, {_PHOTOMETRIC: _RGB} if mode == "CMYK" or is_raw_ycbcr else {})


def _as_values(data: bytes, directory: _Directory) -> bytes:
    """The file, changed so that libtiff returns its samples as they are, whatever they mean."""
    is_plain = directory.first(_PHOTOMETRIC, _WHITE_IS_ZERO) in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB)
    return _changed(data, directory, {} if is_plain else {_PHOTOMETRIC: _BLACK_IS_ZERO})


def _changed(data: bytes, directory: _Directory, changes: dict[int, int]) -> bytes:
    """The file with these values of tags, and upright. Tiles that take more memory than any image may are refused."""
    tile = directory.first(_TILE_WIDTH, 1) * directory.first(_TILE_HEIGHT, 1) * directory.first(_SAMPLES, 1)
    if (nbytes := tile * max(_bits(directory)) // 8) > MAX_BYTES:
        raise ValueError(f"its directory says tiles of {nbytes} bytes; a tile may have at most {MAX_BYTES}")
    changes = changes | ({_ORIENTATION: 1} if directory.first(_ORIENTATION, 1) != 1 else {})
    if not changes:
        return data
    changed = bytearray(data)
    for tag, value in changes.items():
        struct.pack_into(directory.order + directory.tags[tag].format, changed, directory.tags[tag].at, value)
    return bytes(changed)


def _mode(directory: _Directory) -> str | None:
    """PIL's mode of the pixels, None for a kind that PIL does not know."""
    extra = directory.first(_EXTRA, -1)
    key = directory.first(_PHOTOMETRIC, _WHITE_IS_ZERO), directory.first(_SAMPLES, 1), None if extra < 0 else extra
    bits = _bits(directory)
    if len(set(bits)) > 1 or bits[0] not in ((1, 2, 4, 8) if key[1] == 1 else (8,)):
        return None
    return _MODES.get(key)


def _bits(directory: _Directory) -> tuple[int, ...]:
    return directory.tags[_BITS].values if _BITS in directory.tags else (1,)


def _unsupported(directory: _Directory) -> str | None:
    channels = directory.first(_SAMPLES, 1)
    if (reason := unsupported_kind(channels, max(_bits(directory)))) is not None:
        return reason
    if (compression := directory.first(_COMPRESSION, _UNCOMPRESSED)) in _NOT_READ:
        return f"it is a TIFF of compression {compression} ({_NOT_READ[compression]}), which is not read"
    if (mode := _mode(directory)) is None:
        return (
            f"its {channels} channels of {_bits(directory)} bits, photometric interpretation "
            f"{directory.first(_PHOTOMETRIC, _WHITE_IS_ZERO)}, are a kind of TIFF that is not read"
        )
    return None if mode == "RGBa" else by_pil.unsupported_mode(mode)


def _pages(data: bytes) -> int:
    """Count the directories that can be read."""
    return max(1, sum(_following(data, at) is not None for at in _offsets(data)))


def _offsets(data: bytes) -> Iterator[int]:
    """Where each directory begins; the last one may be damaged, or behind the end of the file."""
    kind, at = ("Q", 8) if _is_big(data) else ("I", 4)
    following: int | None = struct.unpack_from(_order(data) + kind, data, at)[0]
    seen = set[int]()
    while following and following not in seen and len(seen) < _MAX_PAGES:
        seen.add(following)
        yield following
        following = _following(data, following)


def _following(data: bytes, at: int) -> int | None:
    """Where the directory behind this one begins, 0 if there is none; None if this one cannot be read."""
    try:
        return _directory(data, at, only_following=True).following
    except (ValueError, struct.error):
        return None


def _order(data: bytes) -> str:
    return "<" if data[:2] == b"II" else ">"


def _is_big(data: bytes) -> bool:
    return data[2:4] in (b"+\x00", b"\x00+")


def _directory(data: bytes, at: int | None = None, *, only_following: bool = False) -> _Directory:
    """The integer tags of a directory, by default the first."""
    order, is_big = _order(data), _is_big(data)
    offset, count_kind, number, inline = ("Q", "Q", 20, 8) if is_big else ("I", "H", 12, 4)
    if at is None:
        (at,) = struct.unpack_from(order + offset, data, 8 if is_big else 4)
    (entries,) = struct.unpack_from(order + count_kind, data, at)
    begin = at + struct.calcsize(order + count_kind)
    end = begin + number * entries
    if end > len(data):
        raise ValueError("the TIFF ends in a directory")
    following = struct.unpack_from(order + offset, data, end)[0] if end + struct.calcsize(offset) <= len(data) else 0
    tags: dict[int, _Tag] = {}
    for entry in range(begin, begin if only_following else end, number):
        tag, kind, count = struct.unpack_from(f"{order}HH{offset}", data, entry)
        if tag not in _READ or kind not in _INTEGERS or not count:
            continue
        format = _INTEGERS[kind]
        where, nbytes = entry + number - inline, count * struct.calcsize(order + format)
        if nbytes > inline:
            (where,) = struct.unpack_from(order + offset, data, where)
        if where + nbytes <= len(data):
            tags[tag] = _Tag(struct.unpack_from(f"{order}{count}{format}", data, where), where, format)
    return _Directory(order, tags, following)
