"""Measure training on a GPU: packed against padded batches, in tokens/s, MFU and stall of the loader.

    packed             `NaViT` on packs of SLOTS slots, as `PackedImageLoader` makes them
    + checkpointing    the same, with blocks recomputed in the backward pass
    + compile          the same as packed, with compiled blocks
    padded             one image per row, each padded to the longest image of the data set, with a mask

Each way takes the same AdamW steps, in bfloat16 where `autocast` chooses it, on images that the script draws: JPEGs of
random sizes and aspect ratios. tokens/s count real tokens, not padding. MFU is the share of the peak of the device
(dense bfloat16, as its maker states it) that the matrix products of real tokens use: 6 FLOPs per weight and token, and
12 per pair of tokens of an image, feature and block. The loader's stall is the share of the time in which the loop
waits for its next batch.

Without a GPU the script says so and measures nothing. With --tests, it runs the tests that use a GPU first.

    python benchmarks/gpu.py [--tests] [--images 2000] [--steps 30] [--width 768 --depth 12 --heads 12]

Writes benchmarks/results/gpu.csv.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from webdataset import ShardWriter

from patchnpack import PackedImageLoader, Packing
from patchnpack.models import NaViT, NaViTConfig
from patchnpack.trainer import autocast

HERE = Path(__file__).resolve().parent
SLOTS, PATCH = 4096, 16
# FLOP/s of dense bfloat16 matrix products, by a part of the name of the device, from the makers' data sheets.
PEAKS = {"B200": 2.25e15, "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12}
WAYS = ("packed", "+ checkpointing", "+ compile", "padded")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A line of the table."""

    way: str
    images_per_s: float
    tokens_per_s: float
    mfu: float
    stall: float
    peak_gib: float
    padding: float


def draw_shard(folder: Path, images: int, longest: int) -> str:
    """Write JPEGs of random sizes, with sides of up to `longest` pixels, and classes 0 and 1; returns the shard."""
    rng = np.random.default_rng(0)
    with ShardWriter(f"{folder}/images-%d.tar", maxcount=images, verbose=0, encoder=False) as sink:
        for i in range(images):
            side = min(longest, 64 * 2 ** rng.normal(1.5, 0.6))
            aspect = 2 ** rng.uniform(-0.5, 0.5)
            width, height = (int(np.clip(side * a, 32, longest)) for a in (aspect, 1 / aspect))
            noise = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(noise).resize((width, height)).save(buffer, "JPEG")
            sink.write({"__key__": f"{i:06d}", "jpg": buffer.getvalue(), "cls": str(i % 2).encode()})
    return f"{folder}/images-0.tar"


def training_flops(model: NaViT, lengths: list[int]) -> float:
    """FLOPs of the matrix products of one training step on images of these lengths, in tokens."""
    config = model.config
    weights = sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2) + model.patch_embed.weight.numel()
    pairs = sum(length**2 for length in lengths)
    return 6.0 * weights * sum(lengths) + 12.0 * config.depth * config.width * pairs


