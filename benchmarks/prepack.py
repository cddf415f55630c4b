"""Measure how fast packed folders are read.

The script compares a patch store with memcpy and decoding, and an image store with the shards. All methods take turns
in one process with the same images and threads, so other work on the machine affects all alike.

* memcpy: `numpy.copyto` of the same number of bytes from memory to an existing buffer.
* patch store into a buffer: each batch's `patches`, which lie in the memory map, copied into such a buffer. The files
  lie in the page cache. The budget is half of memcpy's bytes/s.
* patch store: an epoch of `PackedImageLoader`, as tensors in the map, each page touched once.
* patch store, packs shuffled: the same in another order, each pack copied once into a recycled buffer.
* decoding: an epoch of `PackedImageLoader` over the shards, into the same packs. A patch store should reach ten times
  its images/s.
* image store: an epoch over encoded images in the order of their packs.

    python benchmarks/prepack.py [SHARDS] [--rounds 7] [--threads 2]

Prints a table of medians over the rounds and the ratios of each round, and writes benchmarks/results/prepack.csv.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from patchnpack import PackedImageLoader, Packing
from patchnpack.loaders import Job, open_index

HERE = Path(__file__).resolve().parent
CLOTHING = HERE.parents[1] / "shared" / "data" / "clothing" / "train-{000000..000009}.tar"

Method = Callable[[], tuple[int, int]]  # runs an epoch or an equal amount of work; returns images and bytes of patches


def methods(index: Any, packing: Packing, folder: Path, threads: int, batch_size: int) -> dict[str, Method]:
    """The measured methods by name."""
    for store in ("images", "patches"):
        Job(source=index, out=str(folder / store), packing=packing, store=store, label="cls").run()
    given: dict[str, Any] = {"batch_size": batch_size, "num_threads": threads}
    loaders = {
        "patch store": PackedImageLoader(folder / "patches", **given),
        "patch store, packs shuffled": PackedImageLoader(folder / "patches", shuffle=True, **given),
        "image store": PackedImageLoader(folder / "images", **given),
        "decoding": PackedImageLoader(index, packing, label="cls", **given),
    }
    shape = next(iter(loaders["patch store"])).patches.shape
    buffer = np.zeros(shape, np.uint8)
    packs = len(loaders["patch store"]) * batch_size
    source = np.ones(
        (packs, *shape[1:]), np.uint8
    )  # as many distinct bytes as the patch store, to defeat the CPU cache

    def epoch(name: str) -> tuple[int, int]:
        images = nbytes = 0
        for batch in loaders[name]:
            images += batch.num_images
            nbytes += batch.patches.nbytes
        return images, nbytes

    def into_buffer() -> tuple[int, int]:
        images = nbytes = 0
        for batch in loaders["patch store"]:
            np.copyto(buffer[: len(batch.patches)], batch.patches.numpy())
            images += batch.num_images
            nbytes += batch.patches.nbytes
        return images, nbytes

    def memcpy() -> tuple[int, int]:
        for low in range(0, packs, batch_size):
            np.copyto(buffer[: len(source[low : low + batch_size])], source[low : low + batch_size])
        return 0, source.nbytes

    def named(name: str) -> Method:
        return lambda: epoch(name)

    return {"memcpy": memcpy, "patch store into a buffer": into_buffer, **{name: named(name) for name in loaders}}


def measure(all_methods: dict[str, Method], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Measure images/s and bytes/s of each method in each round, after one warm-up round."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in all_methods}
    for round_ in range(rounds + 1):
        for name, method in all_methods.items():
            began = time.perf_counter()
            images, nbytes = method()
            seconds = time.perf_counter() - began
            if round_:
                found[name].append((images / seconds, nbytes / seconds))
    return found


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Measure, print and write the results; return the median ratios by name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="?", default=str(CLOTHING))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seq-len", type=int, default=4096)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "prepack.csv")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    index = open_index(args.shards)
    packing = Packing(seq_len=args.seq_len)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        found = measure(methods(index, packing, Path(folder), args.threads, args.batch_size), args.rounds)

    def ratios(a: str, b: str, which: int) -> list[float]:
        return [x[which] / y[which] for x, y in zip(found[a], found[b], strict=True)]

    compared = {
        "bytes/s, patch store into a buffer / memcpy": ratios("patch store into a buffer", "memcpy", 1),
        "bytes/s, patch store, packs shuffled / memcpy": ratios("patch store, packs shuffled", "memcpy", 1),
        "images/s, patch store into a buffer / decoding": ratios("patch store into a buffer", "decoding", 0),
        "images/s, patch store / decoding": ratios("patch store", "decoding", 0),
        "images/s, image store / decoding": ratios("image store", "decoding", 0),
    }
    rows = []
    for name, speeds in found.items():
        images, nbytes = (statistics.median(values) for values in zip(*speeds, strict=True))
        rows.append({"what": name, "images_per_s": round(images), "gb_per_s": round(nbytes / 1e9, 3)})
        print(f"{name:48} {images:12,.0f} images/s {nbytes / 1e9:8.2f} GB/s")
    for name, values in compared.items():
        low, middle, high = min(values), statistics.median(values), max(values)
        rows.append({"what": name, "ratio": round(middle, 3), "low": round(low, 3), "high": round(high, 3)})
        print(f"{name:48} {middle:12.2f} (rounds: {low:.2f} to {high:.2f})")
    details = {
        "images": len(index),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": f"Python {platform.python_version()}, numpy {np.__version__}, torch {torch.__version__}",
        "command": shlex.join(["python", "benchmarks/prepack.py", *(sys.argv[1:] if arguments is None else arguments)]),
        "date": datetime.date.today().isoformat(),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["what", "images_per_s", "gb_per_s", "ratio", "low", "high", *details])
        writer.writeheader()
        writer.writerows({**row, **details} for row in rows)
    print(f"wrote {args.out}")
    return {name: statistics.median(values) for name, values in compared.items()}


if __name__ == "__main__":
    main()
