"""JPEGs that are odd, or damaged, in one way each; and the two that no encoder here writes."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image

from tests.images import encode_image

# 24x16 pixels, quality 80, by libjpeg-turbo 2.1.5: arithmetic coding, and sampling factors 3x1, 1x1, 1x1.
ARITHMETIC = base64.b64decode(
    """
/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAYEBQYFBAYGBQYHBwYIChAKCgkJChQODwwQFxQYGBcUFhYaHSUfGhsjHBYWICwgIyYn
KSopGR8tMC0oMCUoKSj/2wBDAQcHBwoIChMKChMoGhYaKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgo
KCgoKCgoKCj/yQARCAAQABgDASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/AMp5eLw9f25Mc6zOe7eMkbYHkll+
XRc3fABjtI8iu00ROJjBorU/fUfCqA5Dxog5vtmvrzIiiD+O262jIp4DS/cqrGR9Qr26CyOud9uIAGQmN/30de0Xq2FA/9k=
    """
)
ODD_SAMPLING = base64.b64decode(
    """
/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAYEBQYFBAYGBQYHBwYIChAKCgkJChQODwwQFxQYGBcUFhYaHSUfGhsjHBYWICwgIyYn
KSopGR8tMC0oMCUoKSj/2wBDAQcHBwoIChMKChMoGhYaKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgo
KCgoKCgoKCj/wAARCAAQABgDATEAAhEBAxEB/8QAFgABAQEAAAAAAAAAAAAAAAAABgUH/8QAIhAAAQIGAQUAAAAAAAAAAAAAEQAG
AQIEBSKhAxITQVFx/8QAFwEAAwEAAAAAAAAAAAAAAAAAAwUGB//EACARAAEDBAIDAAAAAAAAAAAAAAEAAgQFBhEhAxRBgZH/2gAM
AwEAAhEDEQA/AMNoG6RhpJKBtEYaSWga5GGksDewqW2qnjG1ZtbdIwS61tojDSSU1kk4Iwl7fXP6h4+oMCYyPGdK5Nho++APZWf2
7Ucua0Ff/9k=
    """
)


def scan_of(data: bytes) -> int:
    """Where the start-of-scan marker begins."""
    return data.index(b"\xff\xda")


def changed(data: bytes, at: int, value: int) -> bytes:
    """The data with one byte replaced."""
    return data[:at] + bytes([value]) + data[at + 1 :]


def zero_se(data: bytes) -> bytes:
    """A sequential JPEG with Se = 0, as some phones write it."""
    begin = scan_of(data) + 2
    return changed(data, begin + int.from_bytes(data[begin : begin + 2], "big") - 2, 0)


def between_segments(data: bytes, junk: bytes = b"\x00\x01\x02") -> bytes:
    """A JPEG with bytes between its last two segments."""
    return data[: scan_of(data)] + junk + data[scan_of(data) :]


def oddities(image: Image.Image) -> Iterator[tuple[str, bytes, bytes, set[str]]]:
    """Name, file, the same file without its oddity, and the kinds of warnings."""
    plain = encode_image(image, quality=90)
    restarts = encode_image(image, quality=90, restart_marker_blocks=2)
    progressive = encode_image(image, quality=90, progressive=True)
    exif = plain[:2] + b"\xff\xe1\x00\x0aExif\x00\x00II" + plain[2:]
    for name, whole in (
        ("plain", plain),
        ("restarts", restarts),
        ("grey", encode_image(image.convert("L"))),
        ("exif", exif),
    ):
        yield f"{name}, Se = 0", zero_se(whole), whole, {"scan parameters"}
        yield f"{name}, bytes between segments", between_segments(whole), whole, {"extraneous bytes"}
        version = changed(whole, whole.index(b"JFIF\0") + 5, 3)
        yield f"{name}, version 3", version, whole, {"JFIF version"}
        yield (
            f"{name}, all three",
            between_segments(zero_se(version)),
            whole,
            {
                "scan parameters",
                "extraneous bytes",
                "JFIF version",
            },
        )
    yield "progressive, bytes between segments", between_segments(progressive), progressive, {"extraneous bytes"}
    yield "fill bytes", between_segments(plain, b"\xff\xff"), plain, set()
    yield "bytes behind the end", plain + b"garbage" * 20, plain, set()
    yield "another image behind the end", plain + plain, plain, set()
    yield "bytes before the end", plain[:-2] + bytes(40) + plain[-2:], plain, {"extraneous bytes"}
    at = restarts.index(b"\xff\xd0", scan_of(restarts))
    yield "bytes before a restart", restarts[:at] + bytes(40) + restarts[at:], restarts, {"extraneous bytes"}


def endings(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    """Files that end early: everywhere, and all but their end marker, with and without oddities before."""
    kinds: tuple[tuple[str, dict[str, Any]], ...] = (
        ("plain", {}),
        ("progressive", {"progressive": True}),
        ("grey", {}),
    )
    for kind, options in kinds:
        whole = encode_image(image.convert("L" if kind == "grey" else "RGB"), quality=90, **options)
        first = scan_of(whole) + 14
        for end in (*range(first, len(whole) - 2, 37), len(whole) - 2, len(whole) - 1):
            yield f"{kind} cut at {end}", whole[:end]
            yield f"{kind} with bytes between segments, cut at {end}", between_segments(whole[:end])
            if kind == "plain":
                yield f"{kind} with Se = 0, cut at {end}", zero_se(whole[:end])
                if end < len(whole) - 60:
                    yield f"{kind} cut at {end}, then ended", whole[:end] + b"\xff\xd9"
                    yield f"{kind} with Se = 0 cut at {end}, then ended", zero_se(whole[:end]) + b"\xff\xd9"

    restarts = encode_image(image, quality=90, restart_marker_blocks=2)
    at = restarts.index(b"\xff\xd0", scan_of(restarts))
    for end in range(at + 200, len(restarts), 61):
        yield f"bytes before a restart, cut at {end}", restarts[:at] + bytes(40) + restarts[at:end]


def wrong_restarts(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    """Restart markers that the header announces at other places, or not at all."""
    whole = encode_image(image, quality=90, restart_marker_blocks=2)
    at = whole.index(b"\xff\xdd")
    yield "every third block", changed(whole, at + 5, 3)
    yield "none", changed(whole, at + 5, 0)


def lossless(pixels: np.ndarray) -> bytes:
    """A lossless JPEG (T.81, annex H) of 8 bits."""
    return bytes(imagecodecs.jpeg8_encode(pixels, lossless=True))