def measure(way: str, config: NaViTConfig, shard: str, device: torch.device, steps: int, peak: float) -> Row:
    """Train for some steps, after a few that do not count, and time them."""
    torch.manual_seed(0)
    model = NaViT(config).to(device).train()
    model.activation_checkpointing = way == "+ checkpointing"
    for block in model.blocks if way == "+ compile" else ():
        block.compile(dynamic=True)
    packing = Packing(seq_len=SLOTS, patch_size=PATCH)
    if way == "padded":
        longest = int(max(gw * gh for gw, gh in _grids(shard)))
        packing = packing.replace(seq_len=longest, max_images=1)
    batch_size = max(1, SLOTS // packing.seq_len)
    loader = PackedImageLoader(shard, packing, batch_size=batch_size, label="cls", shuffle=True, repeat=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    images = tokens = slots = 0
    flops = begin = waited = 0.0
    warm = max(2, steps // 5)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for i, batch in enumerate(loader):
        if i == warm:
            _wait(device)
            begin, waited = time.perf_counter(), float(loader.stats()["wait_s"])
        moved = (batch.pin_memory() if device.type == "cuda" else batch).to(device, non_blocking=True)
        optimizer.zero_grad()
        with autocast(device):
            loss = model.loss(moved)
        loss.backward()
        optimizer.step()
        if i >= warm:
            images, tokens = images + batch.num_images, tokens + batch.num_tokens
            slots, flops = slots + batch.segment_ids.numel(), flops + training_flops(model, batch.lengths)
        if i + 1 == warm + steps:
            break
    _wait(device)
    seconds = time.perf_counter() - begin
    return Row(
        way=way,
        images_per_s=images / seconds,
        tokens_per_s=tokens / seconds,
        mfu=flops / seconds / peak,
        stall=(float(loader.stats()["wait_s"]) - waited) / seconds,
        peak_gib=torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0,
        padding=1 - tokens / slots,
    )


def _grids(shard: str) -> list[tuple[int, int]]:
    loader = PackedImageLoader(shard, Packing(seq_len=SLOTS, patch_size=PATCH), batch_size=1)
    index = loader.source.index
    return [(-(-w // PATCH), -(-h // PATCH)) for w, h in zip(index.width.tolist(), index.height.tolist(), strict=True)]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def speed_table(config: NaViTConfig, device: torch.device, *, images: int, steps: int, peak: float) -> list[Row]:
    """Measure every way on the same images."""
    with tempfile.TemporaryDirectory() as folder:
        shard = draw_shard(Path(folder), images, longest=int(PATCH * SLOTS**0.5))
        return [measure(way, config, shard, device, steps, peak) for way in WAYS]


def show(rows: list[Row]) -> None:
    """Print the table."""
    print(f"{'':16} {'images/s':>10} {'tokens/s':>10} {'MFU':>7} {'stall':>7} {'GiB':>7} {'padding':>8}")
    for row in rows:
        print(
            f"{row.way:16} {row.images_per_s:10.0f} {row.tokens_per_s:10.0f} {row.mfu:7.1%} {row.stall:7.1%} "
            f"{row.peak_gib:7.1f} {row.padding:8.1%}"
        )


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", action="store_true", help="run the tests that use a GPU first")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=30)
    for name, default in (("width", 768), ("depth", 12), ("heads", 12)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--peak", type=float, help="FLOP/s of the device, if the script does not know it")
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(f"No GPU: torch {torch.__version__} finds no CUDA device, so nothing was tested or measured on one.")
        if torch.version.cuda is None and torch.version.hip is None:
            print("This torch is built for CPUs. On a machine with a GPU, install one that is built for CUDA.")
        return 0
    device = torch.device("cuda")
    name = torch.cuda.get_device_name(device)
    peak = args.peak or next((peak for part, peak in PEAKS.items() if part in name), None)
    if peak is None:
        raise SystemExit(f"the peak of {name!r} is not known; give its dense bfloat16 FLOP/s as --peak")
    if args.tests:
        folders = [str(HERE.parent / "tests" / part) for part in ("models", "trainer", "packer/batch")]
        if failed := subprocess.run([sys.executable, "-m", "pytest", "-q", *folders], check=False).returncode:
            return failed
    config = NaViTConfig(num_classes=2, width=args.width, depth=args.depth, heads=args.heads, patch_size=PATCH)
    print(f"{name}, torch {torch.__version__}, Python {platform.python_version()}, {datetime.date.today()}")
    rows = speed_table(config, device, images=args.images, steps=args.steps, peak=peak)
    show(rows)
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    command = shlex.join(["python", "benchmarks/gpu.py", *(sys.argv[1:] if arguments is None else arguments)])
    facts = {"device": name, "torch": torch.__version__, "date": str(datetime.date.today()), "command": command}
    with (results / "gpu.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*asdict(rows[0]), *facts])
        writer.writeheader()
        writer.writerows(asdict(row) | facts for row in rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
