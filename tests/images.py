"""Images, tars and patches that tests make: drawing and encoding images, cutting and joining patches, writing tars."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def draw_image(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """A smooth picture with some noise: it compresses like a photograph, and no two are alike."""
    rng = np.random.default_rng((seed, width, height))
    coarse = rng.integers(0, 256, (4, 4, 4), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse, "RGBA").resize((width, height), Image.Resampling.BILINEAR), np.int16)
    noisy = np.clip(smooth + rng.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8)
    image = Image.fromarray(noisy, "RGBA")
    if mode == "P":
        return image.convert("RGB").quantize(32)
    return image if mode == "RGBA" else image.convert(mode)


def encode_image(image: Image.Image | np.ndarray, kind: str = "JPEG", **options: Any) -> bytes:
    """Encode a PIL image, or an array (height, width) or (height, width, C)."""
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


def write_png(
    width: int, height: int, *, bits: int = 8, color: int = 2, rows: bytes | None = None, extra: bytes = b""
) -> bytes:
    """A PNG with the given header, whatever its pixels are; `rows` are the uncompressed rows, by default all zeros."""

    def chunk(kind: bytes, payload: bytes) -> bytes:
        return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))

    if rows is None:
        stride = -(-width * bits * {0: 1, 2: 3, 4: 2, 6: 4}[color] // 8)
        rows = bytes((1 + stride) * height)
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def resize_jpeg_header(data: bytes, width: int, height: int) -> bytes:
    """A baseline JPEG with another size in its frame header."""
    changed = bytearray(data)
    at = changed.index(b"\xff\xc0")
    changed[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(changed)


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], format: int = tarfile.USTAR_FORMAT) -> str:
    """Write a tar of (name, bytes) members in order, and return its path."""
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def read_tar(path: str | Path) -> list[tuple[str, bytes]]:
    """The (name, bytes) members of a tar, in order."""
    members = []
    with tarfile.open(path) as tar:
        for info in tar.getmembers():
            file = tar.extractfile(info)
            assert file is not None
            members.append((info.name, file.read()))
    return members


def rewrite_tar(path: str | Path, change: Mapping[str, bytes | None]) -> None:
    """Replace the bytes of members by name; None removes a member."""
    members = [(name, change.get(name, data)) for name, data in read_tar(path)]
    write_tar(Path(path), [(name, data) for name, data in members if data is not None])


def cut_patches(pixels: np.ndarray, P: int) -> np.ndarray:
    """All patches of an image (gh * P, gw * P, C) in row-major order: (gh * gw, P * P * C)."""
    height, width, channels = pixels.shape
    grid = pixels.reshape(height // P, P, width // P, P, channels)
    return grid.transpose(0, 2, 1, 3, 4).reshape(-1, P * P * channels)


def join_patches(patches: np.ndarray, coords: np.ndarray, grid: Sequence[int], P: int) -> np.ndarray:
    """The image (gh * P, gw * P, C) with patches (n, P * P * C) at coords (n, 2) of a grid (gw, gh), else zeros."""
    (gw, gh), channels = grid, patches.shape[1] // (P * P)
    pixels = np.zeros((gh * P, gw * P, channels), patches.dtype)
    for (x, y), patch in zip(coords.tolist(), patches, strict=True):
        pixels[y * P : (y + 1) * P, x * P : (x + 1) * P] = patch.reshape(P, P, channels)
    return pixels
