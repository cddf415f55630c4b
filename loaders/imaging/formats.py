"""The formats that are read: how they begin, their numbers in an index, and the reader of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.imaging import signatures
from patchnpack.loaders.imaging.readers import bmp, dicom, gif, jpeg, npy, png, tiff, webp
from patchnpack.loaders.imaging.readers.boxed import heif, jpeg2000, jpegxl
from patchnpack.loaders.imaging.readers.facts import Facts, Run
from patchnpack.loaders.imaging.readers.video import reader as video

# An index stores positions in this tuple, so the order is fixed. "jpeg" is JPEG in a colour space that libjpeg-turbo
# converts to RGB itself, "other-jpeg" any other. "pixels" is an image that the caller has already decoded.
FORMATS = (
    *("jpeg", "other-jpeg", "png", "webp", "gif", "bmp", "tiff", "pixels"),
    *("avif", "jpeg-xl", "jpeg-2000", "heic"),
    *("mp4", "matroska", "avi"),
    *("npy", "npz", "dicom"),
)
OWN = 128  # in an index, this and the following numbers are the formats that a user's readers read
JPEG, OTHER_JPEG, PNG, PIXELS, HEIC, NPY, DICOM = 0, 1, 2, 7, 11, 15, 17
VIDEOS = (12, 13, 14)
ARRAYS = (15, 16)
PIL = "PIL"  # the decoder of formats that nothing else decodes


class Reader(NamedTuple):
    """How a format is read.

    Attributes:
        format: its position in `FORMATS`.
        name: its usual name.
        extensions: the usual endings of its files.
        begins: whether data begin like the format.
        header: what the header says, from the encoded image; raises what decoders raise on bad data.
        decode: the first page as 8-bit colours, an array (height, width) or (height, width, C) or a PIL image.
        decoder: the library behind `decode`.
        second: the PIL plugin that is asked where `decode` fails; None where there is none.
        runs: the headers of all pages, of a format whose pages may differ in size. Of others, all pages have `header`.
        page: the file as one whose first page is this one, of a format whose pages do not depend on each other.
        values: the values of the first page as they are stored, of a format that may have more than 8 bits or other
            bands than colours. Of others, `decode` gives them.
        frames: the pixels of these pages, ascending, as `decode` gives the first; an exception in the place of one that
            is bad, where the ones behind it may not be. A format with neither `page` nor `frames` has one page.
    """

    format: int
    name: str
    extensions: tuple[str, ...]
    begins: Callable[[bytes], bool]
    header: Callable[[bytes], Facts]
    decode: Callable[[bytes], np.ndarray | Image.Image]
    decoder: str
    second: str | None = None
    runs: Callable[[bytes], Iterable[Run]] | None = None
    page: Callable[[bytes, int], bytes] | None = None
    frames: Callable[[bytes, Sequence[int]], Iterator[np.ndarray | Image.Image | Exception]] | None = None
    values: Callable[[bytes], np.ndarray | Image.Image] | None = None


def _video(format: int, name: str, extensions: tuple[str, ...], begins: Callable[[bytes], bool]) -> Reader:
    return Reader(format, name, extensions, begins, video.header, video.decode, "PyAV", frames=video.frames)


READERS = (
    Reader(
        OTHER_JPEG,
        "JPEG",
        ("jpg", "jpeg", "jpe", "jfif"),
        signatures.is_jpeg,
        lambda data: jpeg.header(data)[0],
        jpeg.decode,
        "simplejpeg",
    ),
    Reader(
        PNG, "PNG", ("png", "apng"), signatures.is_png, png.header, png.decode, "imagecodecs", "Png", frames=png.frames
    ),
    Reader(
        3, "WebP", ("webp",), signatures.is_webp, webp.header, webp.decode, "imagecodecs", "WebP", frames=webp.frames
    ),
    Reader(4, "GIF", ("gif",), signatures.is_gif, gif.header, gif.decode, PIL, frames=gif.frames),
    Reader(5, "BMP", ("bmp", "dib"), signatures.is_bmp, bmp.header, bmp.decode, PIL),
    Reader(
        6,
        "TIFF",
        ("tif", "tiff"),
        signatures.is_tiff,
        tiff.header,
        tiff.decode,
        "imagecodecs",
        "Tiff",
        runs=tiff.runs,
        page=tiff.page,
        values=tiff.values,
    ),
    Reader(
        8,
        "AVIF",
        ("avif", "avifs"),
        signatures.is_avif,
        heif.avif_header,
        heif.decode_avif,
        "imagecodecs",
        "Avif",
        runs=heif.avif_runs,
        frames=heif.avif_frames,
    ),
    Reader(
        9, "JPEG XL", ("jxl",), signatures.is_jpegxl, jpegxl.header, jpegxl.decode, "imagecodecs", values=jpegxl.values
    ),
    Reader(
        10,
        "JPEG 2000",
        ("jp2", "j2k", "j2c", "jpc", "jpf", "jpx"),
        signatures.is_jpeg2000,
        jpeg2000.header,
        jpeg2000.decode,
        "imagecodecs",
        "Jpeg2K",
        values=jpeg2000.values,
    ),
    Reader(
        HEIC,
        "HEIC",
        ("heic", "heif", "hif"),
        signatures.is_heic,
        heif.heic_header,
        heif.decode_heic,
        "pillow-heif",
        runs=heif.heic_runs,
        frames=heif.heic_frames,
    ),
    Reader(15, ".npy", ("npy",), signatures.is_npy, npy.header, npy.decode, "NumPy", frames=npy.frames),
    Reader(
        16,
        ".npz",
        ("npz",),
        signatures.is_npz,
        npy.npz_header,
        npy.npz_decode,
        "NumPy",
        runs=npy.npz_runs,
        page=npy.npz_page,
    ),
    Reader(
        DICOM,
        "DICOM",
        ("dcm", "dicom"),
        signatures.is_dicom,
        dicom.header,
        dicom.decode,
        "pydicom",
        frames=dicom.frames,
    ),
    _video(12, "MP4", ("mp4", "m4v", "mov"), signatures.is_mp4),
    _video(13, "WebM", ("webm", "mkv"), signatures.is_matroska),
    _video(14, "AVI", ("avi",), signatures.is_avi),
)
# Every extension of an image format that is read, and of a video format, without its dot. Arrays may be anything else:
# those that are images are asked for by name.
EXTENSIONS = tuple(
    extension for reader in READERS if reader.format not in (*VIDEOS, *ARRAYS) for extension in reader.extensions
)
VIDEO_EXTENSIONS = tuple(extension for reader in READERS if reader.format in VIDEOS for extension in reader.extensions)
_NAMES = ", ".join(reader.name for reader in READERS[:-1]) + f" and {READERS[-1].name}"


def find_reader(data: bytes) -> Reader | None:
    """The reader of an encoded image, by its first bytes; None if no format that is read begins so."""
    return next((reader for reader in READERS if reader.begins(data)), None)


def reader_of(data: bytes) -> Reader:
    """The reader of an encoded image.

    Raises:
        BadImage: the data begin like no image of a format that is read.
    """
    reader = find_reader(data)
    if reader is None:
        if not data:
            raise BadImage("it is empty: it has 0 bytes; copy or download it again")
        if data.startswith(signatures.LFS_POINTER):
            raise BadImage("it is a Git LFS pointer, not the image itself; run `git lfs pull` in its repository")
        raise BadImage(f"it begins with {data[:8]!r}; only {_NAMES} are read")
    return reader


def usual_extension(format: int, own: Sequence[str] = ()) -> str:
    """The usual extension of files of a format, given by its number in an index whose `formats` are `own`.

    >>> usual_extension(JPEG), usual_extension(PNG), usual_extension(OWN, ("ct",))
    ('jpg', 'png', 'ct')
    """
    if format >= OWN:
        return own[format - OWN]
    return next(reader.extensions[0] for reader in READERS if reader.format == (format or OTHER_JPEG))


def is_image(data: bytes) -> bool:
    """Whether the data begin like an image of a format that is read, and not like a video or an array."""
    reader = find_reader(data)
    return reader is not None and reader.format not in (*VIDEOS, *ARRAYS)


def is_video(data: bytes) -> bool:
    """Whether the data begin like a video of a format that is read."""
    reader = find_reader(data)
    return reader is not None and reader.format in VIDEOS
