"""Measure the cost of compiling the kernels.

The script measures the first call ever, and the first call in each later process. It calls every packer kernel once in
a fresh process, first with an empty cache, then with the cache that the first process left. Import time is not counted.

    python benchmarks/compiling.py [--rounds 3]
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from typing import get_args

import numba
import numpy as np

from patchnpack import (
    BetaDrop,
    FitTokens,
    Packing,
    PatchSizes,
    RandomResizedCrop,
    ResolutionDrop,
    SampleSide,
)
from patchnpack.packer import Rows, _kernels, _turns, plan
from patchnpack.packer.binpacking.algorithms import Algorithm


def call_every_kernel() -> tuple[float, float]:
    """Seconds of a plan with the default packing, and of all kernels in total."""
    rows = Rows.of_sizes(*np.random.default_rng(0).integers(48, 400, (2, 2000)))
    began = time.perf_counter()
    plan(rows, Packing())
    default = time.perf_counter() - began
    for packing in (
        *(Packing(algorithm=algorithm) for algorithm in get_args(Algorithm)),
        *(Packing(token_drop=drop) for drop in (BetaDrop(0.5, 0.8), ResolutionDrop(0.1, 0.5))),
        *(Packing(resolution=policy) for policy in (FitTokens(100), RandomResizedCrop(max_tokens=100))),
        *(Packing(resolution=SampleSide(low=32, high=200, dist=dist)) for dist in ("truncnormal", "uniform")),
        *(Packing(fill=fill) for fill in ("trim", "rescale")),
        Packing(patch_size=PatchSizes((16, 32))),
    ):
        plan(rows, packing)
    pixels = _turns.orient(np.zeros((40, 40, 3), np.uint8), 6)
    patches, segment_ids = np.zeros((2, 8, 768), np.uint8), np.zeros((2, 8), np.int32)
    coords = np.zeros((2, 8, 2), np.int32)
    one = np.ones(1, np.int64)
    key, grid, keep = one.astype(np.uint64), np.full((1, 2), 3, np.int32), np.full(1, 5, np.int32)
    token_index = np.zeros(5, np.int64)
    _kernels.lay_out(key, grid, keep, one, one - 1, segment_ids.reshape(-1), coords.reshape(-1, 2), token_index)
    _kernels.place_image(pixels, 16, 3, 3, coords.reshape(-1, 2), patches.reshape(-1, 768), 0, 5)
    starts = np.zeros(9, np.int32)
    _kernels.find_tokens(segment_ids, np.zeros(16, np.int64), starts)
    _kernels.count_tokens(np.zeros((2, 8), np.bool_), coords, coords, starts, 16)
    _kernels.clear_padding(patches, np.array([5, 0]))
    return default, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(*call_every_kernel())
        return
    seconds: dict[str, list[list[float]]] = {"cold cache": [], "warm cache": []}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for found in seconds.values():
                ran = subprocess.run(
                    [sys.executable, __file__, "--once"],
                    env=os.environ | {"NUMBA_CACHE_DIR": cache},
                    capture_output=True,
                    text=True,
                    check=True,
                )
                found.append([float(value) for value in ran.stdout.split()])
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, "
        f"numba {numba.__version__}, {datetime.date.today()}; median of {options.rounds}, in seconds"
    )
    print(f"{'':12}{'default plan':>14}{'all kernels':>14}")
    for name, found in seconds.items():
        default, every = (statistics.median(values) for values in zip(*found, strict=True))
        print(f"{name:12}{default:>14.2f}{every:>14.2f}")


if __name__ == "__main__":
    main()
