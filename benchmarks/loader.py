"""Compare the loader with its upper bound and with common alternatives.

All methods read the same photographs, take turns, and use the same number of threads or processes. At native
resolution:

* bare pool: threads that read and decode the same JPEG bytes with simplejpeg and discard the pixels; the upper bound.
* PackedImageLoader: the same work, plus planning, patchifying and building batches.
* DALI: NVIDIA's reader and CPU decoder, images only. Two batches, 2 % of the images, are ready when its clock starts.
* webdataset: `DataLoader` with worker processes and PIL, images only, as lists of tensors, the fastest of six ways to
  pass them on.
* webdataset, packed: patches, next-fit groups and zero padding in those workers, in Python, as usually written.

The same methods also run with images shrunk to at most 64 tokens, where a JPEG can be decoded at reduced scale. There
the bound decodes at the same scale as the loader and resizes to the same size. webdataset decodes in full, because
`decode("pil")` does.

A third setting reads photographs of 500x375, a common size in ImageNet: the script makes up to 1,000 of them from the
shards, with Pillow, as JPEGs of quality 90 to 95. A batch of the loader holds 20 of them.

As in training, one loader serves all epochs. The first epoch is not timed, because the system then allocates memory and
starts workers.

    python benchmarks/loader.py [SHARDS] [--threads 2] [--rounds 5] [--quick]

`--quick` runs only the bare pool and the loader, at native resolution and on the photographs of 500x375. Prints
medians and the spread of the rounds, and writes benchmarks/results/loader.csv. Images/s differ between machines and
from hour to hour; compare the ratio to the bound of the same round. For the methods that run in threads of this
process, the script also reports CPU microseconds per image, the ratio of the bound's to the method's, and the part of
the training loop's own thread: on a machine shared with other work, these are more robust than images/s.

DALI needs the package nvidia-dali-cuda120. Measured elsewhere, on ImageNet photographs, in images/s, and not in the
CSV:

    setting                             DALI    PackedImageLoader
    native resolution                    860                  780
    random crops                         420                  680
    fitted to 196 tokens                 220                  650
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime
import importlib
import importlib.metadata
import io
import math
import os
import platform
import shlex
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
import torch
import webdataset
from PIL import Image, ImageOps
from torch.utils.data import DataLoader

from patchnpack import FitTokens, PackedImageLoader, Packing
from patchnpack.loaders import Index, scan
from patchnpack.packer import plan

# P patch size, L token slots of a pack, B packs in a batch

HERE = Path(__file__).resolve().parent
CLOTHING = HERE.parents[1] / "shared" / "data" / "clothing" / "train-{000000..000009}.tar"
SEQ_LEN, PATCH_SIZE, BATCH_SIZE, MAX_TOKENS = 4096, 16, 8, 64
USUAL, USUAL_IMAGES, USUAL_SHARDS, USUAL_BATCH = (500, 375), 1000, 8, 4  # five of these images fill a pack
LIST = 32  # images in a batch that is not packed
NOT_INSTALLED = "not installed"
COLUMNS = (
    *("setting", "method", "images_per_second", "of_the_bound", "low", "high"),
    *("cpu_us", "cpu_of_the_bound", "loop_us"),
)

Method = Callable[[], int]  # reads and decodes every image once, and returns the number of images


class Took(NamedTuple):
    """What one epoch took per image, in seconds: in all, of this process's CPU, and of the calling thread's CPU."""

    wall: float
    cpu: float
    loop: float


def usual_photographs(index: Index, folder: Path) -> Index:
    """Write photographs of 500x375 that are made from those of the index; return their index."""
    reader, rows = index.reader(), np.linspace(0, len(index) - 1, min(USUAL_IMAGES, len(index))).astype(np.int64)
    for shard, part in enumerate(np.array_split(rows, USUAL_SHARDS)):
        with tarfile.open(folder / f"usual-{shard}.tar", "w") as tar:
            for number, row in enumerate(part.tolist()):
                data = reader.read(int(index.shard_of(row)), int(index.offset[row]), int(index.nbytes[row]))
                image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
                encoded = io.BytesIO()
                ImageOps.fit(image, USUAL, Image.Resampling.BICUBIC).save(encoded, "JPEG", quality=90 + number % 6)
                member = tarfile.TarInfo(f"{number:06d}.jpg")
                member.size = encoded.tell()
                encoded.seek(0)
                tar.addfile(member, encoded)
    return scan(f"{folder}/usual-*.tar")


def bare_pool(index: Index, threads: int, sizes: list[tuple[int, int]] | None = None) -> int:
    """Read and decode every image in the order of the shards; with `sizes`, shrink it to that (width, height)."""
    reader = index.reader()
    locations = list(
        zip(index.shard_of(np.arange(len(index))).tolist(), index.offset.tolist(), index.nbytes.tolist(), strict=True)
    )

    def decode(part: int) -> int:
        count = 0
        for i in range(part, len(locations), threads):
            data, count = reader.read(*locations[i]), count + 1
            if sizes is None:
                simplejpeg.decode_jpeg(data)
                continue
            width, height = sizes[i]
            pixels = simplejpeg.decode_jpeg(data, "RGBX", min_height=height, min_width=width, min_factor=2)
            image = Image.frombuffer("RGBX", pixels.shape[1::-1], pixels, "raw", "RGBX", 0, 1)
            image.resize((width, height), Image.Resampling.BICUBIC)
        return count

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(decode, range(threads)))


def stored_sizes(index: Index, packing: Packing) -> list[tuple[int, int]]:
    """(width, height) of each row after shrinking and before orientation."""
    images = plan(index.rows(np.arange(len(index))), packing).images
    sizes = images.size[np.argsort(images.row)]
    sizes = np.where(index.orientation[:, None] >= 5, sizes[:, ::-1], sizes)
    return [(int(width), int(height)) for width, height in sizes]


def packed_images(loader: PackedImageLoader) -> int:
    return sum(batch.num_images for batch in loader)


def to_pixels(image: Image.Image, max_tokens: int | None, P: int) -> np.ndarray:
    """Convert a decoded image to uint8 (height, width, 3), shrunk to at most `max_tokens` patches."""
    if max_tokens is not None:
        scale = min(1.0, math.sqrt(max_tokens * P**2 / (image.width * image.height)))
        width, height = (max(1, int(scale * side / P)) * P for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.array(image)


def next_fit(samples: Iterable[tuple[np.ndarray]], L: int, P: int, B: int) -> Iterator[dict[str, Any]]:
    """Yield batches of packs: each image goes into the open pack or, if it does not fit, opens the next."""
    packs: list[list[np.ndarray]] = [[]]
    for (pixels,) in samples:
        height, width, _ = pixels.shape
        gh, gw = -(-height // P), -(-width // P)
        if gh * gw > L:
            raise ValueError(f"an image of {width}x{height} pixels has {gh * gw} patches, more than a pack's {L} slots")
        filled = np.pad(pixels, ((0, gh * P - height), (0, gw * P - width), (0, 0)))
        if sum(gh * gw for gh, _, gw, *_ in map(np.shape, packs[-1])) + gh * gw > L:
            if len(packs) == B:
                yield padded(packs, L)
                packs = []
            packs.append([])
        packs[-1].append(filled.reshape(gh, P, gw, P, 3))
    yield padded(packs, L)


def padded(packs: list[list[np.ndarray]], L: int) -> dict[str, Any]:
    """Convert packs of images (gh, P, gw, P, 3) to tensors; the remaining slots are 0."""
    _, P, _, _, C = packs[0][0].shape
    patches = np.zeros((len(packs), L, P * P * C), np.uint8)
    segment_ids, coords = np.zeros((len(packs), L), np.int32), np.zeros((len(packs), L, 2), np.int32)
    for b, pack in enumerate(packs):
        start = 0
        for number, image in enumerate(pack, 1):
            gh, _, gw, *_ = image.shape
            slots = slice(start, start := start + gh * gw)
            patches[b, slots] = image.transpose(0, 2, 1, 3, 4).reshape(gh * gw, -1)
            segment_ids[b, slots] = number
            coords[b, slots] = np.stack(np.meshgrid(np.arange(gw), np.arange(gh)), -1).reshape(-1, 2)
    arrays = {"patches": patches, "segment_ids": segment_ids, "coords": coords}
    return {"images": sum(map(len, packs)), **{name: torch.from_numpy(array) for name, array in arrays.items()}}


def webdataset_methods(index: Index, processes: int, max_tokens: int | None) -> tuple[Method, Method]:
    """Epochs of images only, and of packed batches."""
    options: dict[str, Any] = {"num_workers": processes, "persistent_workers": True}
    images = webdataset.WebDataset(index.shards, shardshuffle=False, empty_check=False).decode("pil")
    images = images.to_tuple("jpg;jpeg").map_tuple(partial(to_pixels, max_tokens=max_tokens, P=PATCH_SIZE))
    packed = images.compose(partial(next_fit, L=SEQ_LEN, P=PATCH_SIZE, B=BATCH_SIZE))
    lists = DataLoader(images, batch_size=LIST, collate_fn=to_tensors, **options)
    batches = DataLoader(packed, batch_size=None, **options)
    return lambda: sum(map(len, lists)), lambda: sum(batch["images"] for batch in batches)


def to_tensors(samples: list[tuple[np.ndarray]]) -> list[torch.Tensor]:
    """Convert each image to a tensor, which reaches the training process through shared memory."""
    return [torch.from_numpy(pixels) for (pixels,) in samples]


def dali_method(index: Index, threads: int) -> Method | None:
    """Epochs of images decoded by DALI's CPU pipeline; None if DALI is not installed."""
    try:
        dali, fn = importlib.import_module("nvidia.dali"), importlib.import_module("nvidia.dali.fn")
    except ImportError:
        return None

    @dali.pipeline_def(batch_size=LIST, num_threads=threads, device_id=None)  # type: ignore[untyped-decorator]
    def decoding() -> Any:
        data = fn.readers.webdataset(paths=index.shards, ext=["jpg;jpeg"], name="reader", pad_last_batch=True)
        return fn.decoders.image(data, device="cpu", output_type=dali.types.RGB)

    pipeline = decoding()
    pipeline.build()
    batches = -(-pipeline.epoch_size("reader") // LIST)  # DALI fills the last batch by repeating the last image
    return lambda: sum(len(pipeline.run()[0]) for _ in range(batches))


def all_methods(index: Index, usual: Index, threads: int, quick: bool) -> dict[tuple[str, str], Method | None]:
    """The methods by setting and name; the first of a setting is its bound."""
    native = Packing(seq_len=SEQ_LEN, patch_size=PATCH_SIZE)
    fit = native.replace(resolution=FitTokens(MAX_TOKENS))

    def loader(index: Index, packing: Packing, batch_size: int) -> Method:
        return partial(packed_images, PackedImageLoader(index, packing, batch_size=batch_size, num_threads=threads))

    methods: dict[tuple[str, str], Method | None] = {
        ("native", "bare pool"): lambda: bare_pool(index, threads),
        ("native", "PackedImageLoader"): loader(index, native, BATCH_SIZE),
        ("500x375", "bare pool"): lambda: bare_pool(usual, threads),
        ("500x375", "PackedImageLoader"): loader(usual, native, USUAL_BATCH),
    }
    if quick:
        return methods
    sizes = stored_sizes(index, fit)
    images_only, packed = webdataset_methods(index, threads, None)
    fit_images_only, fit_packed = webdataset_methods(index, threads, MAX_TOKENS)
    usual_images_only, usual_packed = webdataset_methods(usual, threads, None)
    small = f"at most {MAX_TOKENS} tokens"
    methods |= {
        ("native", "DALI, images only"): dali_method(index, threads),
        ("native", "webdataset, images only"): images_only,
        ("native", "webdataset, packed"): packed,
        ("500x375", "DALI, images only"): dali_method(usual, threads),
        ("500x375", "webdataset, images only"): usual_images_only,
        ("500x375", "webdataset, packed"): usual_packed,
        (small, "bare pool"): lambda: bare_pool(index, threads, sizes),
        (small, "PackedImageLoader"): loader(index, fit, BATCH_SIZE),
        (small, "webdataset, images only"): fit_images_only,
        (small, "webdataset, packed"): fit_packed,
    }
    settings = list(dict.fromkeys(setting for setting, _ in methods))
    return {name: methods[name] for setting in settings for name in methods if name[0] == setting}


def measure(
    methods: dict[tuple[str, str], Method], images: dict[str, int], rounds: int
) -> dict[tuple[str, str], list[Took]]:
    """What each method takes per image in each round; `images` is the number of images by setting."""
    took: dict[tuple[str, str], list[Took]] = {name: [] for name in methods}
    # Warm up in reverse order, so that worker processes fork before this process holds the batches of the loaders.
    # Otherwise the system copies that memory when the loaders next write to it.
    for method in reversed(methods.values()):
        method()
    clocks = (time.perf_counter, time.process_time, time.thread_time)
    for _ in range(rounds):
        for name, method in methods.items():
            time.sleep(0.1)  # let DALI finish the batches it prefetches, so that the next method has the CPUs
            began = [clock() for clock in clocks]
            count, wanted = method(), images[name[0]]
            took[name].append(Took(*((clock() - at) / count for clock, at in zip(clocks, began, strict=True))))
            assert wanted <= count < wanted + LIST, f"{name}: {count} of {wanted} images"
    return took


def row_of(setting: str, method: str, took: list[Took], bound: list[Took]) -> dict[str, str]:
    """One row of the table; empty cells where a method is not installed or runs in other processes."""
    row = dict.fromkeys(COLUMNS, "") | {"setting": setting, "method": method, "images_per_second": NOT_INSTALLED}
    if took:
        ratios = np.array([base.wall / own.wall for own, base in zip(took, bound, strict=True)])
        row["images_per_second"] = f"{statistics.median(1 / own.wall for own in took):.0f}"
        row |= {"of_the_bound": f"{np.median(ratios):.3f}", "low": f"{ratios.min():.3f}", "high": f"{ratios.max():.3f}"}
    if took and not method.startswith("webdataset"):
        row["cpu_us"] = f"{statistics.median(own.cpu for own in took) * 1e6:.0f}"
        row["cpu_of_the_bound"] = (
            f"{statistics.median(base.cpu / own.cpu for own, base in zip(took, bound, strict=True)):.3f}"
        )
        row["loop_us"] = f"{statistics.median(own.loop for own in took) * 1e6:.1f}"
    return row


def about(index: Index, usual: Index, threads: int, rounds: int) -> dict[str, str]:
    """The details to report with the figures: command, machine, versions, date."""
    cpuinfo = Path("/proc/cpuinfo")
    models = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
    names = ("numpy", "torch", "simplejpeg", "pillow-simd", "webdataset", "nvidia-dali-cuda120")
    versions = [f"Python {platform.python_version()}"]
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    return {
        "images": f"{len(index)} of {index.width.mean():.0f}x{index.height.mean():.0f} pixels on average; "
        f"{len(usual)} of 500x375",
        "workers": f"{threads} threads or processes, {rounds} rounds in turn",
        "machine": f"{models[0].split(':')[1].strip() if models else platform.machine()}, {os.cpu_count()} CPUs",
        "versions": ", ".join(versions),
        "command": f"python {shlex.join(sys.argv)}",
        "date": str(datetime.date.today()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="?", default=str(CLOTHING))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--quick", action="store_true", help="measure only the bare pool and the loader, and no reduced size"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results" / "loader.csv")
    options = parser.parse_args()
    try:
        index = scan(options.shards)
    except FileNotFoundError as error:
        sys.exit(f"{error}\ngive shards of JPEG photographs: python benchmarks/loader.py 'SHARDS'")

    with tempfile.TemporaryDirectory() as folder:
        usual = usual_photographs(index, Path(folder))
        methods = all_methods(index, usual, options.threads, options.quick)
        images = {setting: len(usual) if setting == "500x375" else len(index) for setting, _ in methods}
        took = measure({name: method for name, method in methods.items() if method}, images, options.rounds)
    details = about(index, usual, options.threads, options.rounds)
    print("\n".join(f"{name:9}{value}" for name, value in details.items()))
    rows = []
    for setting, name in methods:
        bound = took[next(key for key in methods if key[0] == setting)]
        rows.append(row_of(setting, name, took.get((setting, name), []), bound))
        line = "{setting:18}{method:26}{images_per_second:>14}{of_the_bound:>8} ({low} to {high}), CPU {cpu_us} us, "
        print((line + "{cpu_of_the_bound} of the bound; the loop's thread {loop_us} us").format(**rows[-1]))
    options.out.parent.mkdir(exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *details])
        writer.writeheader()
        writer.writerows(row | details for row in rows)


if __name__ == "__main__":
    main()
