"""`Facts`: what the header of an encoded image says, whatever its format."""

from __future__ import annotations

from typing import NamedTuple

from patchnpack.packer.dtypes import Dtype

MAX_CHANNELS = 4


class Facts(NamedTuple):
    """What an image's header says.

    Attributes:
        width, height: size in pixels of the array that the reader's `decode` returns.
        pages: number of pages or frames; `SEVERAL` where only decoding would count them.
        orientation: EXIF orientation, 1 to 8, where the format says it outside EXIF and XMP; None where it does not.
        unsupported: why the loader does not read the image as 8-bit colours, None if it does.
        bands: channels of the values that are stored; 0 where they are not read.
        dtype: type of these values.
        bits: significant bits of each value: a file of 10 bits has values of type uint16 from 0 to 1023.
    """

    width: int
    height: int
    pages: int = 1
    orientation: int | None = None
    unsupported: str | None = None
    bands: int = 3
    dtype: Dtype = "uint8"
    bits: int = 8


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


def whole_dtype(bits: int, *, signed: bool = False) -> Dtype:
    """The type that whole numbers of this many bits are read as."""
    if bits > 16:
        return "float32"
    return "int16" if signed else "uint16" if bits > 8 else "uint8"
