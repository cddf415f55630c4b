"""Compare packed with padded batches in images per CPU-second, forward and backward.

The same photographs go through one model (width 192, depth 3, 3 heads) with the same weights. There are two sets:
photographs of native size, and photographs of at most 1,024 tokens of 16x16 pixels.

    packed                  `NaViT` on packs of 4,096 slots, as `PackedImageLoader` makes them, one at a time
    plain torch             the same packs in plain torch: `F.linear` on the packed tokens, and for each image
                            `F.scaled_dot_product_attention`
    padded to the longest   one image per row, each padded to the longest image of the data set, with a key mask
    padded per batch        the same, each padded to the longest image of its batch

Each method processes about 4,096 slots at a time, because larger working sets lose their gain to page faults. "plain
torch" and the padded methods share one model that is written out below, without the code of `patchnpack.models`. The
script first asserts that all methods compute the same logits. Last it measures the model's options on the first two
packs. It uses one thread. The methods take turns. Times are CPU time of the process; each rate is a median over rounds,
and each ratio the median of the ratios within a round.

The script exits with an error if packed is slower than plain torch, or if packed native images take more CPU time than
the budget allows in float32: packed must reach 1.6 times the rate of padding to the longest.

    python benchmarks/model.py [--shards SHARDS] [--images 24] [--rounds 5] [--precision float32 bfloat16]

bfloat16 is measured by default where training uses it. To measure the instructions of another CPU, set
`ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2`. The table names the capability that torch reports.

Writes benchmarks/results/model.csv, and keeps the rows that another capability has there.
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
from patchnpack.loaders import report_of
from patchnpack.models import NaViT, NaViTConfig, classification_loss
from patchnpack.models.pooling import POOLINGS
from patchnpack.models.pos_embed import POSITIONS
from patchnpack.trainer import autocast, autocast_dtype

# T tokens; n images of L slots each; K maximum images per pack; Q queries and S tokens of one image; H heads, E wide

HERE = Path(__file__).resolve().parent
CLOTHING = str(HERE.parents[1] / "shared" / "data" / "clothing" / "train-{000000..000009}.tar")
CAPABILITY = torch.backends.cpu.get_cpu_capability()
SLOTS, PATCH, HEADS = 4096, 16, 3
SETS = {"native": None, "at most 1,024 tokens": 1024}
BUDGET = 1.6  # packed over padded to the longest, native images, float32
NOISE = 0.95  # a median ratio of equal methods stays above this
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
CHOICES: dict[str, dict[str, Any]] = {
    "default": {},
    **{position: {"position": position} for position in POSITIONS[1:]},
    **{pooling: {"pooling": pooling} for pooling in POOLINGS[1:]},
    "4 registers": {"registers": 4},
    "dense backend": {"backend": "dense"},
}


def load(
    shards: str, images: int, cap: int | None, seq_len: int, batch_size: int = 1, max_images: int = 64
) -> tuple[list[PackedBatch], int]:
    """Load the first images of `shards`, in the same shuffled order for every `seq_len`.

    Returns the batches, and the tokens of the longest image of all shards.
    """
    packing = Packing(
        seq_len=seq_len,
        patch_size=PATCH,
        resolution=Native(max_tokens=cap),
        algorithm="next_fit",
        max_images=max_images,
        balance=0,
    )
    loader = PackedImageLoader(shards, packing, batch_size=batch_size, label="cls", shuffle=True)
    (padded,) = (way for way in report_of(loader).baselines if way.name == "padded to the longest")
    batches, loaded = [], 0
    for batch in loader:
        if loaded + batch.num_images > images:
            break
        batches.append(batch)
        loaded += batch.num_images
    return batches, padded.slots // padded.sequences


def image_by_image(lengths: list[int]) -> Attend:
    """torch's attention kernel, called for each image of a pack."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        queries = lengths if len(q) == len(k) else [1] * len(lengths)
        parts = zip(q.split(queries), k.split(lengths), v.split(lengths), strict=True)
        heads = ([x.transpose(0, 1)[None] for x in qkv] for qkv in parts)
        mixed = [F.scaled_dot_product_attention(q_1HQE, k_1HSE, v_1HSE) for q_1HQE, k_1HSE, v_1HSE in heads]
        return torch.cat([x[0].transpose(0, 1) for x in mixed])

    return attend


