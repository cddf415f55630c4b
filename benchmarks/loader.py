"""The loader at native resolution against its bound: a bare pool of threads that decodes the same JPEG bytes.

Both run in one process, in turn, with the same number of threads, over the same shards; the bound reads and decodes
every image and throws the pixels away. The loader also plans, cuts patches and builds batches. What is missing to the
bound is what all of that costs. As in training, one loader serves all epochs; the first one, in which the system hands
out its memory, is not timed.

    python benchmarks/loader.py [SHARDS] [--threads 2] [--rounds 5]

Writes benchmarks/results/loader.csv. Images/s differ from machine to machine and from hour to hour; the ratio is the
figure.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import simplejpeg

from patchnpack import PackedImageLoader, Packing
from patchnpack.loaders import Index, scan

HERE = Path(__file__).resolve().parent
CLOTHING = HERE.parents[1] / "shared" / "data" / "clothing" / "train-{000000..000009}.tar"


def bare_pool(index: Index, threads: int) -> int:
    """Reads and decodes every image, in the order of the shards."""
    reader = index.reader()
    places = list(
        zip(index.shard_of(np.arange(len(index))).tolist(), index.offset.tolist(), index.nbytes.tolist(), strict=True)
    )

    def decode(part: int) -> int:
        for place in places[part::threads]:
            simplejpeg.decode_jpeg(reader.read(*place))
        return len(places[part::threads])

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(decode, range(threads)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="?", default=str(CLOTHING))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    try:
        index = scan(options.shards)
    except FileNotFoundError as error:
        sys.exit(f"{error}\ngive shards of JPEG photographs: python benchmarks/loader.py 'SHARDS'")

    loader = PackedImageLoader(index, Packing(seq_len=4096), batch_size=8, num_threads=options.threads)
    ways: dict[str, Callable[[], int]] = {
        "bare decode pool": lambda: bare_pool(index, options.threads),
        "PackedImageLoader": lambda: sum(
            batch.num_images for batch in loader
        ),  # an epoch, batches dropped as they come
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round in range(options.rounds + 1):  # the first warms the page cache and the compiled kernels
        for name, way in ways.items():
            began = time.perf_counter()
            assert way() == len(index)
            if round:
                seconds[name].append(time.perf_counter() - began)

    ratios = np.divide(seconds["bare decode pool"], seconds["PackedImageLoader"])
    print(
        f"{len(index)} images, mean {index.width.mean():.0f}x{index.height.mean():.0f}, {options.threads} threads, "
        f"{options.rounds} rounds in turn; {platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, "
        f"Python {platform.python_version()}, simplejpeg {simplejpeg.__version__}, {datetime.date.today()}"
    )
    rows = [(name, len(index) / statistics.median(seconds[name])) for name in ways]
    for name, rate in rows:
        print(f"{name:20} {rate:8.0f} images/s")
    print(f"{'of the bound':20} {statistics.median(ratios):8.3f}  (rounds: {', '.join(f'{r:.3f}' for r in ratios)})")
    (HERE / "results").mkdir(exist_ok=True)
    with (HERE / "results" / "loader.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["way", "images_per_second", "of_the_bound"])
        for name, rate in rows:
            writer.writerow([name, f"{rate:.1f}", f"{rate / rows[0][1]:.4f}"])


if __name__ == "__main__":
    main()
