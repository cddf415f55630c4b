"""Measure planning for a data set far larger than memory.

Rows arrive in windows, packs leave, and only the waiting images stay in memory. The script draws rows window by window,
as the loader reads an index (16 shards of 10,000 images). Images have native sizes with lognormal token counts of mean
650, and are packed into 1,024 slots. It checks that every image leaves once, by count and by sum of row numbers, and
asserts that the resident memory of the whole process stays under 1 GB.

    python benchmarks/planning.py [--rows 100000000] [--algorithm subset_sum] [--patch-sizes 8,16,32]

Writes benchmarks/results/planning.csv.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import platform
import resource
import shlex
import sys
import time
from pathlib import Path

import numba
import numpy as np

from patchnpack import Packing
from patchnpack.cli.options.parsers import parse_patch_size
from patchnpack.packer import Planner, Rows

HERE = Path(__file__).resolve().parent
WINDOW = 16 * 10_000
GIGABYTE = 1 << 30


def window_of_rows(first: int, count: int) -> Rows:
    """Draw `count` rows from `first` on, with a generator seeded by `first`."""
    rng = np.random.default_rng(first)
    side = np.exp(rng.normal(np.log(650) / 2 - 0.25, 0.5, count)) * 16
    aspect = np.sqrt(rng.uniform(0.5, 2, count))
    row = np.arange(first, first + count)
    width, height = (np.clip(s, 16, 4000).astype(np.int32) for s in (side * aspect, side / aspect))
    return Rows(row=row, row_id=row.astype(np.uint64), width=width, height=height)


def resident() -> int:
    """Peak resident memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--algorithm", default="subset_sum")
    parser.add_argument(
        "--patch-sizes", default="16", help="one patch size, or several of which each block of 64 packs draws one"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results" / "planning.csv")
    options = parser.parse_args()
    packing = Packing(algorithm=options.algorithm, patch_size=parse_patch_size(options.patch_sizes))
    print(f"$ python {shlex.join(sys.argv)}")
    print(
        f"one thread of {platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, Python "
        f"{platform.python_version()}, numpy {np.__version__}, numba {numba.__version__}, {datetime.date.today()}"
    )
    planner = Planner(packing, share=64)
    planner.add(window_of_rows(0, 0))
    before = resident()
    images, row_sum, packs, tokens, planning = 0, 0, 0, 0, 0.0
    for first in [*range(0, options.rows, WINDOW), options.rows]:
        rows = window_of_rows(first, min(WINDOW, options.rows - first))
        began = time.perf_counter()
        part = planner.add(rows) if len(rows) else planner.finish()
        planning += time.perf_counter() - began
        images += len(part.images)
        row_sum += int(part.images.row.sum())
        packs += len(part)
        tokens += int(part.images.keep.sum())
    assert images == options.rows, f"{images} of {options.rows} images were packed"
    assert row_sum == options.rows * (options.rows - 1) // 2, "an image was packed twice"
    assert resident() < GIGABYTE, f"{resident() / GIGABYTE:.2f} GB were resident"
    found = {
        "rows": options.rows,
        "algorithm": options.algorithm,
        "patch_sizes": options.patch_sizes,
        "packs": packs,
        "percent_full": f"{100 * tokens / packs / packing.seq_len:.3f}",
        "planning_seconds": f"{planning:.1f}",
        "resident_mb": resident() >> 20,
        "resident_mb_before": before >> 20,
    }
    for name, value in found.items():
        print(f"{name:20} {value}")
    options.out.parent.mkdir(exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found))
        writer.writeheader()
        writer.writerow(found)


if __name__ == "__main__":
    main()
