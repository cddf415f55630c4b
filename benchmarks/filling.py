"""Measure how `Packing.fill` uses leftover slots, and how it changes the images.

The inputs are two sets of photographs:

* Sizes drawn from the shape of ImageNet's distribution. Half of the images are 500x375. The area of the others is
  lognormal with a mean of 650 patches of 16x16 pixels and sigma 1.15, with aspect ratios 1, 4/3 and 3/2 in either
  orientation. They are packed at native size, and with `BetaDrop(0.5, 0.8)`.
* Sides uniform in 64 to 700 pixels, with `BetaDrop(0.5, 0.8)`.

The mean excludes the very last pack.

    python benchmarks/filling.py [--images 100000]

Writes benchmarks/results/filling.csv.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numba
import numpy as np
from token_counts import lognormal

from patchnpack import BetaDrop, NoDrop, Packing
from patchnpack.packer import Images, Rows, plan
from patchnpack.packer.config import Fill

HERE = Path(__file__).resolve().parent
SEQ_LENS = (256, 1024, 4096, 16384)


def photographs(images: int) -> Rows:
    """Draw sizes as described in the module docstring."""
    rng = np.random.default_rng(1)
    area, aspect = lognormal(rng, 650, 1.15, images) * 256, rng.choice([1, 4 / 3, 3 / 4, 3 / 2, 2 / 3], images)
    half = rng.random(images) < 0.5
    width = np.where(half, 500, np.clip(np.sqrt(area * aspect), 60, 4000))
    return Rows.of_sizes(width, np.where(half, 375, np.clip(np.sqrt(area / aspect), 60, 4000)))


def by_row(images: Images) -> Images:
    return images.take(np.argsort(images.row))


def methods(images: int) -> Iterator[dict[str, object]]:
    """Yield a row of the table for each input, L and fill."""
    uniform = Rows.of_sizes(*np.random.default_rng(0).integers(64, 700, (2, images)))
    inputs = (
        ("ImageNet-like", photographs(images), NoDrop()),
        ("ImageNet-like, BetaDrop(0.5, 0.8)", photographs(images), BetaDrop(0.5, 0.8)),
        ("sides U(64, 700), BetaDrop(0.5, 0.8)", uniform, BetaDrop(0.5, 0.8)),
    )
    for name, rows, drop in inputs:
        for seq_len in SEQ_LENS:
            drawn = by_row(plan(rows, Packing(seq_len=seq_len, token_drop=drop, max_images=256, fill="none")).images)
            for fill in get_args(Fill):
                if fill == "undrop" and isinstance(drop, NoDrop):
                    continue
                made = plan(rows, Packing(seq_len=seq_len, token_drop=drop, max_images=256, fill=fill))
                found = by_row(made.images)
                assert (made.tokens() <= seq_len).all()
                assert np.array_equal(found.row, np.arange(images))
                change = np.abs(found.size / drawn.size - 1).max(1)
                lost = 1 - np.minimum(found.keep, drawn.keep).sum() / drawn.keep.sum() if fill == "trim" else 0
                yield {
                    "input": name,
                    "seq_len": seq_len,
                    "fill": fill,
                    "percent_full": f"{100 * made.tokens()[:-1].mean() / seq_len:.3f}",
                    "drawn_rate": f"{1 - (drawn.keep / drawn.grid.prod(1)).mean():.4f}",
                    "rate": f"{1 - (found.keep / found.grid.prod(1)).mean():.4f}",
                    "percent_of_tokens_lost": f"{100 * lost:.3f}",
                    "percent_of_images_rescaled": f"{100 * (change > 0).mean():.2f}",
                    "largest_change": f"{change.max():.4f}",
                }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "filling.csv")
    options = parser.parse_args()
    print(f"$ python {shlex.join(sys.argv)}")
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, "
        f"numpy {np.__version__}, numba {numba.__version__}, {datetime.date.today()}; {options.images} images"
    )
    print(f"{'':38}{'L':>6} {'fill':8}{'full':>10}{'rate':>8}{'drawn':>8}{'lost':>9}{'rescaled':>10}{'max':>8}")
    results = []
    for row in methods(options.images):
        results.append(row)
        print(
            f"{row['input']:38}{row['seq_len']:>6} {row['fill']:8}{row['percent_full']:>8} %{row['rate']:>8}"
            f"{row['drawn_rate']:>8}{row['percent_of_tokens_lost']:>7} %{row['percent_of_images_rescaled']:>8} %"
            f"{row['largest_change']:>8}"
        )
    options.out.parent.mkdir(exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(results[0]))
        writer.writeheader()
        writer.writerows(results)


if __name__ == "__main__":
    main()
