"""Measure how full packs get, and how fast, for every algorithm of `pack_lengths`.

The results are compared with peer libraries and with a lower bound. One run on one thread; each time is the fastest of
3 calls. Every result is checked: each image in exactly one pack, and no pack over L tokens or K images. Peers run if
they are installed: lightbinpack and TRL's `_pack_bfd`, whose time includes moving the tokens. The peers and the plain
Python versions do not support K and are not checked against it. The bound of `bounds.py` ignores K as well.

The inputs, 100,000 images each, come from `token_counts.py`.

    python benchmarks/packing.py [SHARDS...] [--images 100000] [--max-images 64] [--quick] [--synthetic] [--out CSV]

Writes benchmarks/results/packing.csv.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib.metadata
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numba
import numpy as np
import pyarrow as pa
from bounds import lower_bound
from token_counts import CLOTHING, drawn, from_shards, lognormal, lognormal_counts

from patchnpack import BetaDrop, ConstantDrop, Packing, PatchSizes, RandomResizedCrop, SampleSide
from patchnpack.packer import Rows, pack_lengths, plan
from patchnpack.packer.binpacking.algorithms import Algorithm

HERE = Path(__file__).resolve().parent
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
LOOKAHEADS = (256, 1024)
FIELDS = (
    *("table", "input", "images", "seq_len", "method", "lookahead", "packs", "bound", "bound_by"),
    *("percent_full", "packs_over_bound", "million_images_per_second", "seconds"),
)

Result = tuple[np.ndarray, np.ndarray]  # order (n,) and offsets (packs + 1,), as returned by `pack_lengths`
Method = Callable[[Any, int], Any]


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """The result of `call`, and the seconds of the fastest of 3 calls."""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - began)
    return result, min(seconds)


def plain_next_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """The loop of NaViT implementations: an image that does not fit closes the pack."""
    packs: list[list[int]] = []
    pack: list[int] = []
    used = 0
    for i, length in enumerate(lengths):
        if used + length > capacity:
            packs.append(pack)
            pack, used = [], 0
        pack.append(i)
        used += length
    return [*packs, pack]


def from_lists(packs: list[list[int]]) -> Result:
    """Convert packs as lists of images to a result."""
    return np.concatenate([np.asarray(p, np.int64) for p in packs]), np.cumsum([0, *map(len, packs)])


def as_table(lengths: np.ndarray) -> pa.Table:
    """The input of TRL: lists of tokens, where each token holds the number of its image."""
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    tokens = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    return pa.table({"input_ids": pa.ListArray.from_arrays(pa.array(starts), pa.array(tokens))})


def from_table(packed: pa.Table) -> Result:
    """Convert the output of TRL to a result."""
    column = packed["input_ids"].combine_chunks()
    tokens = column.flatten().to_numpy()
    first = np.flatnonzero(np.diff(tokens, prepend=-1))
    starts = np.concatenate([[0], np.cumsum(column.value_lengths().to_numpy())])
    return tokens[first].astype(np.int64), np.searchsorted(first, starts)


def check(result: Result, lengths: np.ndarray, capacity: int, max_images: int | None) -> int:
    """Check a packing, and return its number of packs."""
    order, offsets = result
    assert offsets[0] == 0
    assert offsets[-1] == len(order) == len(lengths)
    assert (np.bincount(order, minlength=len(lengths)) == 1).all(), "an image is missing or packed twice"
    images = np.diff(offsets)
    assert images.min() >= 1
    assert max_images is None or images.max() <= max_images, "a pack holds more than K images"
    assert np.add.reduceat(lengths[order], offsets[:-1]).max() <= capacity, "a pack holds more than L tokens"
    return len(images)


class Contest:
    """All packing methods, each of which has run once before it is timed."""

    def __init__(self, max_images: int) -> None:
        self.max_images = max_images
        self.peers: list[tuple[str, Method, Callable[[np.ndarray], Any], Callable[[Any], Result]]] = [
            ("next-fit, plain Python", plain_next_fit, np.ndarray.tolist, from_lists)
        ]
        try:
            import lightbinpack

            self.peers.append(("lightbinpack obfd, all images", lightbinpack.obfd, np.ndarray.tolist, from_lists))
        except ImportError:
            print("lightbinpack is not installed, so it is skipped (pip install lightbinpack needs a C++ compiler)")
        try:
            from trl.data_utils import _pack_bfd

            self.peers.append(("TRL _pack_bfd, all images", _pack_bfd, as_table, from_table))
        except ImportError:
            print("trl is not installed, so it is skipped")
        few = np.arange(1, 200)
        for algorithm in ALGORITHMS:
            self.ours(few, 256, algorithm, 16)
        for name, method, prepare, _ in self.peers:
            assert method(prepare(few), 256), name

    def ours(self, lengths: np.ndarray, capacity: int, algorithm: Algorithm, lookahead: int) -> tuple[int, float]:
        """Pack with `pack_lengths`; return the number of packs and the seconds."""
        limits = {"max_items": self.max_images, "lookahead": lookahead}
        result, seconds = timed(partial(pack_lengths, lengths, capacity, algorithm=algorithm, **limits))
        return check(result, lengths, capacity, self.max_images), seconds

    def run(self, lengths: np.ndarray, capacity: int) -> Iterator[tuple[str, str, int, float]]:
        """Yield (method, lookahead, packs, seconds); lookahead is "" for methods without one."""
        for name, method, prepare, result in self.peers:
            packed, seconds = timed(partial(method, prepare(lengths), capacity))
            yield name, "", check(result(packed), lengths, capacity, None), seconds
        for algorithm in ALGORITHMS:
            if algorithm == "next_fit":
                yield algorithm, "", *self.ours(lengths, capacity, algorithm, LOOKAHEADS[0])
            elif algorithm.endswith("_decreasing"):
                yield f"{algorithm}, all images", "", *self.ours(lengths, capacity, algorithm, LOOKAHEADS[0])
            else:
                for lookahead in LOOKAHEADS:
                    yield algorithm, str(lookahead), *self.ours(lengths, capacity, algorithm, lookahead)


def fill_table(contest: Contest, name: str, lengths: np.ndarray, seq_len: int) -> Iterator[dict[str, object]]:
    """Print the table of one input, with a row per method and a column group per lookahead."""
    began = time.perf_counter()
    bound, bound_by = lower_bound(lengths, seq_len)
    elapsed, tokens = time.perf_counter() - began, int(lengths.sum())
    print(
        f"\n{name}, L = {seq_len}: {len(lengths)} images of {lengths.mean():.0f} tokens, {len(np.unique(lengths))} "
        f"distinct; bound {bound} packs, {100 * tokens / bound / seq_len:.3f} % full ({bound_by}, {elapsed:.1f} s)"
    )
    print(" " * 34 + "".join(f"{f'lookahead {r}':^34}" for r in LOOKAHEADS))
    print(f"{'':34}" + f"{'full':>11}{'over bound':>12}{'M images/s':>11}" * len(LOOKAHEADS), end="")
    last = None
    for method, lookahead, packs, seconds in contest.run(lengths, seq_len):
        row = {
            "table": "fill", "input": name, "images": len(lengths), "seq_len": seq_len, "method": method,
            "lookahead": lookahead, "packs": packs, "bound": bound, "bound_by": bound_by,
            "percent_full": f"{100 * tokens / packs / seq_len:.3f}", "packs_over_bound": f"{packs / bound:.5f}",
            "million_images_per_second": f"{len(lengths) / seconds / 1e6:.3f}",
        }  # fmt: skip
        print("" if method == last else f"\n{method:34}", end="")
        print(f"{row['percent_full']:>9} %{row['packs_over_bound']:>12}{len(lengths) / seconds / 1e6:>11.2f}", end="")
        last = method
        yield row
    print()


def speed_table(contest: Contest, images: int) -> Iterator[dict[str, object]]:
    """Print million images/s of each algorithm on all lengths, and of plain Python on a tenth of them."""
    seq_lens = (1024, 4096)
    print(f"\nSpeed, {images} lognormal lengths, lookahead {LOOKAHEADS[0]}, best of 3, in million images/s")
    print(f"{'':34}" + "".join(f"{f'L = {seq_len}':>11}" for seq_len in seq_lens))
    for method in ("next-fit, plain Python", *ALGORITHMS):
        print(f"{method:34}", end="")
        for seq_len in seq_lens:
            lengths = lognormal_counts(6, images, seq_len)
            if method in ALGORITHMS:
                seconds = contest.ours(lengths, seq_len, method, LOOKAHEADS[0])[1]
            else:
                lengths = lengths[: max(1, images // 10)]
                seconds = timed(partial(plain_next_fit, lengths.tolist(), seq_len))[1]
            rate = len(lengths) / seconds / 1e6
            print(f"{rate:>11.2f}", end="")
            yield {
                "table": "speed", "input": "lognormal", "images": len(lengths), "seq_len": seq_len, "method": method,
                "lookahead": LOOKAHEADS[0] if method in ALGORITHMS else "",
                "million_images_per_second": f"{rate:.3f}", "seconds": f"{seconds:.4f}",
            }  # fmt: skip
        print()


def plan_table(images: int) -> Iterator[dict[str, object]]:
    """Print the seconds to plan an epoch with different policies and fills."""
    side = np.sqrt(lognormal(np.random.default_rng(7), 650, 1, images)) * 16
    aspect = np.sqrt(np.random.default_rng(8).uniform(0.5, 2, images))
    rows = Rows.of_sizes(np.clip(side * aspect, 16, 4000), np.clip(side / aspect, 16, 4000))
    methods: list[tuple[str, dict[str, Any]]] = [
        ("native", {}),
        ("ConstantDrop(0.5)", {"token_drop": ConstantDrop(0.5)}),
        ("BetaDrop(0.5, 0.8)", {"token_drop": BetaDrop(0.5, 0.8)}),
        ("SampleSide(64, 256)", {"resolution": SampleSide(low=64, high=256)}),
        ("RandomResizedCrop, 256 tokens", {"resolution": RandomResizedCrop(max_tokens=256)}),
        ("SampleSide, BetaDrop", {"resolution": SampleSide(low=64, high=256), "token_drop": BetaDrop(0.5, 0.8)}),
        ("trim", {"fill": "trim"}),
        ("rescale", {"fill": "rescale"}),
        ("PatchSizes, 5 sizes", {"patch_size": PatchSizes((8, 12, 16, 24, 32))}),
    ]
    algorithms: tuple[Algorithm, ...] = ("largest_fit", "subset_sum")
    print(f"\nPlanning {images} rows, L = 1024, lookahead 256, patch size 16, in seconds")
    print(f"{'':34}" + "".join(f"{algorithm:>14}" for algorithm in algorithms))
    for name, changes in methods:
        print(f"{name:34}", end="")
        for algorithm in algorithms:
            packing = Packing(algorithm=algorithm, **changes)
            plan(rows.take(slice(1000)), packing)  # compiles
            began = time.perf_counter()
            packs = plan(rows, packing)
            seconds = time.perf_counter() - began
            assert (np.bincount(packs.images.row, minlength=images) == 1).all()
            assert packs.tokens().max() <= 1024
            print(f"{seconds:>14.2f}", end="")
            yield {
                "table": "plan", "input": name, "images": images, "seq_len": 1024, "method": algorithm,
                "lookahead": 256, "packs": len(packs), "seconds": f"{seconds:.3f}",
                "percent_full": f"{packs.tokens().mean() / 10.24:.3f}",
            }  # fmt: skip
        print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="*", help="shards to pack in addition to the synthetic inputs")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--max-images", type=int, default=64, help="K, the maximum number of images per pack")
    parser.add_argument("--quick", action="store_true", help="use a tenth of the images")
    parser.add_argument("--synthetic", action="store_true", help="skip the clothing shards")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "packing.csv")
    options = parser.parse_args()
    images = options.images // 10 if options.quick else options.images
    if images < 1:
        parser.error(f"--images {options.images} leaves {images} images; give at least {10 if options.quick else 1}")

    print(f"$ python {shlex.join(sys.argv)}")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("patchnpack", "numpy", "scipy"))
    print(
        f"one thread of {platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, Python "
        f"{platform.python_version()}, {versions}, numba {numba.__version__}, {datetime.date.today()}; K = "
        f"{options.max_images}"
    )
    contest = Contest(options.max_images)
    results: list[dict[str, object]] = []
    for given in drawn(images):
        results += fill_table(contest, *given)
    for source in ([] if options.synthetic else [str(CLOTHING)]) + options.shards:
        try:
            found = list(from_shards(source))
        except FileNotFoundError as error:
            print(f"\n{source} is skipped: {error}")
            continue
        for given in found:
            results += fill_table(contest, *given)
    results += speed_table(contest, 10 * images)
    results += plan_table(images * 128 // 10)
    options.out.parent.mkdir(exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(results)
    print(f"\n{options.out}")


if __name__ == "__main__":
    main()
