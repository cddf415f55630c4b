"""Measure how full packs get on real image sizes, compared with a lower bound, other algorithms and a peer library.

For each table of `size_tables.py` and each sequence length, the script prints the share of slots that hold tokens:

- bound: no packing is fuller (column generation, see `bounds.py`)
- R = 256, R = 1024: `auto` with that many waiting images, and the algorithm that it chooses
- all: `auto` with all images waiting at once
- best_fit (R = 256), best_fit_decreasing (all images at once), next_fit, as NaViT code packs
- lightbinpack's `obfd` (all images at once), if it is installed

The last columns are the speed of `priced` in million images/s, at R = 256, the ratio of this speed to that of
lightbinpack, and the seconds that computing the prices takes. Times are CPU time of one thread, the fastest of 3 calls
(prices and "all": one call). Each result is checked: every image is in exactly one pack, and no pack is over L.

The script fails if a figure misses one of the limits below, and names it.

    python benchmarks/packing.py [--images 50000] [--sizes FOLDER] [--shards PATTERN] [--quick] [--out CSV]

Writes benchmarks/results/packing.csv. `packing_tables.py` turns it into tables of docs/packing.md.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib.metadata
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numpy as np
from bounds import column_generation_bound
from size_tables import CLOTHING, SEQ_LENS, SIZES, size_tables, token_counts

from patchnpack.packer import pack_lengths
from patchnpack.packer.binpacking.algorithms import CHOICES, Algorithm
from patchnpack.packer.binpacking.pack_lengths import pack_ready, resolve_algorithm
from patchnpack.packer.binpacking.pricing.prices import Prices

HERE = Path(__file__).resolve().parent
MAX_IMAGES = 10**6  # K: the bound does not know it
FIELDS = (
    *("table", "seq_len", "images", "distinct_lengths", "method", "lookahead", "algorithm", "packs", "percent_full"),
    *("seconds", "million_images_per_second"),
)

Row = dict[str, Any]
Result = tuple[np.ndarray, np.ndarray]  # order (n,) and offsets (packs + 1,), as returned by `pack_lengths`


@dataclass(frozen=True)
class Limit:
    """What `auto` must reach, in points of percent.

    Attributes:
        below_bound: how far it may be below the bound, for each table and L.
        mean: the same on average; None is no limit.
        below_decreasing: how far it may be below best_fit_decreasing, for each table and L.
    """

    below_bound: float
    mean: float | None
    below_decreasing: float


LIMITS = {"256": Limit(1.0, 0.2, 0.6), "1024": Limit(0.7, 0.15, 0.3), "all": Limit(0.1, None, 0.0)}  # by lookahead
LOSS_BY_CHOICE = 0.05  # points that `auto` may lose to the best of the algorithms it chooses from
PRICED_SPEED = 1.0  # million images/s of `priced`, wherever `auto` chooses it


def timed(call: Callable[[], Any], repeats: int = 3) -> tuple[Any, float]:
    """The result of `call`, and the CPU seconds of the fastest of `repeats` calls."""
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        result = call()
        seconds.append(time.process_time() - began)
    return result, max(min(seconds), 1e-9)


def check(result: Result, lengths: np.ndarray, capacity: int) -> int:
    """Check a packing, and return its number of packs."""
    order, offsets = result
    assert offsets[0] == 0
    assert offsets[-1] == len(order) == len(lengths)
    assert (np.bincount(order, minlength=len(lengths)) == 1).all(), "an image is missing or packed twice"
    assert np.diff(offsets).min() >= 1
    assert np.add.reduceat(lengths[order], offsets[:-1]).max() <= capacity, "a pack holds more than L tokens"
    return len(offsets) - 1


def find_peer() -> Callable[[list[int], int], list[list[int]]] | None:
    """lightbinpack's best-fit decreasing on one thread, or None if it is not installed."""
    try:
        from lightbinpack import obfd
    except ImportError:
        print("lightbinpack is not installed, so it is skipped (pip install lightbinpack needs a C++ compiler)")
        return None
    peer: Callable[[list[int], int], list[list[int]]] = obfd
    return peer


