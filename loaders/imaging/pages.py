"""Images of several pages or frames: which page is used."""

from __future__ import annotations

from typing import Literal, get_args

from patchnpack.loaders.imaging.readers.facts import SEVERAL

Pages = Literal["first", "error"]


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
