"""Check the advised sequence length against lengths that the sweep did not try.

For each table of image sizes (see `patchnpack report SIZES.csv`), for the index of the shards, and for 500 images of
one size, the sweep advises a length. Then `--lengths` lengths of its range, drawn at random (0 means every length), are
packed with all algorithms and lookaheads of the sweep. `regret` is by how many percentage points the best of them pads
less than the advice. The script fails if a regret exceeds half a point.

    python benchmarks/lengths.py [--tables FOLDER] [--shards PATTERN] [--lengths 1000] [--patch-sizes 16 32]

Writes benchmarks/results/lengths.csv.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
from size_tables import CLOTHING, SIZES

from patchnpack import Packing
from patchnpack.loaders import open_index
from patchnpack.packer import Rows, advise, sweep
from patchnpack.report.size_table import read_size_tables

HERE = Path(__file__).resolve().parent
MOST_REGRET = 0.005


def data_sets(tables: Path, shards: str) -> Iterator[tuple[str, Rows]]:
    yield "500 of 720x960", Rows.of_sizes(np.full(500, 720), np.full(500, 960))
    for path in sorted(tables.glob("*.csv")):
        yield path.stem, read_size_tables([str(path)]).rows(0)
    if Path(shards).parent.is_dir():
        index = open_index(shards)
        yield Path(shards).parent.name, index.rows(np.flatnonzero(index.width > 0))


def measured(name: str, rows: Rows, packing: Packing, count: int) -> dict[str, Any]:
    began = time.process_time()
    swept = sweep(rows, packing)
    seconds = time.process_time() - began
    (search,), advice = swept.searches, advise(swept)
    tried = {length for length, _ in search.padding} | {setting.seq_len for setting in swept.settings}
    others = np.setdiff1d(np.arange(search.shortest, search.longest + 1), list(tried))
    if 0 < count < len(others):
        # Even on a log scale, as lengths matter relative to each other.
        drawn = np.random.default_rng(0).uniform(np.log(others[0]), np.log(others[-1] + 1), count)
        others = np.unique(others[np.searchsorted(others, np.exp(drawn).astype(np.int64))])
    padding = {s.seq_len: 1.0 for s in swept.settings}
    if len(others):
        for setting in sweep(rows, packing, seq_lens=others.tolist()).settings:
            padding[setting.seq_len] = min(setting.padding, padding.get(setting.seq_len, 1.0))
    best = min(others.tolist(), key=padding.__getitem__, default=advice.best.seq_len)
    return {
        "images": name,
        "patch_size": search.patch_size,
        "count": len(rows),
        "shortest": search.shortest,
        "longest": search.longest,
        "tried": len(search.padding),
        "seconds": f"{seconds:.2f}",
        "advised": advice.best.seq_len,
        "padding": f"{100 * advice.best.padding:.3f}",
        "untried": len(others),
        "best_untried": best,
        "best_padding": f"{100 * padding[best]:.3f}",
        "regret": f"{100 * max(0.0, advice.best.padding - padding[best]):.3f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, default=SIZES, help="folder of CSV files with width and height")
    parser.add_argument("--shards", default=CLOTHING)
    parser.add_argument("--lengths", type=int, default=1000, help="lengths to draw; 0 means every length")
    parser.add_argument("--patch-sizes", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--out", type=Path, default=HERE / "results" / "lengths.csv")
    options = parser.parse_args()
    print(f"$ python {shlex.join(sys.argv)}")
    print(
        f"one thread of {platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, Python "
        f"{platform.python_version()}, numpy {np.__version__}, numba {numba.__version__}, {datetime.date.today()}"
    )
    sides = np.random.default_rng(0).integers(48, 400, (2, 500))
    sweep(Rows.of_sizes(*sides), Packing())  # compiles the kernels
    found = []
    for name, rows in data_sets(options.tables, options.shards):
        for patch_size in options.patch_sizes:
            # Images below one patch are an error.
            fit = rows.take(np.maximum(rows.width, rows.height) >= patch_size)
            found.append(measured(name, fit, Packing(patch_size=patch_size), options.lengths))
            if len(found) == 1:
                print("".join(f"{field:>13}" for field in found[0]))
            print("".join(f"{str(value)[:12]:>13}" for value in found[-1].values()), flush=True)
    options.out.parent.mkdir(exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]))
        writer.writeheader()
        writer.writerows(found)
    if over := [row for row in found if float(row["regret"]) > 100 * MOST_REGRET]:
        sys.exit(f"{len(over)} of {len(found)} advised lengths are beaten by more than {100 * MOST_REGRET} points")


if __name__ == "__main__":
    main()
