"""The images of a sample that arrives in a stream: which of its members they are, their sizes, and what is bad."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from patchnpack.loaders.datasets.pictures import is_stored, stored_bytes
from patchnpack.loaders.error_policy import ErrorPolicy
from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.imaging.header import Header, UnsupportedImage, image_header, read_header
from patchnpack.loaders.imaging.pages import PageRun, Pages, refusal_of_pages
from patchnpack.loaders.imaging.user_decode import UserFormats, own_format
from patchnpack.loaders.imaging.values.bands import BandRequest
from patchnpack.loaders.index.samples.sample_images import pages_of
from patchnpack.loaders.shards.keys import natural_key

Picture = bytes | Image.Image | np.ndarray


class Run(NamedTuple):
    """Neighbouring images of a sample that lie in one file and have one header.

    Attributes:
        file: position of the file, or of the decoded picture, among those of the sample.
        header: of each image.
        page: position of the first image among the pages or frames of its file.
        frames: number of images, at least 1.
        number: number of the first image in the sample, from 0.
    """

    file: int
    header: Header
    page: int
    frames: int
    number: int


class Bad(NamedTuple):
    """An image, or all pages of a file, that cannot be used.

    Attributes:
        stage, reason, page: as of `BadRow`.
    """

    stage: str
    reason: str
    page: int = 0


class PictureReader:
    """Reads the headers of the pictures of one sample after the other.

    Args:
        errors, pages: those of `pack_stream`.
        any_kind: accept encoded images of every kind, since a `decode` function will get them.
        all_pages: use all pages and frames of encoded files, not only the first.
        bands: what the packing asks for beyond 8-bit colours.
        formats: the user's formats, which read `NamedBytes` of their names.
    """

    def __init__(
        self,
        errors: ErrorPolicy,
        any_kind: bool,
        pages: Pages,
        all_pages: bool,
        bands: BandRequest | None = None,
        formats: UserFormats = (),
    ) -> None:
        self._formats = formats
        self._errors, self._any_kind, self._pages, self._all_pages = errors, any_kind, pages, all_pages
        self._bands = bands

    def one(self, value: Any, key: str) -> tuple[tuple[Picture], tuple[Run]]:
        """Return the picture of a sample of one image, and its first page. Raises BadImage."""
        picture = plain(value, key)
        try:
            header = self._header_of(picture, key)
        except UnsupportedImage as error:
            if not self._any_kind and self._bands is None:
                raise
            header = error.header
        if self._bands is not None and not self._any_kind:
            self._bands.check(header)
        self._check_limits(picture, header)
        if self._pages == "error" and header.pages != 1:
            raise BadImage(refusal_of_pages(header.pages))
        return (picture,), (Run(0, header, 0, 1, 0),)

    def all(self, values: Sequence[Any], key: str) -> tuple[list[Picture], list[Run], list[Bad]]:
        """Return the pictures of a sample, the images in them that can be used, and those that cannot."""
        pictures: list[Picture] = []
        runs: list[Run] = []
        bad: list[Bad] = []
        number = 0
        for file, value in enumerate(values):
            try:
                picture = plain(value, key)
                found = self._runs_of(picture, key)
            except BadImage as error:
                bad.append(Bad(stage_of(error), str(error) if len(values) == 1 else in_picture(file, str(error))))
                pictures.append(b"")  # so that files keep their numbers
                continue
            pictures.append(picture)
            for run in found:
                reason, stage = self._refusal(picture, run)
                if reason is None:
                    runs.append(Run(file, run.header, run.page, run.frames, number))
                    number += run.frames
                else:
                    bad.append(Bad(stage, reason if len(values) == 1 else in_picture(file, reason), run.page))
        return pictures, runs, bad

    def _runs_of(self, picture: Picture, key: str) -> list[PageRun]:
        if isinstance(picture, bytes) and self._all_pages:
            return pages_of(picture, every=True, own=own_format(self._formats, picture))
        try:
            return [PageRun(self._header_of(picture, key), None, 0, 1)]
        except UnsupportedImage as error:
            return [PageRun(error.header, str(error), 0, 1)]

    def _header_of(self, picture: Picture, key: str) -> Header:
        try:
            if isinstance(picture, bytes):
                own = own_format(self._formats, picture)
                return read_header(picture) if own is None else own.header(picture)
            return image_header(picture, values=self._bands is not None)
        except ValueError as error:
            error.add_note(f"raised for the sample with key {key!r}")
            raise

    def _refusal(self, picture: Picture, run: PageRun) -> tuple[str | None, str]:
        """Return why the images of a run cannot be used, None if they can, and the stage."""
        is_taken = self._any_kind or self._bands is not None
        if run.reason is not None and not (is_taken and run.header.width):
            return run.reason, "header"
        try:
            if self._bands is not None and not self._any_kind:
                self._bands.check(run.header)
            self._check_limits(picture, run.header)
        except BadImage as error:
            return str(error), stage_of(error)
        return None, ""

    def _check_limits(self, picture: Picture, header: Header) -> None:
        nbytes = len(picture) if isinstance(picture, bytes) else 0
        if (reason := self._errors.beyond(header.width * header.height, nbytes)) is not None:
            raise BadImage(reason, "limit")


def stage_of(error: BadImage) -> str:
    """Return the stage at which a sample that arrives is bad: nothing is decoded yet."""
    return "header" if error.stage == "decode" else error.stage


def in_picture(number: int, reason: str) -> str:
    """Say which picture of a sample of several is bad, counted from 1."""
    return f"picture {number + 1} of the sample: {reason}"


def plain(value: Any, key: str) -> Picture:
    """Return an image as bytes, a PIL image or an array.

    Raises:
        BadImage: the image is missing.
        ValueError: the value has an unsupported type.
    """
    if is_stored(value):  # as Hugging Face's Image(decode=False) gives it
        value = stored_bytes(value["bytes"], value["path"], f"sample {key!r}")
    if isinstance(value, bytes):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, Image.Image | np.ndarray):
        raise ValueError(
            f"the image of sample {key!r} is a {type(value).__module__}.{type(value).__qualname__}; it must be encoded "
            "bytes, a PIL image or a uint8 array (height, width, C)"
            + (". For lists of images give sample='members'" if isinstance(value, list | tuple) else "")
        )
    return value


def pictures_in(value: Any) -> Iterator[Any]:
    """Yield the images of a value: a list of them, the frames of an array (frames, height, width, C), or one image.

    None, in a list too, is no image.
    """
    if isinstance(value, list | tuple):
        yield from (each for item in value for each in pictures_in(item))
    elif isinstance(value, np.ndarray) and value.ndim == 4:
        yield from value
    elif value is not None:
        yield value


def image_members(sample: Mapping[str, Any], images: Sequence[str]) -> list[str]:
    """Return the members of a sample that are images, in natural order: p2 before p10.

    A member is an image if its name, or its last extension, is one of `images`, in any case.

    >>> image_members({"__key__": "a", "p10.png": b"", "p2.png": b"", "cls": b"1", "PNG": b""}, ["jpg", "png"])
    ['PNG', 'p2.png', 'p10.png']
    """
    places = {name.lower(): place for place, name in reversed(list(enumerate(images)))}
    found = []
    for name in sample:
        lower = str(name).lower()
        extension = lower if lower in places else lower.rpartition(".")[2]
        if extension in places and not lower.startswith("__"):
            found.append((natural_key(lower.removesuffix(extension)), places[extension], name))
    return [name for *_, name in sorted(found)]
