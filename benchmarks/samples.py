"""Measure the padding of packs whose images stay together in samples, against packs of the same images alone.

Real sizes (see `size_tables.py`) are drawn with replacement, 24,000 per table, and neighbours are grouped into samples
of three and of eight images. Sizes are native at patch 16, or shrunk to at most 256 tokens per image. Samples of more
than L tokens are shrunk to fit, and the images alone have the sizes that they have in their samples, so both packings
hold the same tokens. K does not limit packs.

    python benchmarks/samples.py [--images 24000] [--out CSV]

Prints, for each number of images per sample, each size and each L, the share of slots that are padding, on average over
all tables: for `auto` with a lookahead of 256 with samples and without, for `auto` with all samples in view, and for
the lower bound that no packing of the samples can beat. Writes benchmarks/results/samples.csv, with a line per table.
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
from bounds import column_generation_bound, martello_toth_bound, volume_bound
from size_tables import CLOTHING, SIZES, size_tables

from patchnpack import FitTokens, Native, Packing
from patchnpack.packer import Rows, pack_lengths
from patchnpack.packer.planning.measure import measure
from patchnpack.packer.policies.resolution import Resolution

HERE = Path(__file__).resolve().parent
GROUPS = (3, 8)
SETTINGS: tuple[tuple[str, Resolution, int], ...] = (
    ("native", Native(), 4096),
    ("native", Native(), 8192),
    ("native", Native(), 16384),
    ("at most 256 tokens", FitTokens(256), 2048),
    ("at most 256 tokens", FitTokens(256), 4096),
    ("at most 256 tokens", FitTokens(256), 8192),
)
COLUMNS = ("padding_bound", "padding_all_samples", "padding_samples", "padding_images")

Row = dict[str, Any]


def grouped(rows: Rows, images: int) -> Rows:
    """Neighbouring rows as samples of `images` each; rows left over are left out."""
    count = len(rows) // images * images
    none, one = np.zeros(count, np.int32), np.ones(count, np.int32)
    columns = {name: getattr(rows, name)[:count] for name in ("row", "row_id", "width", "height")}
    return Rows(**columns, page=none, frames=one, offsets=np.arange(0, count + 1, images))


def packs_of(lengths: np.ndarray, capacity: int, lookahead: int, counts: np.ndarray | None) -> int:
    """Pack with `auto`, check the packs, and return their number."""
    order, offsets = pack_lengths(lengths, capacity, max_items=10**6, lookahead=lookahead, counts=counts)
    assert (np.bincount(order, minlength=len(lengths)) == 1).all()
    assert np.add.reduceat(lengths[order], offsets[:-1]).max() <= capacity
    return len(offsets) - 1


def compare(table: str, rows: Rows, images: int, size: str, resolution: Resolution, seq_len: int) -> Row:
    """Pack the samples of one table at one length, and the same images alone."""
    samples = grouped(rows, images)
    measured = measure(samples, Packing(seq_len=seq_len, resolution=resolution), seed=0, epoch=0)
    alone = measured.images.keep.astype(np.int64)
    lengths, counts = measured.images.sample_sums(alone), measured.images.sample_counts()
    fewest = packs_of(lengths, seq_len, len(lengths), counts)
    bound = max(volume_bound(lengths, seq_len), martello_toth_bound(lengths, seq_len))
    if bound < fewest:  # else no packing needs fewer, and the slow bound cannot be higher
        bound = max(bound, column_generation_bound(lengths, seq_len))
    packs = (
        bound,
        fewest,
        packs_of(lengths, seq_len, 256, counts),
        packs_of(alone, seq_len, 256, None),
    )
    tokens = int(alone.sum())
    return {
        "table": table,
        "images_per_sample": images,
        "size": size,
        "seq_len": seq_len,
        "samples": len(lengths),
        "oversize": f"{measured.oversize.mean():.4f}",
        "samples_per_pack": f"{len(lengths) / packs[2]:.2f}",
        **{column: f"{1 - tokens / (each * seq_len):.5f}" for column, each in zip(COLUMNS, packs, strict=True)},
    }


def compared(images: int) -> Iterator[Row]:
    """Compare all tables, numbers of images per sample and lengths."""
    for table, rows in size_tables(SIZES, CLOTHING, images):
        for group in GROUPS:
            for size, resolution, seq_len in SETTINGS:
                yield compare(table, rows, group, size, resolution, seq_len)
        print(table, flush=True)


def mean_table(results: list[Row]) -> Iterator[str]:
    """The lines of the table of means, in Markdown."""
    yield (
        "| images per sample | size | L | samples per pack | oversize samples | bound | `auto`, all samples | "
        "`auto`, R = 256 | the same images alone, R = 256 |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for group in GROUPS:
        for size, _, seq_len in SETTINGS:
            wanted = (group, size, seq_len)
            some = [row for row in results if (row["images_per_sample"], row["size"], row["seq_len"]) == wanted]
            mean = {name: np.mean([float(row[name]) for row in some]) for name in (*COLUMNS, "oversize")}
            per_pack = np.mean([float(row["samples_per_pack"]) for row in some])
            cells = " | ".join(f"{mean[column]:.2%}" for column in COLUMNS)
            yield f"| {group} | {size} | {seq_len:,} | {per_pack:.1f} | {mean['oversize']:.0%} | {cells} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24_000)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "samples.csv")
    options = parser.parse_args()
    print(f"$ python {shlex.join(sys.argv)}")
    print(
        f"one thread of {platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, Python "
        f"{platform.python_version()}, numpy {np.__version__}, numba {numba.__version__}, {datetime.date.today()}"
    )
    results = list(compared(options.images))
    options.out.parent.mkdir(exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(results[0]))
        writer.writeheader()
        writer.writerows(results)
    print("\n" + "\n".join(mean_table(results)))
    print(f"\n{options.out}")


if __name__ == "__main__":
    main()
