"""What a user brings to read images: a `decode` function for all formats, and readers of formats of their own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

import numpy as np

from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.imaging.formats import OWN
from patchnpack.loaders.imaging.header import Header, header_of, or_reason, read_header
from patchnpack.loaders.imaging.pages import PageRun, limited
from patchnpack.loaders.imaging.readers.facts import Facts, unsupported_kind
from patchnpack.loaders.imaging.values.bands import band_request
from patchnpack.packer import Packing
from patchnpack.packer.checks import shown
from patchnpack.packer.dtypes import DTYPES, Dtype

Decode = Callable[[bytes], np.ndarray | None]

_MOST = 64  # formats of a user
_BAD = "for a damaged image, it may raise patchnpack.loaders.BadImage(reason), and the image is counted and skipped"


class ImageHeader(NamedTuple):
    """What a user's reader says of an image before it is decoded.

    Attributes:
        width, height: size in pixels, upright.
        channels: bands per pixel.
        dtype: type of the values: "uint8", "uint16", "int16" or "float32".
        pages: number of pages or frames of the file, all of one size.
    """

    width: int
    height: int
    channels: int = 3
    dtype: Dtype = "uint8"
    pages: int = 1


class ImageReader(Protocol):
    """A reader of a format: `formats={"ct": MyReader()}` reads the files and members that end in .ct.

    Loaders call it in their threads, at the same time. Processes of a `DataLoader` or of `patchnpack pack` get copies,
    so it must be picklable there. Either method may raise `BadImage(reason)`, which marks the image as bad; other
    errors are raised. Headers are cached by the class of the reader and its attribute `version`, if it has one: change
    `version` where `header` changes.
    """

    def header(self, data: bytes) -> ImageHeader | tuple[Any, ...]:
        """Return size, channels, dtype and pages, without decoding; a plain tuple may end after the size."""
        ...

    @property
    def decode(self) -> Callable[..., np.ndarray]:
        """`decode(data)` returns the pixels, (height, width, channels) of the header's dtype, upright.

        For files of several pages, `decode(data, page)` returns those of one page, counted from 0.
        """
        ...


class NamedBytes(bytes):
    """Encoded bytes that know the name of their file or member, by which a user's reader is found."""

    name: str


def named(data: bytes, name: str) -> NamedBytes:
    """Return a copy of the bytes that knows its name."""
    copy = NamedBytes(data)
    copy.name = name
    return copy


class UserFormat(NamedTuple):
    """A format that a user's reader reads.

    Attributes:
        name: its extension, or the name of a member or a column.
        number: its number in an index.
        reader: the reader.
        takes_page: whether `decode` takes the number of a page.
    """

    name: str
    number: int
    reader: ImageReader
    takes_page: bool

    @property
    def version(self) -> str:
        """A text that changes with what headers say: the extension, the class of the reader and its version."""
        kind = type(self.reader)
        return f"{self.name} {kind.__module__}.{kind.__qualname__} {getattr(self.reader, 'version', '')}"

    def header(self, data: bytes) -> Header:
        """Read the header of an image.

        Raises:
            UnsupportedImage, BadImage: as `read_header`; or the reader raised it.
            ValueError: the reader returned something else than a header.
        """
        found: Any = self._call("header", data)
        try:
            fields: list[Any] = list(ImageHeader(*found))
            *sizes, dtype, pages = fields
            is_valid = all(isinstance(n, int | np.integer) and n >= 1 for n in (*sizes, pages)) and dtype in DTYPES
        except TypeError:
            is_valid = False
        if not is_valid:
            raise ValueError(
                f"the header of formats[{self.name!r}] returned {shown(found)}; it must return (width, height), or "
                f"ImageHeader(width, height, channels, dtype, pages) with whole numbers of at least 1 and a dtype of "
                f"{', '.join(DTYPES)}"
            )
        width, height, channels = map(int, sizes)
        bits = 8 * np.dtype(dtype).itemsize
        facts = Facts(width, height, int(pages), 1, unsupported_kind(channels, bits), channels, dtype, bits)
        return header_of(facts, data, self.number)

    def page_headers(self, data: bytes, *, every: bool) -> list[PageRun]:
        """The header of the first page or, with `every`, of all that `decode` can decode; see `pages.page_headers`."""
        header, reason = or_reason(lambda: self.header(data))
        frames = max(1, header.pages) if every and self.takes_page else 1
        return [limited(PageRun(header, reason, 0, frames), data)]

    def pixels(self, data: bytes, header: Header, page: int, key: str) -> np.ndarray:
        """Decode a page of an image: an array (height, width, channels) as its header says.

        Raises:
            BadImage: the reader raised it.
            ValueError: the reader returned another shape or type.
        """
        try:
            made: Any = self._call("decode", data, *([page] if self.takes_page else []))
        except BadImage:
            raise
        except Exception as error:
            error.add_note(f"raised for the image with key {key!r}")
            raise
        shape, dtype = (header.height, header.width, header.bands), DTYPES[header.dtype]
        if isinstance(made, np.ndarray) and made.dtype == np.dtype(dtype):
            if made.shape == shape:
                return made
            if header.bands == 1 and made.shape == shape[:2]:
                return made[..., None]
        raise ValueError(
            f"the decode of formats[{self.name!r}] returned {_kind_of(made)} for image {key!r}; it must return {dtype} "
            f"{shape}, as its header said"
        )

    def _call(self, name: str, *arguments: Any) -> Any:
        try:
            return getattr(self.reader, name)(*arguments)
        except BadImage:
            raise
        except Exception as error:
            error.add_note(f"raised by {name} of formats[{self.name!r}]; {_BAD}")
            raise


