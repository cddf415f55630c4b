"""Dense targets: the values of a file, a PIL image or an array, turned, cut out, resized and mirrored as its image."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.imaging.decode import stored_part
from patchnpack.loaders.imaging.exif import info_orientation, orientation
from patchnpack.loaders.imaging.formats import PNG, Reader, reader_of
from patchnpack.loaders.imaging.header import Header, decode_errors_as_bad_image
from patchnpack.loaders.imaging.readers import by_pil, tiff
from patchnpack.loaders.imaging.readers.depth import turned
from patchnpack.loaders.imaging.readers.facts import Facts
from patchnpack.loaders.imaging.signatures import is_tiff
from patchnpack.loaders.targets.target import Read, Source, bad_target
from patchnpack.packer.checks import kind_of, shown
from patchnpack.packer.geometry import Geometry

# h rows, w columns, C values per pixel

DecodeTarget = Callable[[bytes], np.ndarray]

_BY_PIL = {"GIF": "Gif", "BMP": "Bmp"}  # formats of which PIL gives indices, by name of the plugin
_PNG_DEPTH, _PNG_COLOR = 24, 25  # bytes of a PNG that hold the bits of a sample and the type of its colours
_GREY, _PALETTE = 0, 3


class Values(NamedTuple):
    """The values of a dense target as they are stored, and the orientation that turns them upright.

    Attributes:
        array: (h, w, C).
        orientation: as of EXIF, 1 to 8.
    """

    array: np.ndarray
    orientation: int


def read_values(
    read: Read, member: str, source: Source, decode: DecodeTarget | None, *, upright: bool, indices: bool
) -> Values:
    """Return the values of a member, (h, w, C) of any type.

    Args:
        read: reads a member of the sample.
        member: its name.
        source: the image.
        decode: a user's function from bytes to values; None for none.
        upright: whether files without an orientation of their own are upright whatever the image's orientation is.
        indices: whether a palette stands for its indices and a sample of few bits for its number, as masks need it;
            otherwise both are colours.

    Raises:
        BadImage: there is no such member, it cannot be decoded, or its size is not the image's.
    """
    data = read(member)
    if data is None:
        raise bad_target(f"it has no .{member} member; add it, or leave the image out")
    try:
        return _values(data, source, decode, upright, indices)
    except BadImage as error:
        raise bad_target(f"its .{member} member cannot be used: {error}") from error


def _values(data: Any, source: Source, decode: DecodeTarget | None, upright: bool, indices: bool) -> Values:
    without = 1 if upright else source.orientation
    if isinstance(data, bytes | bytearray | memoryview):
        encoded = bytes(data)
        if decode is not None:
            return _checked(_called(decode, encoded), without, source)
        reader = reader_of(encoded)
        with decode_errors_as_bad_image():
            facts = reader.header(encoded)
            turn = _turn(encoded, facts, without)
            _check_size((facts.width, facts.height), turn, source)
            array = _labels(encoded, reader, facts) if indices else _colors(encoded, reader)
        return _checked(array, turn, source)
    if isinstance(data, Image.Image):
        with decode_errors_as_bad_image():
            data.load()
            own = own_orientation(data)
            return _checked(_array_of(data, indices), own if own > 1 else without, source)
    data = without_tensor(data)
    if not isinstance(data, np.ndarray):
        what = "text" if isinstance(data, str) else f"a {kind_of(data)}"
        raise BadImage(f"it is {what}, {shown(data, 40)}; it must be an encoded image, a PIL image or an array")
    return _checked(data, without, source)


def own_orientation(image: Image.Image) -> int:
    """Return the orientation that a loaded PIL image has of itself, 1 without one."""
    # PIL turns a TIFF itself.
    if isinstance(image, TiffImageFile):
        return 1
    return info_orientation({str(name): value for name, value in image.info.items()})


def without_tensor(value: Any) -> Any:
    """Return a tensor, whose channels come first, as an array (height, width, C); other values as they are."""
    if not (hasattr(value, "numpy") and hasattr(value, "ndim")):
        return value
    array = value.detach().cpu().numpy()
    return np.moveaxis(array, 0, -1) if array.ndim == 3 else array


def _turn(data: bytes, facts: Facts, without: int) -> int:
    """The orientation that turns decoded values upright; `without` is that of a file that says none."""
    if is_tiff(data):  # its reader turns it
        return 1 if orientation(data) > 1 else without
    own = orientation(data) if facts.orientation is None else facts.orientation
    return own if own > 1 else without


def _checked(array: np.ndarray, turn: int, source: Source) -> Values:
    if array.ndim not in (2, 3) or array.dtype.kind not in "biuf":
        raise BadImage(f"it is {array.dtype} {array.shape}; it must be numbers (height, width) or (height, width, C)")
    _check_size((array.shape[1], array.shape[0]), turn, source)
    if array.dtype == np.bool_:
        array = (array.view(np.uint8) != 0).view(np.uint8)  # PIL stores True as 255
    return Values(array[..., None] if array.ndim == 2 else array, turn)


def _check_size(size: tuple[int, int], turn: int, source: Source) -> None:
    wanted = source._replace(orientation=turn).stored
    if size == wanted:
        return
    as_upright = size == (source.width, source.height) and turn == source.orientation
    remedy = "it is upright already: give upright=True" if as_upright else "make both of one size"
    turned_by = f" (before its orientation {turn})" if turn > 1 else ""
    raise BadImage(f"it has {size[0]}x{size[1]} pixels, and the image {wanted[0]}x{wanted[1]}{turned_by}; {remedy}")


def _called(decode: DecodeTarget, data: bytes) -> np.ndarray:
    try:
        array: Any = decode(data)
    except BadImage:
        raise
    except Exception as error:
        error.add_note(
            "raised by decode of a target; for a damaged file, decode may raise patchnpack.loaders.BadImage(reason): "
            "the image is then counted and skipped"
        )
        raise
    if not isinstance(array, np.ndarray):
        raise ValueError(f"decode of a target returned a {kind_of(array)}; it must return an array (height, width, C)")
    return array


def _labels(data: bytes, reader: Reader, facts: Facts) -> np.ndarray:
    """The numbers that a file stores: indices of a palette, and samples of 1, 2 and 4 bits as they are."""
    if reader.format == PNG and data[_PNG_DEPTH] <= 8 and (data[_PNG_COLOR] == _PALETTE or facts.bands == 2):
        return _by_plugin("Png", data)
    if reader.format == PNG and data[_PNG_COLOR] == _GREY and data[_PNG_DEPTH] < 8:
        scaled = _array_of(reader.decode(data), indices=True)
        return scaled // np.uint8(255 // ((1 << data[_PNG_DEPTH]) - 1))
    if reader.name == "TIFF":
        return tiff.numbers(data)
    name = _BY_PIL.get(reader.name)
    return _colors(data, reader) if name is None else _by_plugin(name, data)


def _by_plugin(name: str, data: bytes) -> np.ndarray:
    image: Image.Image = by_pil.plugin(name)(io.BytesIO(data))
    image.load()
    return _array_of(image, indices=True)


def _colors(data: bytes, reader: Reader) -> np.ndarray:
    return _array_of((reader.values or reader.decode)(data), indices=False)


def _array_of(pixels: np.ndarray | Image.Image, indices: bool) -> np.ndarray:
    if isinstance(pixels, Image.Image) and not indices and pixels.mode in ("P", "PA"):
        pixels = pixels.convert("RGBA" if "transparency" in pixels.info or pixels.mode == "PA" else "RGB")
    return np.asarray(pixels)


def nearest(array: np.ndarray, region: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    """Cut a region out of values (h, w, C) of any type and resize it by PIL's nearest neighbour.

    Args:
        array: (h, w, C).
        region: (left, top, width, height) in pixels.
        size: (width, height) in pixels.

    >>> nearest(np.arange(4).reshape(1, 4, 1), (0, 0, 4, 1), (2, 1)).ravel().tolist()
    [1, 3]
    """
    left, top, width, height = region
    if size == (width, height):
        return array[top : top + height, left : left + width]
    found: np.ndarray = array[_nearest_of(top, height, size[1])][:, _nearest_of(left, width, size[0])]
    return found


def _nearest_of(begin: int, old: int, new: int) -> np.ndarray:
    """The place that each of `new` pixels is taken from; summed up as PIL does, whose rounding decides ties."""
    steps = np.full(new, old / new)
    steps[0] = begin + steps[0] * 0.5
    places: np.ndarray = np.cumsum(steps).astype(np.int64).clip(begin, begin + old - 1)
    return places


def placed_values(
    values: Values,
    source: Source,
    geometry: Geometry,
    resize: Callable[[np.ndarray, tuple[int, int, int, int], tuple[int, int]], np.ndarray],
) -> np.ndarray:
    """Return the values of a sized and mirrored image, contiguous (h, w, C); `resize` cuts out and resizes."""
    header = Header(source.width, source.height, values.orientation, 0)
    _, (region, size) = stored_part(header, geometry.size, geometry.box)
    out = turned(resize(values.array, region, size), values.orientation)
    if geometry.flip[0]:
        out = out[:, ::-1]
    if geometry.flip[1]:
        out = out[::-1]
    out = np.ascontiguousarray(out)
    return out if out.flags.writeable and out.base is not values.array else out.copy()