def measure(table: str, lengths: np.ndarray, seq_len: int, peer: Callable[..., Any] | None) -> Iterator[Row]:
    """Yield a row per method and lookahead, for one table and L; bound and prices are rows as well."""
    tokens, images = int(lengths.sum()), len(lengths)
    common = {"table": table, "seq_len": seq_len, "images": images, "distinct_lengths": len(np.unique(lengths))}
    limits: dict[str, Any] = {"max_items": MAX_IMAGES}

    def row(method: str, lookahead: str, packs: int, seconds: float, algorithm: str = "") -> Row:
        full, speed = round(100 * tokens / packs / seq_len, 4), round(images / seconds / 1e6, 4)
        values = (method, lookahead, algorithm or method, packs, full, round(seconds, 6), speed)
        return common | dict(zip(FIELDS[4:], values, strict=True))

    bound, seconds = timed(partial(column_generation_bound, lengths, seq_len), 1)
    yield row("bound", "", bound, seconds)
    others: tuple[tuple[Algorithm, str], ...] = (("next_fit", ""), ("best_fit", "256"), ("best_fit_decreasing", ""))
    for method, lookahead in others:
        call = partial(pack_lengths, lengths, seq_len, algorithm=method, lookahead=int(lookahead or 1), **limits)
        result, seconds = timed(call)
        yield row(method, lookahead, check(result, lengths, seq_len), seconds)
    if peer is not None:
        packs, seconds = timed(partial(peer, lengths.tolist(), seq_len))
        result = np.concatenate([np.asarray(p, np.int64) for p in packs]), np.cumsum([0, *map(len, packs)])
        yield row("lightbinpack", "", check(result, lengths, seq_len), seconds)
    prices, seconds = timed(partial(Prices.of_counts, np.bincount(lengths), seq_len), 1)
    yield row("prices", "", bound, seconds)
    for window in (256, 1024):
        chosen, _ = resolve_algorithm("auto", lengths, seq_len, lookahead=window, prices=prices, **limits)
        ready: dict[str, Any] = {**limits, "lookahead": window, "flush": True, "prices": prices}
        for method in CHOICES:
            result, seconds = timed(partial(pack_ready, lengths, seq_len, algorithm=method, **ready))
            found = row(method, str(window), check(result, lengths, seq_len), seconds)
            yield found
            if method == chosen:
                yield found | {"method": "auto"}
    call = partial(pack_lengths, lengths, seq_len, algorithm="auto", lookahead=images, **limits)
    result, seconds = timed(call, 1)
    yield row("auto", "all", check(result, lengths, seq_len), seconds)


def by_input(rows: Iterable[Row]) -> dict[tuple[str, int], dict[tuple[str, str], Row]]:
    """Rows by method and lookahead, for each table and L."""
    inputs: dict[tuple[str, int], dict[tuple[str, str], Row]] = {}
    for row in rows:
        inputs.setdefault((row["table"], row["seq_len"]), {})[row["method"], row["lookahead"]] = row
    return inputs


def failures(rows: list[Row]) -> Iterator[str]:
    """Yield a sentence for each limit that is missed."""
    inputs = by_input(rows)
    gaps: dict[str, list[float]] = {lookahead: [] for lookahead in LIMITS}
    for (table, seq_len), found in inputs.items():
        where, full = f"{table}, L = {seq_len}", {key: row["percent_full"] for key, row in found.items()}
        for lookahead, limit in LIMITS.items():
            ours = full["auto", lookahead]
            gaps[lookahead].append(full["bound", ""] - ours)
            for other, points in (("bound", limit.below_bound), ("best_fit_decreasing", limit.below_decreasing)):
                if full[other, ""] - ours > points + 1e-9:
                    yield (
                        f"{where}, lookahead {lookahead}: auto is {full[other, ''] - ours:.3f} points below {other}; "
                        f"the limit is {points}"
                    )
            if lookahead == "all":
                continue
            best = max(full[choice, lookahead] for choice in CHOICES)
            if best - ours > LOSS_BY_CHOICE + 1e-9:
                chosen = found["auto", lookahead]["algorithm"]
                yield (
                    f"{where}, lookahead {lookahead}: auto chooses {chosen} and loses {best - ours:.3f} points; the "
                    f"limit is {LOSS_BY_CHOICE}"
                )
            speed = found["auto", lookahead]["million_images_per_second"]
            if found["auto", lookahead]["algorithm"] == "priced" and speed < PRICED_SPEED:
                yield (
                    f"{where}, lookahead {lookahead}: priced packs {speed:.2f} million images/s; the limit is "
                    f"{PRICED_SPEED}"
                )
    for lookahead, limit in LIMITS.items():
        if limit.mean is not None and gaps[lookahead] and statistics.mean(gaps[lookahead]) > limit.mean:
            mean = statistics.mean(gaps[lookahead])
            yield (
                f"all tables, lookahead {lookahead}: auto is {mean:.3f} points below bound on average; the limit is "
                f"{limit.mean}"
            )


