"""Shards whose samples hold several images, for tests of this folder and others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.images import draw_image, encode_image, write_tar


def jpeg(width: int, height: int) -> bytes:
    """A JPEG whose bytes are told by its size."""
    return encode_image(draw_image(width, height))


def write_documents(path: Path, pages: Mapping[str, Sequence[int]], *, cls: bool = True) -> str:
    """A tar with a sample for each document: page p of width 10 + p as its member `pP.jpg`, in the order given."""
    members: list[tuple[str, bytes]] = []
    for number, (key, numbers) in enumerate(pages.items()):
        members += [(f"{key}.p{page}.jpg", jpeg(10 + page, 20 + number)) for page in numbers]
        members += [(f"{key}.cls", str(number).encode())] if cls else []
        members.append((f"{key}.txt", f"text of {key}".encode()))
    return write_tar(path, members)


def write_rows(path: Path, keys: Sequence[str]) -> str:
    """A tar with an image for each key, row r of width 10 + r."""
    return write_tar(path, [(f"{key}.jpg", jpeg(10 + row, 20)) for row, key in enumerate(keys)])
