"""`Facts`: what the header of an encoded image says, whatever its format."""

from __future__ import annotations

from typing import NamedTuple

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


# A run of pages of one size: what their header says, or the error that reading it raised, and how many they are.
Run = tuple[Facts | Exception, int]

SEVERAL = -1  # pages of an animation whose header does not count its frames


def unsupported_kind(channels: int, bits: int) -> str | None:
    """Why an image of this many channels and bits per channel is not read, None if it is."""
    if channels > MAX_CHANNELS:
        return f"it has {channels} channels; only up to {MAX_CHANNELS} are read"
    if bits > 8:
        return f"it has {bits} bits per channel; only 8-bit channels are read"
    return None
