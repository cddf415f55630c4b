"""Documents of several pages in tar shards, for tests of packed folders and mixtures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from patchnpack.packer import Packing
from tests.images import draw_image, encode_image, write_tar

PACKING = Packing(seq_len=96, patch_size=8, max_images=16, balance=4, lookahead=16)
RULES = {"members": "members", "key": r"key:(.+)_\d+"}


def pages_of(number: int) -> int:
    """Return the number of pages of a document, 1 to 5."""
    return 1 + number * 7 % 5


def image(number: int, page: int, kind: str = "PNG") -> bytes:
    """Return a page of 8 to 40 pixels a side."""
    rng = np.random.default_rng((number, page))
    drawn = draw_image(int(rng.integers(8, 41)), int(rng.integers(8, 41)), seed=100 * number + page)
    return encode_image(drawn, kind)


def write_documents(
    folder: Path, rule: str, count: int = 24, *, first: int = 0, corrupt: tuple[tuple[int, int], ...] = ()
) -> list[str]:
    """Write shards of eight documents.

    With "members", the pages of a document are members, out of order, and every fifth document is one TIFF. With "key",
    each page is a sample of its own. The pixels of `corrupt` pages (document, page) cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[str] = []
    for begin in range(first, first + count, 8):
        members: list[tuple[str, bytes]] = []
        for number in range(begin, min(begin + 8, first + count)):
            pages = [image(number, page) for page in range(pages_of(number))]
            pages = [data[:60] if (number, page) in corrupt else data for page, data in enumerate(pages)]
            about = json.dumps({"title": f"document {number}"}).encode()
            others = [("cls", str(number).encode()), ("json", about)]
            if rule == "key":
                for page, data in enumerate(pages):
                    members += [(f"doc{number}_{page}.{name}", value) for name, value in [("png", data), *others]]
                continue
            if number % 5 == 4:
                drawn = [draw_image(16 + 8 * page, 24, seed=number + page) for page in range(pages_of(number))]
                tiff = encode_image(drawn[0], "TIFF", save_all=True, append_images=drawn[1:])
                members += [(f"doc{number}.{name}", value) for name, value in [("tiff", tiff), *others]]
                continue
            order = np.random.default_rng(number).permutation(len(pages)).tolist()
            members += [(f"doc{number}.p{8 + page}.png", pages[page]) for page in order]
            members += [(f"doc{number}.{name}", value) for name, value in others]
        shards.append(write_tar(folder / f"shard-{begin:03d}.tar", members))
    return shards


def samples_in(batches: Any) -> list[list[tuple[str, int, int]]]:
    """Return (key, frame, label) of each image, sample by sample, in the order of the batches."""
    found: list[list[tuple[str, int, int]]] = []
    for batch in batches:
        for b in range(len(batch.image_mask)):
            last = 0
            for j, key in enumerate(batch.keys[b]):
                if int(batch.samples[b, j]) != last:
                    found.append([])
                last = int(batch.samples[b, j])
                found[-1].append((key, int(batch.frames[b, j]), int(batch.labels[b, j])))
    return found
