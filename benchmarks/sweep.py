"""Measure the time and memory of a sweep, and the overhead of statistics in training.

The rows are those of planning.py: native sizes with lognormal token counts of mean 650. The sweep covers the default
settings at one patch size: it searches for sequence lengths, and packs at the lengths that it finds with next_fit, and
with largest_fit and subset_sum at three lookaheads. benchmarks/lengths.py checks the lengths.
`--plans` also runs `plan` once per setting, which is what the sweep replaces; both must give the same number of packs.

    python benchmarks/sweep.py [--rows 1280000] [--plans] [--html report.html]

Writes benchmarks/results/sweep.csv; `--html` writes the page of these rows.
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
from planning import window_of_rows

from patchnpack import PackedBatch, Packing
from patchnpack.loaders.assembly.stats import BatchCounts, Stats
from patchnpack.packer import Rows, advise, plan, report, sweep

HERE = Path(__file__).resolve().parent
WINDOW = 160_000


def rows_of(count: int) -> Rows:
    """Draw rows window by window, so that drawing them does not determine the peak memory."""
    sizes = np.empty((2, count), np.int32)
    for first in range(0, count, WINDOW):
        rows = window_of_rows(first, min(WINDOW, count - first))
        sizes[:, first : first + WINDOW] = rows.width, rows.height
    return Rows.of_sizes(*sizes)


def resident() -> int:
    """Peak resident memory of this process in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def counting_us() -> tuple[float, int]:
    """CPU microseconds of counting a batch of 8 packs of 1,024 slots, and the images in that batch."""
    import torch

    images, tokens = 4, 256
    segments = torch.arange(1, images + 1, dtype=torch.int32).repeat_interleave(tokens).repeat(8, 1)
    columns = torch.zeros((8, 64), dtype=torch.int64)
    mask = torch.arange(64).expand(8, 64) < images
    batch = PackedBatch(
        patches=torch.zeros((8, 1024, 1), dtype=torch.uint8),
        segment_ids=segments,
        coords=torch.zeros((8, 1024, 2), dtype=torch.int32),
        grids=torch.where(mask[..., None], 16, 0).int().expand(8, 64, 2).contiguous(),
        image_sizes=torch.where(mask[..., None], 256, 0).int().expand(8, 64, 2).contiguous(),
        image_mask=mask.contiguous(),
        labels=columns,
        rows=columns,
        keys=[["k"] * images] * 8,
        patch_size=16,
    )
    stats, times = Stats(), []
    for _ in range(5):
        began = time.thread_time()  # CPU time, since the machine may be busy
        for _ in range(1000):
            stats.add_batch(BatchCounts.of(batch))
        times.append((time.thread_time() - began) * 1000)
    return min(times), 8 * images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_280_000)
    parser.add_argument("--plans", action="store_true", help="also plan each setting separately, and compare")
    parser.add_argument("--html", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "sweep.csv")
    options = parser.parse_args()
    packing = Packing(seq_len=8192)
    print(f"$ python {shlex.join(sys.argv)}")
    print(
        f"one thread of {platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, Python "
        f"{platform.python_version()}, numpy {np.__version__}, numba {numba.__version__}, {datetime.date.today()}"
    )
    sweep(rows_of(5000), packing)  # compiles the kernels
    rows = rows_of(options.rows)
    before = resident()
    began, used = time.perf_counter(), time.process_time()
    swept = sweep(rows, packing)
    seconds, cpu = time.perf_counter() - began, time.process_time() - used
    after = resident()
    advice = advise(swept)
    planning = ""
    if options.plans:
        total = 0.0
        for setting in swept.settings:
            other = packing.replace(seq_len=setting.seq_len, algorithm=setting.algorithm, lookahead=setting.lookahead)
            began = time.process_time()
            made = plan(rows, other)
            total += time.process_time() - began
            assert (len(made), int(made.tokens().sum())) == (setting.packs, setting.tokens), setting
        planning = f"{total:.1f}"
    counting, images = counting_us()
    found = {
        "rows": options.rows,
        "settings": len(swept.settings),
        "seconds": f"{seconds:.1f}",
        "cpu_seconds": f"{cpu:.1f}",
        "cpu_seconds_of_plans": planning,
        "resident_mb_before": before,
        "resident_mb_more": after - before,
        "counting_us_per_batch": f"{counting:.0f}",
        "images_per_batch": images,
        "advice": advice.flags,
    }
    for name, value in found.items():
        print(f"{name:22} {value}")
    if options.html is not None:
        from patchnpack.report import write_page  # needs the extra `report` when it is called

        title = f"{options.rows:,} synthetic images"
        write_page(options.html, report(rows, packing), swept, advice, title=title)
    options.out.parent.mkdir(exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found))
        writer.writeheader()
        writer.writerow(found)


if __name__ == "__main__":
    main()
