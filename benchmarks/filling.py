"""Measure how `Packing.fill` uses leftover slots on real image sizes, and how it changes the images.

For each table of `size_tables.py` and each sequence length, the script prints the padding left by `none`, `trim` and
`rescale` with the share of packs that the fill saves, and the cost: tokens that `trim` drops, images that `rescale`
resizes, and the largest change of a side. The last columns are the padding left by `none` and `undrop` with
`BetaDrop(0.5, 0.8)`, and the mean drop rate before and after. Packs hold at most 256 images.

The script fails, and names the table, if a fill needs more packs than `none`.

    python benchmarks/filling.py [--images 50000] [--sizes FOLDER] [--shards PATTERN] [--quick] [--out CSV]

Writes benchmarks/results/filling.csv. `packing_tables.py` turns it into tables of docs/packing.md.
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
from typing import Any

import numba
import numpy as np
from size_tables import CLOTHING, SEQ_LENS, SIZES, size_tables

from patchnpack import BetaDrop, NoDrop, Packing
from patchnpack.packer import Images, Rows, plan
from patchnpack.packer.config import Fill

HERE = Path(__file__).resolve().parent
DROP = BetaDrop(0.5, 0.8)
CASES: tuple[tuple[str, NoDrop | BetaDrop, tuple[Fill, ...]], ...] = (
    ("", NoDrop(), ("none", "trim", "rescale")),
    ("BetaDrop(0.5, 0.8)", DROP, ("none", "undrop")),
)

Row = dict[str, Any]


def by_row(images: Images) -> Images:
    return images.take(np.argsort(images.row))


def measure(table: str, rows: Rows, seq_len: int) -> Iterator[Row]:
    """Yield a row per token drop and fill, for one table and L; the first of each token drop is "none"."""
    for drop_name, drop, fills in CASES:
        packing = Packing(seq_len=seq_len, token_drop=drop, max_images=256)
        drawn, without = None, 0
        for fill in fills:
            made = plan(rows, packing.replace(fill=fill))
            found, tokens = by_row(made.images), made.tokens()
            if drawn is None:
                drawn, without = found, len(made)
            assert (tokens <= seq_len).all()
            assert np.array_equal(found.row, np.arange(len(rows)))
            change = np.abs(found.size / drawn.size - 1).max(1)
            lost = 1 - np.minimum(found.keep, drawn.keep).sum() / drawn.keep.sum() if fill == "trim" else 0.0
            yield {
                "table": table,
                "seq_len": seq_len,
                "images": len(rows),
                "token_drop": drop_name,
                "fill": fill,
                "algorithm": made.algorithm,
                "packs": len(made),
                "percent_of_packs_saved": round(100 * (1 - len(made) / without), 3),
                "percent_padding": round(100 * (1 - tokens.mean() / seq_len), 3),
                "drop_rate": round(1 - (found.keep / found.grid.prod(1)).mean(), 4),
                "percent_of_tokens_lost": round(100 * lost, 3),
                "percent_of_images_rescaled": round(100 * (change > 0).mean(), 2),
                "largest_change": round(change.max(), 4),
            }


def failures(rows: list[Row]) -> Iterator[str]:
    """Yield a sentence for each fill that needs more packs than "none"."""
    without = {(row["table"], row["seq_len"], row["token_drop"]): row["packs"] for row in rows if row["fill"] == "none"}
    for row in rows:
        limit = without[row["table"], row["seq_len"], row["token_drop"]]
        if row["packs"] > limit:
            drop = f", {row['token_drop']}" if row["token_drop"] else ""
            yield (
                f"{row['table']}, L = {row['seq_len']}{drop}: {row['fill']} needs {row['packs']} packs; the limit is "
                f"{limit}, the packs of none"
            )


HEADER = (
    f"{'':22}{'':>6}{'none':>9}{'trim':^27}{'rescale':^36}{'BetaDrop: none':>16}{'undrop':>9}\n"
    f"{'table':22}{'L':>6}{'padding':>9}{'padding':>9}{'saved':>9}{'lost':>9}{'padding':>9}{'saved':>9}"
    f"{'resized':>9}{'largest':>9}{'padding':>16}{'padding':>9}{'drop rate':>17}"
)


def line(rows: list[Row]) -> str:
    """The printed line of one table and L."""
    none, trim, rescale, dropped, undrop = rows
    return (
        f"{none['table']:22}{none['seq_len']:>6}{none['percent_padding']:7.2f} %"
        f"{trim['percent_padding']:7.2f} %{trim['percent_of_packs_saved']:7.2f} %"
        f"{trim['percent_of_tokens_lost']:7.2f} %"
        f"{rescale['percent_padding']:7.2f} %{rescale['percent_of_packs_saved']:7.2f} %"
        f"{rescale['percent_of_images_rescaled']:7.1f} %{100 * rescale['largest_change']:7.2f} %"
        f"{dropped['percent_padding']:14.3f} %{undrop['percent_padding']:7.3f} %"
        f"{dropped['drop_rate']:9.4f}{undrop['drop_rate']:8.4f}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000, help="images drawn from each table")
    parser.add_argument("--sizes", type=Path, default=SIZES, help="folder of CSV files with width and height")
    parser.add_argument("--shards", default=CLOTHING, help="shards that give one more table")
    parser.add_argument("--quick", action="store_true", help="at most 20,000 images per table; L = 1024 and 4096")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "filling.csv")
    options = parser.parse_args()
    images = min(options.images, 20_000) if options.quick else options.images
    if images < 1:
        parser.error(f"--images is {images}; give at least 1")
    print(f"$ python {shlex.join(sys.argv)}")
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, "
        f"numpy {np.__version__}, numba {numba.__version__}, {datetime.date.today()}; {images} images"
    )
    print(HEADER)
    rows: list[Row] = []
    for table, sizes in size_tables(options.sizes, options.shards, images):
        for seq_len in (1024, 4096) if options.quick else SEQ_LENS:
            found = list(measure(table, sizes, seq_len))
            rows += found
            print(line(found), flush=True)
    if not rows:
        return 0
    options.out.parent.mkdir(exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"\n{options.out}")
    missed = list(failures(rows))
    for sentence in missed:
        print(f"FAILED: {sentence}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
