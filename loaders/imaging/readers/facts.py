"""`Facts`: what the header of an encoded image says, whatever its format; and the decoders of imagecodecs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

MAX_CHANNELS = 4


class Facts(NamedTuple):
    """What an image's header says.

    Attributes:
        width, height: size in pixels of the array that the reader's `decode` returns.
        pages: number of pages or frames; `SEVERAL` where only decoding would count them.
        orientation: EXIF orientation, 1 to 8, where the format says it outside EXIF and XMP; None where it does not.
        unsupported: why the loader does not read the image by itself, None if it does.
    """

    width: int
    height: int
    pages: int = 1
    orientation: int | None = None
    unsupported: str | None = None


SEVERAL = -1  # pages of an animation whose header does not count its frames


def unsupported_kind(channels: int, bits: int) -> str | None:
    """Why an image of this many channels and bits per channel is not read, None if it is."""
    if channels > MAX_CHANNELS:
        return f"it has {channels} channels; only up to {MAX_CHANNELS} are read"
    if bits > 8:
        return f"it has {bits} bits per channel; only 8-bit channels are read"
    return None


@functools.cache
def codec(name: str) -> Callable[..., Any]:
    """A function of imagecodecs, which is imported once an image needs it: the import takes a tenth of a second.

    Its errors are ValueErrors; those of imagecodecs are RuntimeErrors, which anything may raise.
    """
    import imagecodecs

    function: Callable[..., Any] = getattr(imagecodecs, name)

    def call(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except RuntimeError as error:
            raise ValueError(str(error)) from error

    return call
