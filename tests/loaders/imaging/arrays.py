"""Images of any depth and number of bands, and files that hold them."""

from __future__ import annotations

import io
from typing import Any

import imagecodecs
import numpy as np

from patchnpack.loaders.imaging.decode_pages import Wanted
from patchnpack.loaders.imaging.header import Header, header_or_reason
from patchnpack.loaders.imaging.values.bands import BandRequest
from patchnpack.loaders.imaging.values.decode_values import decode_pages_of_values, decode_values
from patchnpack.packer import dtypes

DTYPES = ("uint8", "uint16", "int16", "float32")  # as an index numbers them


def values(dtype: str, channels: int, height: int = 33, width: int = 41, seed: int = 0) -> np.ndarray:
    """Values (height, width, channels) that use the whole range of whole numbers, and fractions of either sign."""
    rng = np.random.default_rng(seed)
    if dtype.startswith("float"):
        return (rng.standard_normal((height, width, channels)) * 1000).astype(dtype)
    ends = np.iinfo(dtype)
    return rng.integers(ends.min, ends.max, (height, width, channels), dtype, endpoint=True)


def npy(array: np.ndarray) -> bytes:
    """An .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    """A compressed .npz file."""
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # numpy's own stub
    return file.getvalue()


def flat(array: np.ndarray) -> np.ndarray:
    """(height, width) of one band, as encoders take it."""
    return array[..., 0] if array.shape[2] == 1 else array


def jpeg2000(array: np.ndarray, **options: Any) -> bytes:
    """A lossless JPEG 2000."""
    return bytes(imagecodecs.jpeg2k_encode(flat(array), level=0, reversible=True, **options))


def jpegxl(array: np.ndarray, **options: Any) -> bytes:
    """A lossless JPEG XL."""
    return bytes(imagecodecs.jpegxl_encode(flat(array), lossless=True, **options))


def avif(array: np.ndarray, **options: Any) -> bytes:
    """A lossless AVIF."""
    return bytes(imagecodecs.avif_encode(flat(array), level=100, **options))


def png(array: np.ndarray) -> bytes:
    """A PNG."""
    return bytes(imagecodecs.png_encode(flat(array)))


def tiff(array: np.ndarray, **options: Any) -> bytes:
    """A TIFF of tifffile, which tests skip without."""
    import tifffile

    if options.get("planarconfig") == "separate":
        array = np.moveaxis(array, -1, 0)
    elif array.shape[2] > 1:
        options["planarconfig"] = "contig"
    file = io.BytesIO()
    tifffile.imwrite(file, flat(array) if array.ndim == 3 and array.shape[2] == 1 else array, **options)
    return file.getvalue()


def dicom(frames: list[np.ndarray], syntax: str = "1.2.840.10008.1.2.1", encode: Any = None, **tags: Any) -> bytes:
    """A DICOM file of pydicom, which tests skip without."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID

    first, about, data = frames[0], FileMetaDataset(), Dataset()
    about.TransferSyntaxUID = UID(syntax)
    about.MediaStorageSOPClassUID = data.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.2")
    about.MediaStorageSOPInstanceUID = data.SOPInstanceUID = UID("1.2.3")
    data.file_meta = about
    data.Rows, data.Columns = first.shape[:2]
    data.SamplesPerPixel, data.PhotometricInterpretation = (1, "MONOCHROME2") if first.ndim == 2 else (3, "RGB")
    if first.ndim == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = 8 * first.dtype.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(first.dtype.kind == "i")
    if len(frames) > 1:
        data.NumberOfFrames = len(frames)
    for name, value in tags.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    order: Any = ">" if syntax == "1.2.840.10008.1.2.2" else "<"
    raw = b"".join(frame.astype(frame.dtype.newbyteorder(order)).tobytes() for frame in frames)
    data.PixelData = encapsulate([encode(frame) for frame in frames]) if encode else raw + b"\0" * (len(raw) % 2)
    data["PixelData"].VR = "OB" if encode or (order == ">" and first.itemsize == 1) else "OW"
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def header_of(data: bytes) -> Header:
    """The header of an image of any depth."""
    return header_or_reason(data)[0]


def request_of(header: Header, **changes: Any) -> BandRequest:
    """A request for the values as they are."""
    return BandRequest(header.bands, dtypes.DTYPES[header.dtype], None, False)._replace(**changes)


def paged(data: bytes, header: Header, wanted: list[Wanted]) -> list[np.ndarray]:
    """The values of several pages."""
    found = []
    for values in decode_pages_of_values(data, wanted, request_of(header)):
        assert isinstance(values, np.ndarray), values
        found.append(values)
    return found


def whole(data: bytes, **changes: Any) -> np.ndarray:
    """All values of an encoded image."""
    header = header_of(data)
    return decode_values(data, header, (header.width, header.height), None, request_of(header, **changes))