def with_key_mask(tokens: torch.Tensor) -> Attend:
    """torch's attention kernel on rows of one padded image each, whose valid `tokens` are True, (n, L)."""
    tokens = tokens | ~tokens.any(1, keepdim=True)  # a softmax over no token is NaN

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q_nHQE, k_nHLE, v_nHLE = (x.unflatten(0, (len(tokens), -1)).transpose(1, 2) for x in (q, k, v))
        mixed = F.scaled_dot_product_attention(q_nHQE, k_nHLE, v_nHLE, attn_mask=tokens[:, None, None])
        return mixed.transpose(1, 2).flatten(0, 1)

    return attend


def plain_logits(model: Any, patches: torch.Tensor, coords: torch.Tensor, images: int, attend: Attend) -> torch.Tensor:
    """Logits (images, classes) of patches (T, P*P*C) and coords (T, 2), in plain torch; for the default model only."""
    x = model.patch_embed(patches) + model.pos_embed(coords, coords)
    for block in model.blocks:
        qkv = F.linear(block.norm1(x), block.qkv.weight)
        q, k, v = (part.unflatten(-1, (HEADS, -1)) for part in qkv.chunk(3, -1))
        q, k = block.q_norm(q).to(v.dtype), block.k_norm(k).to(v.dtype)
        x = x + F.linear(attend(q, k, v).flatten(1), block.out.weight)
        x = x + F.linear(F.gelu(F.linear(block.norm2(x), block.up.weight)), block.down.weight)
    pool = model.pool
    k, v = (part.unflatten(-1, (HEADS, -1)) for part in F.linear(model.norm(x), pool.kv.weight).chunk(2, -1))
    pooled = pool.out(attend(pool.query.to(k.dtype).repeat(images, 1, 1), k, v).flatten(1))
    logits: torch.Tensor = model.head(pooled + pool.down(F.gelu(pool.up(pool.norm(pooled)))))
    return logits


def packed_logits(model: NaViT, batch: PackedBatch) -> torch.Tensor:
    """Logits (1, K, classes) of a single pack, 0 without an image."""
    index, lengths = batch.token_index, batch.lengths
    patches, coords = batch.patches.flatten(0, 1)[index], batch.coords.flatten(0, 1)[index]
    logits = plain_logits(model, patches, coords, len(lengths), image_by_image(lengths))
    return F.pad(logits, (0, 0, 0, batch.image_mask.shape[1] - len(lengths)))[None]


def padded_logits(model: NaViT, batch: PackedBatch, longest: int) -> torch.Tensor:
    """Logits (n, 1, classes) of one image per pack, each padded to `longest` tokens."""
    patches, coords = (x[:, :longest].flatten(0, 1) for x in (batch.patches, batch.coords))
    tokens = batch.segment_ids[:, :longest] > 0
    return plain_logits(model, patches, coords, len(tokens), with_key_mask(tokens))[:, None]


@dataclass(frozen=True)
class Method:
    """A method that computes the logits (B, K, classes) of the images in `batches`."""

    batches: list[PackedBatch]
    model: NaViT
    logits: Callable[[PackedBatch], torch.Tensor]
    slots: int

    @property
    def images(self) -> int:
        return sum(batch.num_images for batch in self.batches)

    def run(self, precision: str) -> float:
        """Measure the CPU-seconds per image of forward and backward over all batches."""
        began = time.process_time()
        for batch in self.batches:
            self.model.zero_grad()
            with autocast(torch.device("cpu"), precision):
                logits = self.logits(batch)
            total, images = classification_loss(logits, batch)
            (total / images).backward()
        return (time.process_time() - began) / self.images


def measure(methods: dict[str, Method], precision: str, rounds: int) -> dict[str, tuple[float, float]]:
    """Each method's images per CPU-second, and how many times the first method's CPU time it takes.

    Medians over interleaved rounds, after one warm-up round.
    """
    seconds = [[method.run(precision) for method in methods.values()] for _ in range(rounds + 1)][1:]
    columns = [list(column) for column in zip(*seconds, strict=True)]
    found = {}
    for name, own in zip(methods, columns, strict=True):
        ratios = [a / b for a, b in zip(own, columns[0], strict=True)]
        found[name] = 1 / statistics.median(own), statistics.median(ratios)
    return found