UserFormats = tuple[UserFormat, ...]


def user_formats(formats: object) -> UserFormats:
    """The formats that `formats=` gives, in the order of their names.

    Raises:
        ValueError: it is not a dict from extensions to readers.

    >>> user_formats({"ct": "reader"})
    Traceback (most recent call last):
        ...
    ValueError: formats['ct'] is 'reader'; it must be a reader: an object with header(data) and decode(data)
    """
    if formats is None:
        return ()
    if not isinstance(formats, Mapping) or not all(isinstance(name, str) and name.strip(" .;") for name in formats):
        raise ValueError(f"formats is {shown(formats)}; give a dict from extensions to readers: {{'ct': MyReader()}}")
    if len(formats) > _MOST:
        raise ValueError(f"formats has {len(formats)} formats; at most {_MOST} are read")
    readers: dict[str, Any] = {}
    for given, reader in formats.items():
        name = given.strip(" .").lower()
        if name in readers:
            raise ValueError(f"formats names {name!r} twice, in other cases or with a dot; name it once")
        readers[name] = reader
        if isinstance(reader, type):
            raise ValueError(f"formats[{name!r}] is the class {reader.__name__}; call it: {reader.__name__}()")
        if not (callable(getattr(reader, "header", None)) and callable(getattr(reader, "decode", None))):
            raise ValueError(
                f"formats[{name!r}] is {shown(reader)}; it must be a reader: an object with header(data) and "
                "decode(data)"
            )
        for method in ("header", "decode"):
            if not (_takes(getattr(reader, method), 1) or (method == "decode" and _takes(reader.decode, 2))):
                raise ValueError(
                    f"{method} of formats[{name!r}] cannot be called with the bytes of an image; give it one "
                    "argument" + (", or two: the bytes and the number of a page" if method == "decode" else "")
                )
    return tuple(
        UserFormat(name, OWN + i, reader, _takes(reader.decode, 2))
        for i, (name, reader) in enumerate(sorted(readers.items(), key=itemgetter(0)))
    )


def find_format(formats: UserFormats, name: str) -> UserFormat | None:
    """The format of a file, a member or a column: of its whole name or else of its last extension, in any case."""
    if not formats:
        return None
    lower = name.lower()
    endings = (lower, lower.rpartition(".")[2])
    return next((format for ending in endings for format in formats if format.name == ending), None)


def own_format(formats: UserFormats, data: bytes) -> UserFormat | None:
    """The format of encoded bytes that know their name; None for others."""
    return find_format(formats, data.name) if formats and isinstance(data, NamedBytes) else None


def in_order(formats: UserFormats, names: Sequence[str]) -> UserFormats:
    """The formats that an index names, in its order.

    Raises:
        ValueError: one of them is not among `formats`.
    """
    by_name = {format.name: format for format in formats}
    for name in names:
        if name not in by_name:
            raise ValueError(
                f"the index was made with a reader of the format {name!r}, which formats= does not have; give "
                f"formats={{{name!r}: MyReader()}}"
            )
    return tuple(by_name[name]._replace(number=OWN + i) for i, name in enumerate(names))


def check_decode(decode: object) -> None:
    """Raise ValueError if `decode` is neither None nor callable with one argument."""
    if decode is None:
        return
    wanted = "it must be a function from encoded bytes to an array, or None"
    if not callable(decode):
        raise ValueError(f"decode is {decode!r}; {wanted}")
    try:
        signature = inspect.signature(decode)
    except (TypeError, ValueError):  # some functions written in C have none
        return
    try:
        signature.bind(None)
    except TypeError as error:
        name = getattr(decode, "__name__", type(decode).__name__)
        raise ValueError(f"decode is {name}{signature}; {wanted} ({error})") from error


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with so many arguments; one written in C takes one."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:
        return count == 1
    return True


def user_pixels(
    decode: Decode, data: bytes, header: Header, packing: Packing, key: str
) -> tuple[bytes | np.ndarray, Header]:
    """Call `decode` on an encoded image. Return its pixels, or `data` if it returns None, and their header.

    The pixels are (height, width, C) of the packing's channels and dtype.

    Raises:
        BadImage: `decode` raised it, or returned None for an image that only a `decode` function can read.
        ValueError: `decode` returned another shape or type.

    Any other exception from `decode` propagates, with a note that names the key.
    """
    try:
        pixels: Any = decode(data)
    except BadImage:
        raise
    except Exception as error:
        error.add_note(f"raised by decode for the image with key {key!r}; {_BAD}")
        raise
    if pixels is None:
        if band_request(packing) is None:
            read_header(data)  # raises if only a decode function can read the image
        return data, header
    width, height = (header.height, header.width) if header.orientation >= 5 else (header.width, header.height)
    wanted = f"{packing.dtype} {(height, width, packing.channels)}"
    if _kind_of(pixels) != wanted:
        before_exif = " before its EXIF orientation, which the loader applies" if header.orientation > 1 else ""
        raise ValueError(
            f"decode returned {_kind_of(pixels)} for image {key!r}; it must return {wanted}, the height and width of "
            f"the header{before_exif} and the channels and dtype of Packing, or None to leave the image to the loader"
        )
    return pixels, header._replace(bands=packing.channels, dtype=DTYPES.index(packing.dtype))


def _kind_of(pixels: object) -> str:
    return f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
