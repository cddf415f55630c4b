"""Measure what each kind of source costs: the same photographs as shards, files, data sets and packed folders.

All sources take turns in one process, with the same packing and threads, so other work on the machine affects all
alike. CPU time is that of the whole process, all threads together.

* shards: webdataset tars.
* folder: image files, in a sub-folder per class.
* table: a CSV of the paths of these files.
* parquet: one shard with the columns of Hugging Face.
* image store, patch store: packed folders of encoded images and of patches.
* hugging face: saved to disk, read undecoded.
* image folder: the same files as (path, label) pairs, as torchvision's `ImageFolder` lists them.
* pil: an object whose `__getitem__` opens the bytes with PIL and returns (image, label), without the lock.
* pil, locked: the same behind the lock, which is the default.
* pil, decoded: `__getitem__` decodes and converts the image, as torchvision's loader does, without the lock.

    python benchmarks/sources.py [SHARDS] [--rounds 7] [--threads 2]

Prints medians over the rounds and the ratios to shards of each round, and writes benchmarks/results/sources.csv.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from patchnpack import PackedImageLoader, Packing
from patchnpack.loaders import Index, Job, open_index

HERE = Path(__file__).resolve().parent
CLOTHING = HERE.parents[1] / "shared" / "data" / "clothing" / "train-{000000..000009}.tar"


class Opened:
    """(PIL image, label) of encoded photographs."""

    def __init__(self, photos: list[bytes], labels: list[int], *, decoded: bool) -> None:
        self.photos, self.labels, self.decoded = photos, labels, decoded

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        image: Image.Image = Image.open(io.BytesIO(self.photos[i]))
        return (image.convert("RGB") if self.decoded else image), self.labels[i]


def loaders(index: Index, folder: Path, threads: int, batch_size: int) -> dict[str, PackedImageLoader]:
    """The loaders by name, over the same photographs in the same order."""
    packing = Packing(seq_len=4096)
    given: dict[str, Any] = {"packing": packing, "batch_size": batch_size, "num_threads": threads}
    shards = PackedImageLoader(index, label="cls", **given)
    rows = np.arange(len(index))
    samples = shards.context.samples(rows)
    photos, labels = [samples.read(i) for i in rows.tolist()], np.asarray(samples.labels).tolist()
    files = []
    for i, (data, label) in enumerate(zip(photos, labels, strict=True)):
        path = folder / "files" / str(label) / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        files.append((str(path), label))
    table, cached = folder / "files.csv", given | {"cache_dir": folder / "cache"}
    table.write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in files))
    columns = {"image": [{"bytes": data, "path": None} for data in photos], "label": labels}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    dataset = datasets.Dataset.from_dict(columns, features=features)
    dataset.save_to_disk(str(folder / "saved"))
    dataset.to_parquet(str(folder / "train.parquet"))
    stored: dict[str, Any] = {"batch_size": batch_size, "num_threads": threads}
    for store in ("images", "patches"):
        Job(source=index, out=str(folder / store), packing=packing, store=store, label="cls").run()
    saved = datasets.load_from_disk(str(folder / "saved"))
    opened, decoded = Opened(photos, labels, decoded=False), Opened(photos, labels, decoded=True)
    sizes = np.stack([index.width, index.height], 1)
    return {
        "shards": shards,
        "folder": PackedImageLoader(folder / "files", label="folder", **cached),
        "table": PackedImageLoader(table, label="label", **cached),
        "parquet": PackedImageLoader(folder / "train.parquet", image="image", label="label", **cached),
        "image store": PackedImageLoader(folder / "images", **stored),
        "patch store": PackedImageLoader(folder / "patches", **stored),
        "hugging face": PackedImageLoader(saved, label="label", **given),
        "image folder": PackedImageLoader(files, thread_safe=True, fingerprint="the benchmark's files", **given),
        "pil": PackedImageLoader(opened, thread_safe=True, sizes=sizes, **given),
        "pil, locked": PackedImageLoader(opened, sizes=sizes, **given),
        "pil, decoded": PackedImageLoader(decoded, thread_safe=True, sizes=sizes, **given),
    }


def measure(all_loaders: dict[str, PackedImageLoader], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Measure images/s and microseconds of CPU per image of each loader in each round, after a warm-up round."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in all_loaders}
    for round_ in range(rounds + 1):
        for name, loader in all_loaders.items():
            began, cpu = time.perf_counter(), time.process_time()
            images = sum(batch.num_images for batch in loader)
            seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
            if round_:
                found[name].append((images / seconds, 1e6 * cpu / images))
    return found


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="?", default=str(CLOTHING))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "sources.csv")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    index = open_index(args.shards)
    details = {
        "images": len(index),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, datasets {datasets.__version__}",
        "command": shlex.join(["python", "benchmarks/sources.py", *(sys.argv[1:] if arguments is None else arguments)]),
        "date": datetime.date.today().isoformat(),
    }
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        found = measure(loaders(index, Path(folder), args.threads, args.batch_size), args.rounds)
    rows = []
    for name, values in found.items():
        speed, cpu = (statistics.median(column) for column in zip(*values, strict=True))
        speeds = [a / b for (a, _), (b, _) in zip(values, found["shards"], strict=True)]
        cpus = [a / b for (_, a), (_, b) in zip(values, found["shards"], strict=True)]
        ratio, cpu_ratio = statistics.median(speeds), statistics.median(cpus)
        rows.append(
            {"source": name, "images_per_s": round(speed), "cpu_us_per_image": round(cpu), "ratio": round(ratio, 3)}
            | {"low": round(min(speeds), 3), "high": round(max(speeds), 3), "cpu_ratio": round(cpu_ratio, 3)}
        )
        print(
            f"{name:16} {speed:8,.0f} images/s, {ratio:.2f} of shards "
            f"(rounds: {min(speeds):.2f} to {max(speeds):.2f}); "
            f"{cpu:7,.0f} microseconds of CPU per image, {cpu_ratio:.2f} of shards"
        )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *details])
        writer.writeheader()
        writer.writerows({**row, **details} for row in rows)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
