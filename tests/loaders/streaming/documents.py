"""Samples of several images that the tests of streams share, and what their batches hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import numpy as np

from patchnpack.packer import PackedBatch, Packing
from tests.images import draw_image, encode_image

PACKING = Packing(seq_len=64, patch_size=8, max_images=12, algorithm="subset_sum", lookahead=8)


@cache
def page(number: int, i: int) -> tuple[bytes, np.ndarray]:
    """Page i of document `number`, encoded without loss, and its pixels."""
    rng = np.random.default_rng((number, i))
    image = draw_image(int(rng.integers(8, 33)), int(rng.integers(8, 33)), seed=100 * number + i)
    return encode_image(image, "PNG"), np.asarray(image)


def pages_of(number: int) -> int:
    """Return the number of pages of a document, 1 to 4."""
    return 1 + number * 7 % 4


def by_members(count: int, bad: Iterable[tuple[int, int]] = ()) -> Iterator[dict[str, Any]]:
    """Yield documents whose pages are members, not in their order; each (document, page) in `bad` is no image."""
    broken = set(bad)
    for number in range(count):
        order = np.random.default_rng(number).permutation(pages_of(number)).tolist()
        pages = {f"p{8 + i}.png": b"no image" if (number, i) in broken else page(number, i)[0] for i in order}
        yield {"__key__": f"doc{number}", **pages, "cls": str(number).encode()}


def by_keys(count: int, bad: Iterable[tuple[int, int]] = ()) -> Iterator[dict[str, Any]]:
    """Yield the pages of the same documents one by one, with keys such as doc3_1."""
    broken = set(bad)
    for number in range(count):
        for i in range(pages_of(number)):
            data = b"no image" if (number, i) in broken else page(number, i)[0]
            yield {"__key__": f"doc{number}_{i}", "png": data, "cls": str(number).encode()}


def samples_in(batches: Iterable[PackedBatch]) -> list[list[tuple[str, int, int]]]:
    """Return (key, frame, label) of each image, sample by sample, in the order of the batches."""
    found: list[list[tuple[str, int, int]]] = []
    for batch in batches:
        for b in range(len(batch.image_mask)):
            last = 0
            for j, key in enumerate(batch.keys[b]):
                number, frame = int(batch.samples[b, j]), int(batch.frames[b, j])
                if number != last:
                    assert number == last + 1
                    found.append([])
                last = number
                found[-1].append((key, frame, int(batch.labels[b, j])))
    return found


def pixels_in(batches: Iterable[PackedBatch]) -> dict[tuple[int, int], np.ndarray]:
    """Return the pixels of each image by (label, frame)."""
    return {
        (int(image.label), frame): image.pixels()
        for batch in batches
        for image, frame in zip(batch.images(), batch.frames[batch.image_mask].tolist(), strict=True)
    }


def padded(pixels: np.ndarray, multiple: int = 8) -> np.ndarray:
    """Return pixels padded with zeros to whole patches."""
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, -height % multiple), (0, -width % multiple), (0, 0)))
