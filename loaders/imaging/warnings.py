"""Warnings: what is odd about an image whose pixels are all there. Images with warnings are used, and counted."""

from __future__ import annotations

from collections.abc import Callable

from patchnpack.loaders.imaging.readers import jpeg

Warn = Callable[[str], object]

SECOND_DECODER = "second decoder"  # the first one refused the image
MESSAGE = "decoder message"  # what imagecodecs logs, such as a wrong checksum of a PNG's metadata
WARNINGS = (jpeg.EXTRANEOUS, jpeg.SCAN, jpeg.VERSION, jpeg.ADOBE, jpeg.PROFILE, jpeg.ORDER, SECOND_DECODER, MESSAGE)


def ignore(kind: str) -> None:
    """Do nothing about a warning."""
