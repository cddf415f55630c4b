"""Compare packed multi-crop views, from one read and one decode per picture, with one loader per view.

Self-supervised training uses ten crops of each picture (DINO, arXiv 2104.14294): two global views of 25 to 100 % of its
area and at most 196 tokens (224 pixels squared at patch 16), and eight local ones of 5 to 25 % and at most 36 tokens
(96 pixels squared).

* views: one `PackedImageLoader` with `Packing(views=Views(...))`. All views of a picture are in one pack.
* ten loaders: ten `PackedImageLoader`s with `RandomResizedCrop`, one per view, each with its own seed. Each reads and
  decodes every picture, and nothing keeps the views of a picture together.

    python benchmarks/views.py [SHARDS] [--threads 2] [--rounds 3] [--seq-len 2048] [--out CSV]

All read the same photographs, take turns, and use the same number of threads. One round before the first one is not
timed. Prints medians and writes benchmarks/results/views.csv. CPU time is that of the whole process, in all threads; on
a machine shared with other work, it is more robust than images/s.
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
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from patchnpack import PackedImageLoader, Packing, RandomResizedCrop, Views
from patchnpack.loaders import Index, scan

HERE = Path(__file__).resolve().parent
CLOTHING = HERE.parents[1] / "shared" / "data" / "clothing" / "train-{000000..000009}.tar"
GLOBAL, LOCAL = (
    (2, RandomResizedCrop(scale=(0.25, 1), max_tokens=196)),
    (8, RandomResizedCrop(scale=(0.05, 0.25), max_tokens=36)),
)
VIEWS = GLOBAL[0] + LOCAL[0]
MAX_IMAGES = 256  # no limit: a pack of 2,048 slots holds about 50 images

Method = Callable[[], tuple[int, int, int]]  # makes all views of all pictures; their number, their tokens, slots


class Took(NamedTuple):
    """One round: seconds of time and of CPU, the images made, their tokens, and the slots of their packs."""

    wall: float
    cpu: float
    images: int
    tokens: int
    slots: int


def epoch(loader: PackedImageLoader) -> tuple[int, int, int]:
    """Load one epoch: its images, their tokens and the slots of their packs."""
    totals = np.zeros(3, np.int64)
    for batch in loader:
        totals += (batch.num_images, batch.num_tokens, batch.segment_ids.numel())
    images, tokens, slots = totals.tolist()
    return images, tokens, slots


def together(loaders: list[PackedImageLoader]) -> tuple[int, int, int]:
    """Load one epoch of each loader, one after another."""
    images, tokens, slots = zip(*map(epoch, loaders), strict=True)
    return sum(images), sum(tokens), sum(slots)


def all_methods(index: Index, seq_len: int, threads: int) -> dict[str, Method]:
    packing = Packing(seq_len=seq_len, max_images=MAX_IMAGES)

    def loader(packing: Packing, seed: int) -> PackedImageLoader:
        return PackedImageLoader(index, packing, batch_size=8, num_threads=threads, shuffle=True, seed=seed)

    packings = [packing.replace(resolution=policy) for count, policy in (GLOBAL, LOCAL) for _ in range(count)]
    return {
        "views": partial(epoch, loader(packing.replace(views=Views(GLOBAL, LOCAL)), 0)),
        "ten loaders": partial(together, [loader(packing, seed) for seed, packing in enumerate(packings)]),
    }


def measure(methods: dict[str, Method], images: int, rounds: int) -> dict[str, list[Took]]:
    """What each method takes in each round, once the caches of the system and the buffers are filled."""
    took: dict[str, list[Took]] = {name: [] for name in methods}
    for number in range(-1, rounds):
        for name, method in methods.items():
            wall, cpu = time.perf_counter(), time.process_time()
            found = method()
            one = Took(time.perf_counter() - wall, time.process_time() - cpu, *found)
            assert one.images == images, f"{name}: {one.images} of {images} images"
            if number >= 0:
                took[name].append(one)
    return took


def row_of(name: str, took: list[Took], ten: list[Took]) -> dict[str, Any]:
    """One row of the table: medians over the rounds."""

    def median(of: Callable[[Took], float]) -> float:
        return statistics.median(map(of, took))

    def ratio(of: Callable[[Took], float]) -> float:
        return statistics.median(of(base) / of(own) for own, base in zip(took, ten, strict=True))

    return {
        "method": name,
        "images_per_second": f"{median(lambda one: one.images / one.wall):.0f}",
        "times_ten_loaders": f"{ratio(lambda one: one.wall):.2f}",
        "cpu_us_per_image": f"{median(lambda one: one.cpu / one.images) * 1e6:.0f}",
        "cpu_times_ten_loaders": f"{ratio(lambda one: one.cpu):.2f}",
        "tokens_per_image": f"{median(lambda one: one.tokens / one.images):.1f}",
        "padding": f"{median(lambda one: 1 - one.tokens / one.slots):.4f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="?", default=str(CLOTHING))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "views.csv")
    options = parser.parse_args()
    index = scan(options.shards)
    print(f"$ python {shlex.join(sys.argv)}")
    print(
        f"{len(index)} pictures of {index.width.mean():.0f}x{index.height.mean():.0f} pixels on average, {VIEWS} views "
        f"each; {options.threads} threads, {options.rounds} rounds; {os.cpu_count()} CPUs, Python "
        f"{platform.python_version()}, numpy {np.__version__}, {datetime.date.today()}\n"
    )
    took = measure(all_methods(index, options.seq_len, options.threads), VIEWS * len(index), options.rounds)
    rows = [row_of(name, of_method, took["ten loaders"]) for name, of_method in took.items()]
    print(
        "| method | images/s | times ten loaders | CPU µs per image | times ten loaders, CPU | tokens per image | "
        "padding |\n|---|---|---|---|---|---|---|"
    )
    for row in rows:
        print("| " + " | ".join([*list(row.values())[:-1], f"{float(row['padding']):.2%}"]) + " |")
    options.out.parent.mkdir(exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"\n{options.out}")


if __name__ == "__main__":
    main()
