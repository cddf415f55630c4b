"""DICOM (PS3.3, PS3.5): pydicom reads the data set, imagecodecs the compressed pixels.

Values are those of the modality: the rescale slope and intercept are applied. MONOCHROME1, in which the least value is
white, is turned into MONOCHROME2 before.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from patchnpack.loaders.errors import MAX_BYTES
from patchnpack.loaders.imaging.readers.codecs import codec
from patchnpack.loaders.imaging.readers.facts import Facts, unsupported_kind, whole_dtype
from patchnpack.packer.dtypes import Dtype

MISSING = "DICOM images are read with pydicom: pip install 'patchnpack[dicom]'"
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_SYNTAX = "1.2.840.10008.1.2."
# The decoder of each compressed transfer syntax, by the end of its UID.
_CODECS = {
    **dict.fromkeys(("4.50", "4.51"), "jpeg8_decode"),
    **dict.fromkeys(("4.57", "4.70"), "ljpeg_decode"),
    **dict.fromkeys(("4.80", "4.81"), "jpegls_decode"),
    **dict.fromkeys(("4.90", "4.91", "4.201", "4.202", "4.203"), "jpeg2k_decode"),
    "5": "dicomrle_decode",
}
_RAW = {_SYNTAX[:-1]: "<", _SYNTAX + "1": "<", _SYNTAX + "2": ">"}  # byte order of uncompressed transfer syntaxes
# Photometric interpretations, by samples per pixel.
_KINDS = {1: ("MONOCHROME1", "MONOCHROME2"), 3: ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")}

_lock = threading.Lock()


@functools.cache
def has_pydicom() -> bool:
    """Whether pydicom is installed."""
    return importlib.util.find_spec("pydicom") is not None


class _Layout(NamedTuple):
    """What the data set says of the pixels; `stored` is the type of their samples, `dtype` that of the values."""

    rows: int
    columns: int
    samples: int
    frames: int
    allocated: int
    bits: int
    signed: bool
    photometric: str
    slope: float
    intercept: float
    dtype: Dtype

    @property
    def stored(self) -> np.dtype:
        return np.dtype(f"{'i' if self.signed else 'u'}{self.allocated // 8}")

    @property
    def ends(self) -> tuple[int, int]:
        """The least and the largest stored value."""
        return (-(1 << self.bits - 1), (1 << self.bits - 1) - 1) if self.signed else (0, (1 << self.bits) - 1)


def header(data: bytes) -> Facts:
    """What the data set says.

    Raises:
        ValueError: pydicom is not installed, the data set has no pixels, or they are of a kind that is not read.
    """
    layout = _read(data, pixels=False)[1]
    bits = 16 if layout.dtype == "int16" else max(8, layout.bits) if layout.dtype != "float32" else 32
    unsupported = unsupported_kind(layout.samples, bits)
    return Facts(layout.columns, layout.rows, layout.frames, 1, unsupported, layout.samples, layout.dtype, bits)


def decode(data: bytes) -> np.ndarray:
    """The values of the first frame, (height, width) or (height, width, 3)."""
    return next(frames(data, (0,)))


def frames(data: bytes, wanted: Sequence[int]) -> Iterator[np.ndarray]:
    """The values of the frames `wanted`, ascending.

    Raises:
        ValueError: as `header`, or the pixels are damaged, or compressed by a codec that is not read.
    """
    dataset, layout = _read(data, pixels=True)
    with _errors_of_pydicom():
        stored = _stored_frames(dataset, layout)
    for number in wanted:
        if number >= layout.frames:
            raise ValueError(f"the DICOM file has {layout.frames} frames, not frame {number}")
        values = stored(number)
        if layout.photometric == "YBR_FULL" and _codec(dataset) != "jpeg8_decode":
            from pydicom.pixels.processing import convert_color_space

            values = np.asarray(convert_color_space(values, "YBR_FULL", "RGB"))
        yield _values(values, layout)


def _read(data: bytes, *, pixels: bool) -> tuple[Any, _Layout]:
    """The data set, and what it says of the pixels."""
    if not has_pydicom():
        raise ValueError(MISSING)
    import pydicom

    if _DEFLATED in data[:4096]:
        raise ValueError(
            "its transfer syntax is deflated, which is not read: its size is unknown before it is unpacked"
        )
    with _errors_of_pydicom():
        dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=not pixels)
        return dataset, _layout(dataset)


@contextmanager
def _errors_of_pydicom() -> Iterator[None]:
    """Turn what pydicom raises on damaged data into ValueError, with at most the first line of its text.

    pydicom also warns of values that do not follow the standard, and logs them. Filters and settings are those of the
    process, so one thread at a time changes them.
    """
    from pydicom.config import disable_value_validation
    from pydicom.errors import BytesLengthException, InvalidDicomError

    try:
        with _lock, warnings.catch_warnings(), disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    except (InvalidDicomError, BytesLengthException, AttributeError, TypeError, NotImplementedError) as error:
        first_line = str(error).partition("\n")[0]
        raise ValueError(f"{type(error).__name__}: {first_line[:200]}") from error


def _layout(dataset: Any) -> _Layout:
    def number(name: str, default: float | None = None) -> float:
        try:
            value = dataset.get(name)
        except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
            raise ValueError(f"its {name} is damaged: {error}") from error
        if value is None or value == "":
            if default is None:
                raise ValueError(f"the DICOM file has no {name}, and so no pixels")
            return default
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"its {name} is {value!r}") from error

    rows, columns, samples = int(number("Rows")), int(number("Columns")), int(number("SamplesPerPixel", 1))
    allocated, frames = int(number("BitsAllocated")), int(number("NumberOfFrames", 1))
    bits, signed = int(number("BitsStored", allocated)), bool(number("PixelRepresentation", 0))
    photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2")).strip()
    if allocated not in (8, 16, 32) or not 1 <= bits <= allocated or frames < 1:
        raise ValueError(f"it has {bits} of {allocated} bits per sample and {frames} frames, which is not read")
    if photometric not in _KINDS.get(samples, ()) or (samples == 3 and allocated != 8):
        raise ValueError(f"its {samples} samples of {allocated} bits, {photometric}, are a kind that is not read")
    if (nbytes := rows * columns * frames * samples * allocated // 8) > 2 * MAX_BYTES:
        raise ValueError(
            f"its header says {frames} frames of {columns}x{rows} pixels of {allocated} bits, {nbytes} bytes; all "
            f"frames of a file may have at most {2 * MAX_BYTES}"
        )
    slope, intercept = number("RescaleSlope", 1.0), number("RescaleIntercept", 0.0)
    if not (np.isfinite(slope) and np.isfinite(intercept)):
        raise ValueError(f"its rescale slope is {slope} and its intercept {intercept}")
    layout = _Layout(rows, columns, samples, frames, allocated, bits, signed, photometric, slope, intercept, "uint8")
    return layout._replace(dtype=_dtype(layout))


def _dtype(layout: _Layout) -> Dtype:
    if (layout.slope, layout.intercept) == (1, 0):
        return "int16" if layout.signed and layout.bits <= 16 else whole_dtype(layout.bits, signed=layout.signed)
    ends = [layout.slope * end + layout.intercept for end in layout.ends]
    is_whole = layout.slope.is_integer() and layout.intercept.is_integer()
    return "int16" if is_whole and min(ends) >= -(1 << 15) and max(ends) < 1 << 15 else "float32"


def _stored_frames(dataset: Any, layout: _Layout) -> Callable[[int], np.ndarray]:
    """A function from the number of a frame to its stored samples, (rows, columns) or (rows, columns, 3)."""
    pixels = dataset.get("PixelData")
    if not isinstance(pixels, bytes) or not pixels:
        raise ValueError("the DICOM file has no pixels")
    syntax = _transfer_syntax(dataset)
    shape = (layout.rows, layout.columns) + ((3,) if layout.samples == 3 else ())
    planar = layout.samples == 3 and bool(dataset.get("PlanarConfiguration", 0))
    if syntax in _RAW:
        if layout.photometric == "YBR_FULL_422":
            raise ValueError("its pixels are uncompressed and of YBR_FULL_422, which is not read")
        size = int(np.prod(shape)) * layout.allocated // 8
        if len(pixels) < size * layout.frames:
            raise ValueError(f"it has {len(pixels)} bytes of pixels; its header says {size * layout.frames}")

        if _RAW[syntax] == ">" and layout.allocated == 8 and dataset["PixelData"].VR == "OW":  # words of two samples
            pixels = np.frombuffer(pixels[: len(pixels) // 2 * 2], ">u2").astype("<u2").tobytes()

        def raw(number: int) -> np.ndarray:
            kind = np.dtype(_RAW[syntax] + layout.stored.str[1:])
            flat = np.frombuffer(pixels, kind, size // kind.itemsize, number * size).astype(layout.stored)
            return flat.reshape(3, *shape[:2]).transpose(1, 2, 0) if planar else flat.reshape(shape)

        return raw
    name = _codec(dataset)
    if name is None:
        raise ValueError(f"its transfer syntax {syntax} is not read")
    from pydicom.encaps import generate_frames

    encoded = list(generate_frames(pixels, number_of_frames=layout.frames))

    def compressed(number: int) -> np.ndarray:
        if number >= len(encoded):
            raise ValueError(f"it has {len(encoded)} frames; its header says {layout.frames}")
        if name == "dicomrle_decode":
            unpacked = codec(name)(encoded[number], layout.stored.newbyteorder("<"))
            planes = np.frombuffer(unpacked, layout.stored).reshape(layout.samples, *shape[:2])
            return planes.transpose(1, 2, 0) if layout.samples == 3 else planes[0]
        # libjpeg returns RGB of YCbCr.
        values = np.asarray(codec(name)(encoded[number]))
        if values.shape != shape:
            raise ValueError(f"its pixels are {values.shape}, its header said {shape}")
        return values

    return compressed


def _transfer_syntax(dataset: Any) -> str:
    return str(getattr(dataset.file_meta, "TransferSyntaxUID", _SYNTAX[:-1]))


def _codec(dataset: Any) -> str | None:
    syntax = _transfer_syntax(dataset)
    return _CODECS.get(syntax.removeprefix(_SYNTAX)) if syntax.startswith(_SYNTAX) else None


def _values(stored: np.ndarray, layout: _Layout) -> np.ndarray:
    if layout.samples == 3:
        return stored.astype(np.uint8, copy=False)
    low, high = layout.ends
    values = stored.astype(np.int64)
    unused = 64 - layout.bits  # bits above those stored may hold overlays, and hold no sign
    values = values << unused >> unused if layout.signed else values & high
    if layout.photometric == "MONOCHROME1":
        values = low + high - values
    if layout.dtype == "float32":
        return (values * layout.slope + layout.intercept).astype(np.float32)
    return (values * int(layout.slope) + int(layout.intercept)).astype(layout.dtype)


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()  # the thread that held it in the parent does not exist in a forked child


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