def layouts(shards: str, images: int, cap: int | None) -> dict[str, Method]:
    """One model over packed and padded batches, after checking that the logits agree."""
    packs, longest = load(shards, images, cap, SLOTS)
    if not packs:
        raise SystemExit(f"--images is {images}, fewer than the first pack holds; give more, such as 24")
    count = sum(batch.num_images for batch in packs)
    singles, _ = load(shards, count, cap, longest, max(round(SLOTS / longest), 1), 1)
    model = make()
    with torch.no_grad():
        ours = torch.cat([model(batch)[batch.image_mask] for batch in packs])
        plain = torch.cat([packed_logits(model, batch)[batch.image_mask] for batch in packs])
        padded = torch.cat([padded_logits(model, batch, longest)[batch.image_mask] for batch in singles])
    torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours[: len(padded)], padded, rtol=1e-3, atol=1e-4)
    tokens = sum(batch.num_tokens for batch in packs)

    def pad(to: Callable[[PackedBatch], int]) -> Method:
        slots = sum(to(batch) * batch.num_images for batch in singles)
        return Method(singles, model, lambda batch: padded_logits(model, batch, to(batch)), slots)

    return {
        "packed": Method(packs, model, model, tokens),
        "plain torch": Method(packs, model, lambda batch: packed_logits(model, batch), tokens),
        "padded to the longest": pad(lambda _: longest),
        "padded per batch": pad(lambda batch: batch.max_seqlen),
    }


def make(**changes: Any) -> NaViT:
    model = NaViT(NaViTConfig(num_classes=10, width=192, depth=3, heads=HEADS, patch_size=PATCH, **changes))
    assert isinstance(model.head, torch.nn.Linear)
    torch.nn.init.normal_(model.head.weight, std=0.1)
    return model


def options_of(packs: list[PackedBatch]) -> dict[str, Method]:
    """The options of the model on the first two packs."""
    few = packs[:2]
    tokens = sum(batch.num_tokens for batch in few)
    models = {name: make(**changes) for name, changes in CHOICES.items()}
    return {name: Method(few, model, model, tokens) for name, model in models.items()}


def failures(images: str, precision: str, found: dict[str, tuple[float, float]]) -> list[str]:
    """What is slower than it must be, in sentences."""
    where, failed = f"{precision}, {images}, {CAPABILITY}", []
    if "plain torch" in found and (ratio := found["plain torch"][1]) < NOISE:
        failed.append(f"{where}: packed is slower than plain torch, which takes {ratio:.2f}x its CPU time")
    if images == "native" and precision == "float32" and (ratio := found["padded to the longest"][1]) < BUDGET:
        failed.append(f"{where}: packed is {ratio:.2f}x as fast as padded to the longest; the budget is {BUDGET}x")
    return failed


def write(path: Path, rows: list[dict[str, object]]) -> None:
    """Write `rows`, after the rows of another capability in the file; rows with other columns are dropped."""
    kept: list[dict[str, object]] = []
    if path.exists():
        with path.open(newline="") as file:
            kept = [{**row} for row in csv.DictReader(file) if row.keys() == rows[0].keys()]
            kept = [row for row in kept if row["capability"] != CAPABILITY]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(kept + rows)


def main() -> None:
    trains_in = ["float32"] if autocast_dtype(torch.device("cpu")) is None else ["float32", "bfloat16"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", default=CLOTHING)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", nargs="+", default=trains_in if CAPABILITY == "AVX512" else ["float32"])
    parser.add_argument("--out", type=Path, default=HERE / "results" / "model.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    groups = {name: layouts(options.shards, options.images, cap) for name, cap in SETS.items()}
    groups["options"] = options_of(groups["at most 1,024 tokens"]["packed"].batches)
    print(f"$ python {shlex.join(sys.argv)}")
    print(f"CPU capability {CAPABILITY}, torch {torch.__version__}")
    print(f"{'':54}{'images':>8}{'slots':>9}{'images/CPU-second':>19}{'first is':>10}")
    rows: list[dict[str, object]] = []
    failed: list[str] = []
    for precision, (images, methods) in itertools.product(options.precision, groups.items()):
        found = measure(methods, precision, options.rounds)
        failed += failures(images, precision, found)
        for name, (rate, first) in found.items():
            method, label = methods[name], f"{precision}, {images}, {name}"
            print(f"{label:54}{method.images:>8}{method.slots:>9,}{rate:>19.2f}{first:>9.2f}x", flush=True)
            rows.append(
                {
                    "image_set": images,
                    "method": name,
                    "precision": precision,
                    "images": method.images,
                    "slots": method.slots,
                    "images_per_cpu_second": round(rate, 3),
                    "first_of_group_over_this": round(first, 3),
                    "capability": CAPABILITY,
                    "machine": platform.processor() or platform.machine(),
                    "torch": torch.__version__,
                    "date": datetime.date.today().isoformat(),
                    "command": shlex.join(["python", *sys.argv]),
                }
            )
    write(options.out, rows)
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
