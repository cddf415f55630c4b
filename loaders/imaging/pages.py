"""Images of several pages or frames: which page is used, and the header of each."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from patchnpack.loaders.imaging.header import Header, header_or_reason
from patchnpack.loaders.imaging.readers.facts import SEVERAL

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

    A TIFF or a HEIC has one run per page. An animation or a video is one run of all its frames, which have one size.
    Any other image, and a file that cannot be read, is one run of one frame.

    >>> page_headers(b"no image")[0].frames
    1
    """
    header, reason = header_or_reason(data)
    return [PageRun(header, reason, 0, max(1, header.pages))]


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
