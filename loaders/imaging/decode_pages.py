"""Decoding several images of one file: its pages or frames in one pass, and several parts of each from one decode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.imaging.decode import decode
from patchnpack.loaders.imaging.header import Header
from patchnpack.loaders.imaging.warnings import Warn, ignore
from patchnpack.packer.config import ImageMode, Interpolation


class Wanted(NamedTuple):
    """An image to make from a file.

    Attributes:
        page: position among the pages or frames of the file.
        header: of this page, from `page_headers` or the index.
        size: (width, height) in pixels, upright, of the image to make.
        box: (left, top, width, height) in pixels, upright: the part of the page to use. None uses the whole page.
    """

    page: int
    header: Header
    size: tuple[int, int]
    box: tuple[int, ...] | None = None


def decode_pages(
    data: bytes | Image.Image | np.ndarray,
    wanted: Sequence[Wanted],
    *,
    mode: ImageMode = "RGB",
    interpolation: Interpolation = "bicubic",
    scaled: bool = True,
    strict: bool = True,
    warn: Warn = ignore,
) -> Iterator[np.ndarray | BadImage]:
    """Yield each wanted image of a file, in order: what `decode` returns of its page, or the `BadImage` that it raises.

    A bad page does not end the iteration: a damaged frame leaves the others usable. Pages are decoded in one forward
    pass over the file and once each, however many parts of them are wanted. Nothing is held but the page at hand, as
    long as pages are wanted in ascending order.

    Args:
        data: the encoded file, a PIL image, or an array, which has one page.
        wanted: the images to make. They may repeat.
        mode, interpolation, strict: as in `decode`.
        scaled: decode a JPEG at the lowest scale that suffices for all its wanted parts. Without it, each part has the
            pixels that `decode` gives it alone.
        warn: as in `decode`; called once per page, not per part.
    """
    for item in wanted:
        try:
            if item.page:
                raise BadImage(f"it has no page {item.page}: only the first page is decoded")
            yield decode(
                data,
                item.header,
                item.size,
                item.box,
                mode=mode,
                interpolation=interpolation,
                scaled=scaled,
                strict=strict,
                warn=warn,
            )
        except BadImage as error:
            yield error
