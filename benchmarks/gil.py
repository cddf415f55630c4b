"""Measure Python's own cost per image in the loader.

This cost is everything that the loader does except reading, digests, decoding and patchifying, nearly all with the GIL
held.

Only one thread at a time runs Python, however many threads decode. One process can therefore reach at most 1 / (this
cost) images/s. The script replaces the system call that reads, the digest of what was read, the decoder and the kernels
that write pixels, all of which release the GIL, with calls that take the same arguments and do nothing. The rest
(planning, queueing, building and counting batches) is measured as CPU time of the whole process. Some kernels in it
release the GIL, so the figure is an upper estimate. The caches stay warm, which they do not between real images.

    python benchmarks/gil.py [SHARDS] [--rounds 5]

Prints microseconds per image with one thread and with two threads, which contend for the GIL, and the part of the
training loop's own thread, and writes benchmarks/results/gil.csv. The budget is 15.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import datetime
import os
import platform
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import simplejpeg
import xxhash
from numba import njit

from patchnpack import PackedImageLoader, Packing
from patchnpack.loaders import Index, scan
from patchnpack.packer import _kernels

HERE = Path(__file__).resolve().parent
CLOTHING = HERE.parents[1] / "shared" / "data" / "clothing" / "train-{000000..000009}.tar"
BUDGET = 15  # microseconds per image


def no_decode(data: bytes, colorspace: str = "RGB", *, buffer: np.ndarray, strict: bool = True) -> np.ndarray:
    return buffer


# The stubs are compiled, so that passing arguments from Python to compiled code still counts.
@njit(nogil=True)
def no_place(pixels, patch, grid_w, grid_h, coords, patches, first, keep):  # type: ignore[no-untyped-def]
    pass


@njit(nogil=True)
def no_clearing(patches, used):  # type: ignore[no-untyped-def]
    pass


def cost(loader: PackedImageLoader) -> tuple[float, float]:
    """CPU time of this process and of this thread over one epoch, in microseconds per image."""
    began, here = time.process_time(), time.thread_time()
    images = sum(batch.num_images for batch in loader)
    assert images == len(loader.index), f"{images} of {len(loader.index)} images"
    return (time.process_time() - began) / images * 1e6, (time.thread_time() - here) / images * 1e6


def measure(index: Index, threads: int, rounds: int) -> list[tuple[float, float]]:
    """Measure the cost in each round, after one warm-up round."""
    blank = {nbytes: bytes(nbytes) for nbytes in set(index.nbytes.tolist())}
    digests = {data: xxhash.xxh3_64_intdigest(data) for data in blank.values()}
    column = [digests[blank[nbytes]] for nbytes in index.nbytes.tolist()]
    index = dataclasses.replace(index, digest=np.array(column, np.uint64))
    packing = Packing(seq_len=4096, patch_size=16)
    label = "cls" if "cls" in index.members else None  # as in training
    loader = PackedImageLoader(index, packing, batch_size=8, num_threads=threads, label=label)
    stubs: dict[tuple[Any, str], Any] = {
        (os, "pread"): lambda file, nbytes, offset: blank[nbytes],
        (xxhash, "xxh3_64_intdigest"): digests.__getitem__,  # bytes remember their hash: one lookup, in C
        (simplejpeg, "decode_jpeg"): no_decode,
        (_kernels, "place_image"): no_place,
        (_kernels, "clear_padding"): no_clearing,
    }
    patches = [mock.patch.object(*target, stub) for target, stub in stubs.items()]
    for patch in patches:
        patch.start()
    try:
        return [cost(loader) for _ in range(rounds + 1)][1:]
    finally:
        for patch in patches:
            patch.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="?", default=str(CLOTHING))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gil.csv")
    options = parser.parse_args()
    try:
        index = scan(options.shards)
    except FileNotFoundError as error:
        sys.exit(f"{error}\ngive shards of JPEG photographs: python benchmarks/gil.py 'SHARDS'")
    details = {
        "images": len(index),
        "rounds": options.rounds,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs",
        "versions": f"Python {platform.python_version()}, numpy {np.__version__}",
        "command": f"python {shlex.join(sys.argv)}",
        "date": str(datetime.date.today()),
    }
    print("\n".join(f"{name:9}{value}" for name, value in details.items()))
    rows = []
    for threads in (1, 2):
        found, loop = zip(*measure(index, threads, options.rounds), strict=True)
        figures = {
            "median": statistics.median(found),
            "low": min(found),
            "high": max(found),
            "loop": statistics.median(loop),
        }
        print(
            f"{threads} threads: {figures['median']:.1f} microseconds per image "
            f"({figures['low']:.1f} to {figures['high']:.1f}), budget {BUDGET}; the loop's "
            f"thread {statistics.median(loop):.1f}"
        )
        rows.append({"threads": threads, **{name: f"{value:.1f}" for name, value in figures.items()}, **details})
    options.out.parent.mkdir(exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
