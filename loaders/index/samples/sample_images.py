"""Which members of a sample are its images, in which order, and the rows of the index that they become."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from patchnpack.loaders.imaging.header import header_or_reason
from patchnpack.loaders.imaging.pages import PageRun, page_headers
from patchnpack.loaders.imaging.user_decode import UserFormat
from patchnpack.loaders.shards.keys import natural_key
from patchnpack.loaders.shards.parquet import column_of
from patchnpack.loaders.shards.tar import TarSample


class ImageMember(NamedTuple):
    """A member that is an image.

    Attributes:
        name: its name in the sample, such as "p2.jpg".
        extension: what names it in `Index.members`: its extension or, in a parquet shard, its column.
    """

    name: str
    extension: str


Choose = Callable[[TarSample], Sequence[ImageMember]]


def first_image(images: Sequence[str]) -> Choose:
    """Return the choice of one image per sample: the member with the first of these names."""

    def choose(sample: TarSample) -> list[ImageMember]:
        extension = next((name for name in images if name in sample.members), None)
        return [] if extension is None else [ImageMember(extension, extension)]

    return choose


def all_images(images: Sequence[str]) -> Choose:
    """Return the choice of all members whose name, or its last extension, is one of these.

    They are in the natural order of what stands before the extension; whole names are in the order in which they are
    given, before the others.
    """
    places = {name: place for place, name in enumerate(images)}

    def choose(sample: TarSample) -> list[ImageMember]:
        found = []
        for name in sample.members:
            extension = name if name in places else name.rpartition(".")[2]
            if extension in places:
                stem = name.removesuffix(extension)
                found.append((natural_key(stem), places[extension], ImageMember(name, extension)))
        return [member for *_, member in sorted(found)]

    return choose


def all_items(columns: Sequence[str]) -> Choose:
    """Return the choice of the images of these columns of a parquet shard: column by column, list by list."""
    places = {name: place for place, name in enumerate(columns)}

    def choose(sample: TarSample) -> list[ImageMember]:
        found = []
        for name in sample.members:
            column, number = column_of(name)
            if column in places:
                found.append((places[column], number, ImageMember(name, column)))
        return [member for *_, member in sorted(found)]

    return choose


def pages_of(data: bytes, *, every: bool, own: UserFormat | None = None) -> list[PageRun]:
    """Return the rows of an image: one for its first page or, with `every`, those of all its pages or frames.

    Where the rows hold all pages, their headers have one page each: none is left out. `own` is the user's format of the
    image, None where the library reads it.
    """
    if not every:
        return [PageRun(*header_or_reason(data), 0, 1)] if own is None else own.page_headers(data, every=False)
    runs = page_headers(data) if own is None else own.page_headers(data, every=True)
    if runs[0].header.pages != sum(run.frames for run in runs):
        return runs
    return [run._replace(header=run.header._replace(pages=1)) for run in runs]
