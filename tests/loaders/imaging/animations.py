"""Animations of random frames, and WebP animations written and composited by hand."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import imagecodecs
import numpy as np
from PIL import Image


def animation(seed: int, mode: str = "RGBA", frames: int = 6) -> list[Image.Image]:
    """Frames that change in parts, some of them transparent or translucent."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (frames, 24, 32, 4)).astype(np.uint8)
    pixels[..., 3] = rng.choice([0, 0, 90, 200, 255, 255], (frames, 24, 32))
    for number in range(1, frames):
        top, left = rng.integers(0, 12, 2)
        changed = pixels[number].copy()
        pixels[number] = pixels[number - 1]
        pixels[number, top : top + 10, left : left + 14] = changed[top : top + 10, left : left + 14]
    return [Image.fromarray(each).convert(mode) for each in pixels]


def webp_chunk(kind: bytes, payload: bytes) -> bytes:
    return kind + struct.pack("<I", len(payload)) + payload + b"\0" * (len(payload) % 2)


def webp(frames: Sequence[tuple[np.ndarray, int, int, bool, bool]], size: tuple[int, int]) -> bytes:
    """An animated WebP of frames (pixels, left, top, whether blended, whether disposed of)."""

    def number(value: int) -> bytes:
        return struct.pack("<I", value)[:3]

    body = webp_chunk(b"VP8X", bytes([0x12, 0, 0, 0]) + number(size[0] - 1) + number(size[1] - 1))
    body += webp_chunk(b"ANIM", struct.pack("<IH", 0xFF102030, 0))
    for pixels, left, top, is_blended, is_disposed in frames:
        height, width = pixels.shape[:2]
        place = b"".join(map(number, (left // 2, top // 2, width - 1, height - 1, 40)))
        flags = bytes([2 * (not is_blended) + is_disposed])
        body += webp_chunk(b"ANMF", place + flags + imagecodecs.webp_encode(pixels, lossless=True)[12:])
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def webp_frames(seed: int) -> Iterator[tuple[np.ndarray, int, int, bool, bool]]:
    rng = np.random.default_rng(seed)
    for number in range(8):
        width, height = rng.integers(2, 20, 2) if number else (32, 24)
        left, top = (2 * rng.integers(0, (32 - width) // 2 + 1), 2 * rng.integers(0, (24 - height) // 2 + 1))
        pixels = rng.integers(0, 256, (height, width, 4)).astype(np.uint8)
        pixels[..., 3] = rng.choice([0, 1, 60, 128, 254, 255, 255], (height, width))
        yield pixels, int(left), int(top), bool(rng.random() < 0.7), bool(rng.random() < 0.4)


def composited(frames: Sequence[tuple[np.ndarray, int, int, bool, bool]], size: tuple[int, int]) -> list[np.ndarray]:
    """The frames one after the other, pixel by pixel, by the formulas of libwebp's decoder of animations.

    It blends what is not on an empty canvas, and not where the frame before was disposed of.
    """
    canvas = np.zeros((size[1], size[0], 4), np.uint8)
    shown, is_empty = [], True
    cleared = np.zeros((size[1], size[0]), np.bool_)
    for pixels, left, top, is_blended, is_disposed in frames:
        covers = pixels.shape[:2] == canvas.shape[:2]
        for y, x in np.ndindex(*pixels.shape[:2]):
            over, under = pixels[y, x].tolist(), canvas[top + y, left + x].tolist()
            if not is_blended or over[3] == 255 or is_empty or cleared[top + y, left + x]:
                canvas[top + y, left + x] = over
            elif over[3]:
                rest = under[3] * (256 - over[3]) >> 8
                both = over[3] + rest
                scale = (1 << 24) // both
                mixed = [(o * over[3] + u * rest) * scale >> 24 for o, u in zip(over[:3], under[:3], strict=True)]
                canvas[top + y, left + x] = [*mixed, both]
        shown.append(canvas.copy())
        cleared[:] = False
        if is_disposed:
            canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]] = 0
            cleared[top : top + pixels.shape[0], left : left + pixels.shape[1]] = True
        is_empty = is_disposed and (covers or is_empty)
    return shown
