"""Measure the CPU seconds to plan an epoch with different policies and fills.

The sizes are drawn: lognormal token counts with mean 650 and sigma 1 at patch 16, and aspect ratios from 1/2 to 2. One
run on one thread, L = 1024, lookahead 256. Each plan is checked: every image in exactly one pack, no pack over L.
`auto` and `priced` compute prices as part of the plan.

    python benchmarks/planning_time.py [--images 1280000] [--out CSV]

Writes benchmarks/results/planning_time.csv. `packing_tables.py` turns it into a table of docs/packing.md.
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

from patchnpack import BetaDrop, ConstantDrop, Packing, PatchSizes, RandomResizedCrop, SampleSide
from patchnpack.packer import Rows, plan
from patchnpack.packer.binpacking.algorithms import CHOICES, Algorithm

HERE = Path(__file__).resolve().parent
SEQ_LEN = 1024
ALGORITHMS: tuple[Algorithm, ...] = ("auto", *CHOICES)
SETTINGS: dict[str, dict[str, Any]] = {
    "native": {},
    "ConstantDrop(0.5)": {"token_drop": ConstantDrop(0.5)},
    "BetaDrop(0.5, 0.8)": {"token_drop": BetaDrop(0.5, 0.8)},
    "SampleSide(64, 256)": {"resolution": SampleSide(low=64, high=256)},
    "RandomResizedCrop, 256 tokens": {"resolution": RandomResizedCrop(max_tokens=256)},
    "SampleSide, BetaDrop": {"resolution": SampleSide(low=64, high=256), "token_drop": BetaDrop(0.5, 0.8)},
    "trim": {"fill": "trim"},
    "rescale": {"fill": "rescale"},
    "PatchSizes, 5 sizes": {"patch_size": PatchSizes((8, 12, 16, 24, 32))},
}


def drawn_sizes(images: int) -> Rows:
    """Draw sizes as described in the module docstring."""
    rng = np.random.default_rng(7)
    side = 16 * np.sqrt(rng.lognormal(np.log(650) - 0.5, 1, images))
    aspect = np.sqrt(rng.uniform(0.5, 2, images))
    return Rows.of_sizes(np.clip(side * aspect, 16, 4000), np.clip(side / aspect, 16, 4000))


def measure(rows: Rows) -> Iterator[dict[str, object]]:
    """Print a line per setting; yield a row per setting and algorithm."""
    print(f"{'':34}" + "".join(f"{algorithm:>14}" for algorithm in ALGORITHMS))
    for name, changes in SETTINGS.items():
        print(f"{name:34}", end="")
        for algorithm in ALGORITHMS:
            packing = Packing(seq_len=SEQ_LEN, algorithm=algorithm, **changes)
            plan(rows.take(slice(1000)), packing)  # compiles
            began = time.process_time()
            packs = plan(rows, packing)
            seconds = time.process_time() - began
            assert (np.bincount(packs.images.row, minlength=len(rows)) == 1).all()
            assert packs.tokens().max() <= SEQ_LEN
            print(f"{seconds:>14.2f}", end="", flush=True)
            yield {
                "setting": name,
                "images": len(rows),
                "algorithm": algorithm,
                "packs": len(packs),
                "percent_full": f"{100 * packs.tokens().mean() / SEQ_LEN:.3f}",
                "seconds": f"{seconds:.3f}",
            }
        print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_280_000)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "planning_time.csv")
    options = parser.parse_args()
    print(f"$ python {shlex.join(sys.argv)}")
    print(
        f"one thread of {platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, Python "
        f"{platform.python_version()}, numpy {np.__version__}, numba {numba.__version__}, {datetime.date.today()}; "
        f"seconds to plan {options.images} images"
    )
    results = list(measure(drawn_sizes(options.images)))
    options.out.parent.mkdir(exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(results[0]))
        writer.writeheader()
        writer.writerows(results)
    print(f"\n{options.out}")


if __name__ == "__main__":
    main()
