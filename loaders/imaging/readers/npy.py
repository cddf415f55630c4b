"""Arrays of NumPy (.npy), and files of several (.npz): size, bands and type from the header; nothing is unpickled.

An array is one image, (height, width) or (height, width, C), or frames of one size, (frames, height, width, C). An .npz
file has one page per array, in the order of the file.
"""

from __future__ import annotations

import ast
import io
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from patchnpack.loaders.errors import MAX_BYTES
from patchnpack.loaders.imaging.readers.facts import Facts, Run, unsupported_kind
from patchnpack.packer.dtypes import holding

_HEADER = 10_000  # bytes of an array's header at most, as in NumPy
_MAX_ARRAYS = 100_000  # of an .npz file


def header(data: bytes) -> Facts:
    """What the header says.

    Raises:
        ValueError: it is damaged, or the array is no image: of Python objects, of complex numbers, of other shapes.
    """
    shape, dtype, _, _ = _read_header(data)
    return _facts(shape, dtype)


def decode(data: bytes) -> np.ndarray:
    """The values of the image, or of the first frame, (height, width) or (height, width, C)."""
    return next(frames(data, (0,)))


def frames(data: bytes, wanted: Sequence[int]) -> Iterator[np.ndarray]:
    """The values of the frames `wanted`."""
    shape, dtype, fortran, begin = _read_header(data)
    _facts(shape, dtype)
    if len(data) - begin < dtype.itemsize * math.prod(shape):
        raise ValueError(f"it has {len(data) - begin} bytes of values; its header says {shape} of {dtype}")
    flat = np.frombuffer(data, dtype, math.prod(shape), begin)
    values = flat.reshape(shape, order="F" if fortran else "C").astype(dtype.newbyteorder("="), copy=False)
    for number in wanted:
        if number >= (len(values) if values.ndim == 4 else 1):
            raise ValueError(f"the array has no frame {number}")
        yield values[number] if values.ndim == 4 else values


def npz_header(data: bytes) -> Facts:
    """What the header of the first array says, and the number of arrays.

    Raises:
        ValueError: as `header`.
    """
    with _opened(data) as archive, _errors_of_zip():
        names = _names(archive)
        return header(_begin(archive, names[0]))._replace(pages=len(names))


def npz_runs(data: bytes) -> Iterator[Run]:
    """The header of each array."""
    with _opened(data) as archive:
        for name in _names(archive):
            try:
                with _errors_of_zip():
                    facts = header(_begin(archive, name))
            except ValueError as error:
                yield error, 1
            else:
                yield facts._replace(pages=1), 1


def npz_page(data: bytes, number: int) -> bytes:
    """An array as an .npy file."""
    with _opened(data) as archive, _errors_of_zip():
        names = _names(archive)
        if number >= len(names):
            raise ValueError(f"the .npz file has no array {number}")
        with archive.open(names[number]) as member:
            begin = member.read(2 * _HEADER)
            shape, dtype, _, at = _read_header(begin)
            _facts(shape, dtype)
            return begin + member.read(max(0, at + dtype.itemsize * math.prod(shape) - len(begin)))


def npz_decode(data: bytes) -> np.ndarray:
    """The values of the first array."""
    return decode(npz_page(data, 0))


def _opened(data: bytes) -> zipfile.ZipFile:
    with _errors_of_zip():
        return zipfile.ZipFile(io.BytesIO(data))


@contextmanager
def _errors_of_zip() -> Iterator[None]:
    """Turn what damaged zip files raise into ValueError: RuntimeError means that a member is encrypted."""
    try:
        yield
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error, lzma.LZMAError, EOFError) as error:
        raise ValueError(f"the .npz file is damaged, or of a kind that is not read: {error}") from error


def _names(archive: zipfile.ZipFile) -> list[str]:
    names = [entry.filename for entry in archive.infolist() if entry.filename.endswith(".npy")][:_MAX_ARRAYS]
    if not names:
        raise ValueError("the .npz file has no array")
    return names


def _begin(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as member:
        return member.read(2 * _HEADER)


def _read_header(data: bytes) -> tuple[tuple[int, ...], np.dtype, bool, int]:
    """Shape and type, whether the first axis varies fastest, and where the values begin."""
    version, at = data[6:8], 8
    if version not in (b"\x01\x00", b"\x02\x00"):
        raise ValueError(f"the .npy file has version {tuple(version)}; 1.0 and 2.0 are read")
    kind = "<H" if version[0] == 1 else "<I"
    (length,) = struct.unpack_from(kind, data, at)
    begin = at + struct.calcsize(kind)
    if length > _HEADER or begin + length > len(data):
        raise ValueError(f"the .npy file ends in its header of {length} bytes")
    text = data[begin : begin + length].decode("latin-1")
    try:
        fields = ast.literal_eval(text)
        shape, fortran, described = (fields[name] for name in ("shape", "fortran_order", "descr"))
        dtype = np.dtype(described)
    except (SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise ValueError(f"its header is {text[:80]!r}, which is not that of an array") from error
    if not (isinstance(described, str) and isinstance(shape, tuple) and all(type(side) is int for side in shape)):
        raise ValueError(f"its header is {text[:80]!r}; an image is an array of numbers with a shape")
    return shape, dtype, bool(fortran), begin + length


def _facts(shape: tuple[int, ...], dtype: np.dtype) -> Facts:
    kind = holding(dtype)
    if kind is None or dtype.hasobject:
        raise ValueError(f"it is an array of {dtype}; whole numbers and floats of up to 64 bits are read")
    if len(shape) not in (2, 3, 4) or min(shape) < 1:
        raise ValueError(
            f"it is an array {shape}; an image is (height, width) or (height, width, C), frames are (frames, height, "
            "width, C)"
        )
    pages, height, width, bands = (1, *shape, 1) if len(shape) == 2 else (1, *shape) if len(shape) == 3 else shape
    if (nbytes := dtype.itemsize * math.prod(shape)) > MAX_BYTES:  # of an .npz file, they may be compressed
        raise ValueError(f"its header says {shape} of {dtype}, {nbytes} bytes; an array may have at most {MAX_BYTES}")
    bits = 8 * dtype.itemsize
    return Facts(width, height, pages, 1, unsupported_kind(bands, bits if kind != "int16" else 16), bands, kind, bits)
