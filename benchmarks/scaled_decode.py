"""Measure what decoding JPEGs at a lower scale changes: pixels and time, against decoding at full size.

A model's own processor decodes an image at full size and then resizes it. `Packing(scaled_decode=True)`, the default,
lets libjpeg-turbo decode an image that shrinks at least twofold at 1/2, 1/4 or 1/8 of its size first.

    python benchmarks/scaled_decode.py [SHARDS] [--tokens 256 64] [--interpolation bilinear] [--images 500]

Prints, for each `FitTokens(tokens)` at patch size 16, the share of images that shrink at least twofold, and for these
the mean, the 99.9th percentile and the largest difference of a value (of 255), and the CPU time of decoding and
resizing over that at full size. The two alternate image by image.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import get_args

import numpy as np

from patchnpack.loaders import Index, scan
from patchnpack.loaders.imaging.decode import decode
from patchnpack.loaders.imaging.formats import JPEG
from patchnpack.loaders.imaging.header import Header
from patchnpack.packer import FitTokens
from patchnpack.packer.config import Interpolation

HERE = Path(__file__).resolve().parent
CLOTHING = HERE.parents[1] / "shared" / "data" / "clothing" / "train-{000000..000009}.tar"


def compare(index: Index, rows: np.ndarray, tokens: int, interpolation: Interpolation) -> str:
    """Compare the two ways on these rows; returns a line of the table."""
    reader = index.reader()
    sizes = FitTokens(tokens).sizes(index.width[rows], index.height[rows], 16).size
    counts, seconds, shrunk = np.zeros(256, np.int64), np.zeros(2), 0
    for row, size in zip(rows.tolist(), sizes.tolist(), strict=True):
        width, height = int(index.width[row]), int(index.height[row])
        if width < 2 * size[0] or height < 2 * size[1]:
            continue
        shrunk += 1
        header = Header(width, height, int(index.orientation[row]), JPEG)
        data = reader.read(int(index.shard_of(row)), int(index.offset[row]), int(index.nbytes[row]))
        pixels = []
        for way in (0, 1) if shrunk % 2 else (1, 0):
            began = time.thread_time()
            pixels.append(decode(data, header, (size[0], size[1]), interpolation=interpolation, scaled=bool(way)))
            seconds[way] += time.thread_time() - began
        counts += np.bincount(np.abs(pixels[0].astype(np.int16) - pixels[1]).ravel(), minlength=256)
    if not shrunk:
        return f"{tokens:6}  no image shrinks at least twofold"
    total, each = counts.sum(), np.arange(256)
    high = int(np.searchsorted(np.cumsum(counts), 0.999 * total))
    return (
        f"{tokens:6} {shrunk / len(rows):8.0%} {(counts * each).sum() / total:6.2f} {high:7} "
        f"{int(each[counts > 0].max()):4} {seconds[1] / seconds[0]:6.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="?", default=str(CLOTHING))
    parser.add_argument("--tokens", nargs="+", type=int, default=[256, 64])
    parser.add_argument("--interpolation", default="bilinear", choices=get_args(Interpolation))
    parser.add_argument("--images", type=int, default=500)
    options = parser.parse_args()
    try:
        index = scan(options.shards)
    except FileNotFoundError as error:
        sys.exit(f"{error}\ngive shards of JPEG photographs: python benchmarks/scaled_decode.py 'SHARDS'")
    rows = np.flatnonzero(index.format == JPEG)
    rows = rows[:: max(1, len(rows) // options.images)][: options.images]
    print(f"{len(rows)} JPEGs, {options.interpolation}\ntokens  twofold   mean  99.9 %  max   time")
    for tokens in options.tokens:
        print(compare(index, rows, tokens, options.interpolation))


if __name__ == "__main__":
    main()
