"""Images of several pages or frames: which page is used, and the header of each."""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple, get_args

from patchnpack.loaders.imaging.formats import find_reader
from patchnpack.loaders.imaging.header import Header, bad_image, header_of, header_or_reason, or_reason
from patchnpack.loaders.imaging.readers.facts import SEVERAL, Facts

Pages = Literal["first", "error"]


class PageRun(NamedTuple):
    """Neighbouring pages or frames of a file that have one header.

    Attributes:
        header: of each of them; its `pages` counts those of the whole file. Width and height are 0 if it is unreadable.
        reason: why they cannot be used; None if they can.
        page: position of the first among the pages or frames of the file.
        frames: how many they are, at least 1.
    """

    header: Header
    reason: str | None
    page: int
    frames: int


def page_headers(data: bytes) -> list[PageRun]:
    """The headers of all pages or frames of an encoded file, in order, as runs. At least one; pixels are not decoded.

    Each page of a TIFF and each image of a HEIC is a run. An animated GIF, PNG, WebP or AVIF, or a video, is one run of
    all its frames, which have one size. Any other image is one run of one frame, as are a JPEG XL, whose frames only
    decoding would count, and a file that cannot be read.

    >>> page_headers(b"no image")[0].frames
    1
    """
    first, reason = header_or_reason(data)
    reader = find_reader(data)
    if reader is None or not first.width:
        return [PageRun(first, reason, 0, 1)]
    if reader.runs is None:
        return [limited(PageRun(first, reason, 0, max(1, first.pages) if reader.frames else 1), data)]
    runs: list[PageRun] = []
    page = 0
    for facts, frames in reader.runs(data):
        header, reason = or_reason(functools.partial(_header, facts, data, reader.format))
        runs.append(limited(PageRun(header._replace(pages=first.pages), reason, page, frames), data))
        page += frames
    return runs


def _header(facts: Facts | Exception, data: bytes, format: int) -> Header:
    if isinstance(facts, Exception):
        raise bad_image(facts)
    return header_of(facts, data, format)


def limited(run: PageRun, data: bytes) -> PageRun:
    """The run, as a bad one if it has more frames than the file has bytes."""
    if run.frames <= len(data):
        return run
    return PageRun(Header(0, 0, 1, 0), f"it says that it has {run.frames} frames, in {len(data)} bytes", run.page, 1)


def check_pages(pages: object) -> None:
    """Raise ValueError if `pages` is no known choice."""
    if pages not in get_args(Pages):
        raise ValueError(
            f"pages is {pages!r}; it must be 'first', which uses the first page of a file with several, or 'error', "
            "which makes such a file a bad image"
        )


def refusal_of_pages(pages: int) -> str:
    """Why an image of this many pages is bad under `pages="error"`."""
    return f"it has {'several' if pages == SEVERAL else pages} pages or frames, and pages is 'error'"