HEADER = (
    f"{'table':22}{'L':>6}{'bound':>9}{'R = 256':>10}{'':13}{'R = 1024':>9}{'':13}{'all':>7}{'best_fit':>10}"
    f"{'bfd':>9}{'peer':>9}{'next_fit':>9}{'M/s':>8}{'ratio':>7}{'prices':>9}"
)


def line(found: dict[tuple[str, str], Row]) -> str:
    """The printed line of one table and L."""

    def full(method: str, lookahead: str = "") -> str:
        row = found.get((method, lookahead))
        return f"{row['percent_full']:9.3f}" if row else f"{'':9}"

    row, speed = found["bound", ""], found["priced", "256"]["million_images_per_second"]
    peer = found.get(("lightbinpack", ""))
    ratio = f"{speed / peer['million_images_per_second']:7.2f}" if peer else f"{'':7}"
    ours = (f"{full('auto', r)}  {found['auto', r]['algorithm']:11}" for r in ("256", "1024"))
    return (
        f"{row['table']:22}{row['seq_len']:>6}{full('bound')}{''.join(ours)}{full('auto', 'all')}"
        f"{full('best_fit', '256')}{full('best_fit_decreasing')}{full('lightbinpack')}{full('next_fit')}{speed:8.2f}"
        f"{ratio}{found['prices', '']['seconds']:7.2f} s"
    )


def summary(rows: list[Row]) -> Iterator[str]:
    """The lines below the table: distances from the bound, and speeds."""
    inputs = by_input(rows)
    yield f"\n{'points below the bound':34}{'mean':>9}{'largest':>9}"
    for method, lookahead in (
        *(("auto", lookahead) for lookahead in LIMITS),
        *(("best_fit", "256"), ("best_fit_decreasing", ""), ("lightbinpack", ""), ("next_fit", "")),
    ):
        gaps = [
            found["bound", ""]["percent_full"] - found[method, lookahead]["percent_full"]
            for found in inputs.values()
            if (method, lookahead) in found
        ]
        if gaps:
            yield f"{method + (f', lookahead {lookahead}' if lookahead else ''):34}{np.mean(gaps):9.3f}{max(gaps):9.3f}"
    yield f"\n{'million images/s':34}{'slowest':>9}{'median':>9}{'fastest':>9}"
    for key in dict.fromkeys((row["method"], row["lookahead"]) for row in rows):
        if key[0] not in ("bound", "prices", "auto"):
            speeds = [found[key]["million_images_per_second"] for found in inputs.values() if key in found]
            name = key[0] + (f", lookahead {key[1]}" if key[1] else "")
            yield f"{name:34}{min(speeds):9.2f}{np.median(speeds):9.2f}{max(speeds):9.2f}"
    seconds = [row["seconds"] for row in rows if row["method"] == "prices"]
    yield f"seconds for the prices: median {np.median(seconds):.2f}, at most {max(seconds):.2f}"
    seconds = [found["auto", "all"]["seconds"] for found in inputs.values()]
    yield f"seconds to pack all images at once: median {np.median(seconds):.2f}, at most {max(seconds):.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000, help="images drawn from each table")
    parser.add_argument("--sizes", type=Path, default=SIZES, help="folder of CSV files with width and height")
    parser.add_argument("--shards", default=CLOTHING, help="shards that give one more table")
    parser.add_argument("--quick", action="store_true", help="at most 20,000 images per table; L = 1024 and 4096")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "packing.csv")
    options = parser.parse_args()
    images = min(options.images, 20_000) if options.quick else options.images
    if images < 1:
        parser.error(f"--images is {images}; give at least 1")
    print(f"$ python {shlex.join(sys.argv)}")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("patchnpack", "numpy"))
    print(
        f"one thread of {platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, Python "
        f"{platform.python_version()}, {versions}, numba {numba.__version__}, {datetime.date.today()}; {images} images"
    )
    peer = find_peer()
    compiled = list(measure("", np.random.default_rng(0).integers(1, 256, 500), 256, peer))
    assert compiled
    rows: list[Row] = []
    print(HEADER)
    for table, sizes in size_tables(options.sizes, options.shards, images):
        for seq_len in (1024, 4096) if options.quick else SEQ_LENS:
            found = list(measure(table, token_counts(sizes, seq_len), seq_len, peer))
            rows += found
            print(line(by_input(found)[table, seq_len]), flush=True)
    if not rows:
        return 0
    print("\n".join(summary(rows)))
    options.out.parent.mkdir(exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    print(f"\n{options.out}")
    missed = list(failures(rows))
    for sentence in missed:
        print(f"FAILED: {sentence}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
