"""Compare packed with padded batches in images per CPU-second, forward and backward.

The same photographs of native size, capped at 1,024 tokens of 16x16 pixels, go through one model (width 192, depth 3, 3
heads) with the same weights:

    packed                      `NaViT` on packs of 4,096 slots, as `PackedImageLoader` makes them, one at a time
    padded                      4 images at a time, each padded to 1,024 tokens, in plain torch: `F.linear`, attention
                                with a key mask
    padded, our linear          the same with the linear layers of `NaViT` (`models/linear.py`)
    padded a batch, our linear  the previous one, padded only to the longest of the 4 images

Each variant processes about 4,096 tokens at a time, because larger working sets lose their gain to page faults. The
padded model is written out below: the blocks of the packed model on (images, tokens) tensors, with
`scaled_dot_product_attention` and a boolean key mask. The script first asserts that both models compute the same. Then
it measures the model's options, packed, on the first two packs. It uses one thread. The variants take turns, and each
figure is the median of its rounds, in CPU time of the process.

    python benchmarks/model.py [--shards SHARDS] [--images 40] [--rounds 5] [--precision float32 bfloat16]

Writes benchmarks/results/model.csv.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import itertools
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F

from patchnpack import Native, PackedBatch, PackedImageLoader, Packing
from patchnpack.models import NaViT, NaViTConfig, classification_loss
from patchnpack.models.pooling import POOLINGS
from patchnpack.models.pos_embed import POSITIONS
from patchnpack.trainer import autocast

HERE = Path(__file__).resolve().parent
CLOTHING = str(HERE.parents[1] / "shared" / "data" / "clothing" / "train-{000000..000009}.tar")
CAP, SLOTS, PATCH = 1024, 4096, 16
CHOICES: dict[str, dict[str, Any]] = {
    "default": {},
    **{position: {"position": position} for position in POSITIONS[1:]},
    **{pooling: {"pooling": pooling} for pooling in POOLINGS[1:]},
    "4 registers": {"registers": 4},
    "dense backend": {"backend": "dense"},
}


def load(shards: str, images: int, seq_len: int, batch_size: int, max_images: int = 64) -> list[PackedBatch]:
    """Load the first images of `shards`, in the same shuffled order for every `seq_len`."""
    packing = Packing(
        seq_len=seq_len,
        patch_size=PATCH,
        resolution=Native(max_tokens=CAP),
        algorithm="next_fit",
        max_images=max_images,
        balance=0,
    )
    loader = PackedImageLoader(shards, packing, batch_size=batch_size, label="cls", shuffle=True)
    batches, loaded = [], 0
    for batch in loader:
        if loaded + batch.num_images > images:
            break
        batches.append(batch)
        loaded += batch.num_images
    return batches


def padded_logits(model: Any, batch: PackedBatch, longest: int, plain: bool) -> torch.Tensor:
    """Logits (n, classes) of one image per pack, each padded to `longest` tokens; for the default model only."""
    patches, coords = batch.patches[:, :longest], batch.coords[:, :longest]
    mask = (batch.segment_ids[:, :longest] > 0)[:, None, None]
    n, L, _ = patches.shape
    x = model.patch_embed(patches.flatten(0, 1)) + model.pos_embed(coords.flatten(0, 1), coords.flatten(0, 1))
    x = x.unflatten(0, (n, L))

    def linear(layer: Any, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(0, 1)
        out: torch.Tensor = F.linear(flat, layer.weight, layer.bias) if plain else layer(flat)
        return out.unflatten(0, (n, L))  # type: ignore[no-any-return]

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (3, -1)).transpose(1, 2)  # type: ignore[no-any-return]

    for block in model.blocks:
        q, k, v = (heads(part) for part in linear(block.qkv, block.norm1(x)).chunk(3, -1))
        q, k = block.q_norm(q).to(v.dtype), block.k_norm(k).to(v.dtype)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + linear(block.out, mixed.transpose(1, 2).flatten(2))
        x = x + linear(block.down, F.gelu(linear(block.up, block.norm2(x))))
    pool = model.pool
    k, v = (heads(part) for part in linear(pool.kv, model.norm(x)).chunk(2, -1))
    q = pool.query.to(k.dtype).expand(n, 1, -1, -1).transpose(1, 2)
    pooled = pool.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(1))
    logits: torch.Tensor = model.head(pooled + pool.down(F.gelu(pool.up(pool.norm(pooled)))))
    return logits


@dataclass(frozen=True)
class Method:
    """A method that computes the logits of the images in `batches`."""

    batches: list[PackedBatch]
    model: NaViT
    logits: Callable[[PackedBatch], torch.Tensor]
    slots: int

    @property
    def images(self) -> int:
        return sum(batch.num_images for batch in self.batches)

    def run(self, precision: str) -> float:
        """Measure the CPU-seconds of forward and backward over all batches."""
        began = time.process_time()
        for batch in self.batches:
            self.model.zero_grad()
            with autocast(torch.device("cpu"), precision):
                logits = self.logits(batch)
            total, images = classification_loss(logits, batch)
            (total / images).backward()
        return time.process_time() - began


def rates(methods: dict[str, Method], precision: str, rounds: int) -> dict[str, float]:
    """Median images per CPU-second of each method over interleaved rounds, after one warm-up round."""
    seconds = [[method.run(precision) for method in methods.values()] for _ in range(rounds + 1)][1:]
    medians = (statistics.median(times) for times in zip(*seconds, strict=True))
    return {name: method.images / median for (name, method), median in zip(methods.items(), medians, strict=True)}


def layouts(shards: str, images: int) -> dict[str, Method]:
    """One model over packed and padded batches, after checking that the logits agree."""
    packs = load(shards, images, SLOTS, 1)
    if not packs:
        raise SystemExit(f"--images is {images}, fewer than the first pack holds; give more, such as 40")
    singles = load(shards, sum(batch.num_images for batch in packs), CAP, SLOTS // CAP, 1)
    model = make()
    with torch.no_grad():
        ours = torch.cat([model(batch)[batch.image_mask] for batch in packs])
        theirs = torch.cat([padded_logits(model, batch, CAP, plain=True) for batch in singles])
    torch.testing.assert_close(ours[: len(theirs)], theirs, rtol=1e-3, atol=1e-4)

    def padded(longest: Callable[[PackedBatch], int], plain: bool) -> Method:
        slots = sum(longest(batch) * batch.num_images for batch in singles)
        return Method(singles, model, lambda b: padded_logits(model, b, longest(b), plain)[:, None], slots)

    return {
        "packed": Method(packs, model, model, sum(batch.num_tokens for batch in packs)),
        "padded": padded(lambda _: CAP, True),
        "padded, our linear": padded(lambda _: CAP, False),
        "padded a batch, our linear": padded(lambda batch: batch.max_seqlen, False),
    }


def make(**changes: Any) -> NaViT:
    model = NaViT(NaViTConfig(num_classes=10, width=192, depth=3, heads=3, patch_size=PATCH, **changes))
    assert isinstance(model.head, torch.nn.Linear)
    torch.nn.init.normal_(model.head.weight, std=0.1)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", default=CLOTHING)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, default=HERE / "results" / "model.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    methods = layouts(options.shards, options.images)
    few = methods["packed"].batches[:2]
    choices = {name: make(**changes) for name, changes in CHOICES.items()}
    choice_methods = {
        name: Method(few, model, model, sum(b.num_tokens for b in few)) for name, model in choices.items()
    }
    print(f"$ python {shlex.join(sys.argv)}")
    print(f"{'':38}{'images':>8}{'slots':>9}{'images/CPU-second':>22}{'first is':>14}")
    rows = []
    for precision, group in itertools.product(options.precision, (methods, choice_methods)):
        found = rates(group, precision, options.rounds)
        for name, rate in found.items():
            first = next(iter(found.values())) / rate
            method, label = group[name], f"{precision}, {name}"
            print(f"{label:38}{method.images:>8}{method.slots:>9,}{rate:>22.2f}{first:>13.2f}x", flush=True)
            rows.append(
                {
                    "method": name,
                    "precision": precision,
                    "images": method.images,
                    "slots": method.slots,
                    "images_per_cpu_second": round(rate, 3),
                    "first_of_group_over_this": round(first, 3),
                    "machine": platform.processor() or platform.machine(),
                    "torch": torch.__version__,
                    "date": datetime.date.today().isoformat(),
                    "command": shlex.join(["python", *sys.argv]),
                }
            )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
