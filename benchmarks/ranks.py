"""Measure the cost of planning for one rank of many, over a data set far larger than memory.

The script writes an index of SHARDS shards with IMAGES images each (random sizes, no pixels) as an Arrow file. A fresh
process then acts as one of RANKS ranks. It creates its loader, computes the length of the epoch, and goes through all
steps of an epoch as in training, without decoding. The script checks that every row comes exactly once over all ranks,
and that the private memory of the process stays under 1 GB. The index lies in the page cache, which all processes of a
machine share.

    python benchmarks/ranks.py [--ranks 1024] [--shards 100000] [--images 1000] [--streams 1]

Writes benchmarks/results/ranks.csv.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from patchnpack import PackedImageLoader, Packing
from patchnpack.loaders import Index, load_index, save_index
from patchnpack.loaders.index.table import Texts
from patchnpack.loaders.order.order import Pack
from patchnpack.loaders.order.state import Cursor
from patchnpack.packer import Plan

HERE = Path(__file__).resolve().parent
GIGABYTE = 1 << 30


def make_index(path: Path, shards: int, images: int) -> None:
    """Write an index of `shards` shards with `images` images each; token counts are lognormal with mean 650."""
    n, rng = shards * images, np.random.default_rng(0)
    side = rng.standard_normal(n, np.float32)
    side *= 0.5
    side += np.log(650) / 2 - 0.25
    np.exp(side, out=side)
    side *= 16
    aspect = np.sqrt(rng.random(n, np.float32) * 1.5 + 0.5)
    width, height = (np.clip(s, 16, 4000).astype(np.int32) for s in (side * aspect, side / aspect))
    nothing: Texts[str | None] = Texts(pa.nulls(n, pa.large_string()))
    numbers = np.char.zfill(np.arange(images).astype("U4"), 4)
    one_shard = pa.array(numbers, pa.large_string())
    index = Index(
        shards=tuple(f"s3://bucket/train-{i:06}.tar" for i in range(shards)),
        shard_bytes=np.full(shards, 100_000 * images),
        versions=("",) * shards,
        starts=np.arange(shards + 1) * images,
        keys=Texts(pa.concat_arrays([one_shard] * shards)),
        offset=np.tile(np.arange(images) * 100_000, shards),
        nbytes=np.full(n, 99_000),
        width=width,
        height=height,
        orientation=np.ones(n, np.uint8),
        format=np.zeros(n, np.uint8),
        pages=np.ones(n, np.int32),
        bands=np.full(n, 3, np.int32),
        dtype=np.zeros(n, np.uint8),
        digest=np.zeros(n, np.uint64),
        reasons=nothing,
        cls=nothing,
        members={},
        without_image=np.zeros(shards, np.int64),
        unused_members=np.zeros(shards, np.int64),
        examples=((),) * shards,
        outside=np.zeros(shards, np.uint64),
    )
    save_index(index, path)


def own_memory() -> int:
    """Resident memory in bytes that this process does not share with others."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


def run_rank(path: Path, ranks: int, streams: int) -> dict[str, float]:
    """Iterate over an epoch as one rank, and return its costs."""
    began = time.perf_counter()
    loader = PackedImageLoader(
        load_index(path),
        Packing(seq_len=4096, algorithm="largest_fit"),
        batch_size=8,
        shuffle=True,
        num_streams=streams,
        rank=ranks // 2,
        world_size=ranks,
    )
    found = {"construction_s": time.perf_counter() - began, "peak_gb": own_memory() / GIGABYTE}
    began = time.perf_counter()
    steps = len(loader)
    found["counting_s"] = time.perf_counter() - began
    seen = np.zeros(len(loader.index), np.uint8)
    yielded: dict[int, np.ndarray] = {}
    plans: list[Plan] = []

    def record(plan: Plan) -> None:
        np.add.at(seen, plan.images.row, 1)
        yielded[id(plan)] = np.zeros(len(plan), np.uint8)
        plans.append(plan)

    def timed(groups: Iterator[tuple[list[Pack], int]]) -> Iterator[tuple[list[Pack], float]]:
        while True:
            began = time.perf_counter()
            try:
                packs, _ = next(groups)
            except StopIteration:
                return
            own_packs = [pack.images for pack in packs[ranks // 2 :: ranks]]
            assert len(own_packs) == 8
            yield packs, time.perf_counter() - began

    times, packs_in_all = [], 0
    groups = loader.steps().groups(Cursor(0, 0), record, lambda pack: None)
    for packs, seconds in timed(groups):
        times.append(seconds)
        for pack in packs:
            if pack.plan is not None:
                yielded[id(pack.plan)][pack.number] += 1
                packs_in_all += 1
        if len(plans) > 64:  # drop plans whose packs have all been yielded
            kept = [plan for plan in plans if not yielded[id(plan)].all()]
            for plan in plans:
                if yielded[id(plan)].all():
                    assert (yielded.pop(id(plan)) == 1).all(), "a pack was yielded twice"
            plans[:] = kept
        found["peak_gb"] = max(found["peak_gb"], own_memory() / GIGABYTE)
    assert all((flags == 1).all() for flags in yielded.values()), "a pack was lost or yielded twice"
    assert (seen == 1).all(), "a row was lost or planned twice"
    assert len(times) == steps, "len(loader) is not the number of steps"
    assert found["peak_gb"] < 1, f"the process used {found['peak_gb']:.2f} GB of its own"
    return found | {
        "steps": steps,
        "packs": packs_in_all,
        "first_step_s": times[0],
        "step_ms_mean": 1000 * float(np.mean(times)),
        "step_ms_median": 1000 * float(np.median(times)),
        "step_ms_99": 1000 * float(np.quantile(times, 0.99)),
        "epoch_s": float(np.sum(times)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--images", type=int, default=1000, help="images per shard")
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument(
        "--folder", type=Path, help="folder for the index, 50 bytes per image; default: a temporary folder"
    )
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "ranks.csv")
    options = parser.parse_args()
    if options.run:
        if options.run.exists():
            print(json.dumps(run_rank(options.run, options.ranks, options.streams)))
        else:
            make_index(options.run, options.shards, options.images)
        return
    print(f"$ python {shlex.join(sys.argv)}")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        command = [sys.executable, __file__, *sys.argv[1:], "--run", str(Path(folder, "index.arrow"))]
        began = time.perf_counter()
        subprocess.run(
            command, check=True
        )  # separate processes, so that the memory of one does not count for the other
        print(
            f"index: {os.path.getsize(command[-1]) / 1e9:.2f} GB, written in {time.perf_counter() - began:.0f} s",
            flush=True,
        )
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
    row = {
        "ranks": options.ranks,
        "shards": options.shards,
        "images": options.images,
        "streams": options.streams,
        **{name: round(value, 4) for name, value in found.items()},
        "machine": platform.processor() or platform.machine(),
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
    }
    for name, value in row.items():
        print(f"{name:15} {value}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
