"""What the depth of a file is worth: a contrast of less than one 8-bit step, learned at 16 bits and not at 8.

Each picture is 16x16 values of uint16: a level of its own within one step of 8 bits (257 values), noise with a standard
deviation of 8, and one half, left or right, that is brighter by `contrast`. The class is the half. The pictures are
trained on as they are (`dtype="uint16"`) and in 8 bits (`convert="scale"`), by the same small model, normalised by the
statistics of its own pixels, and other pictures are classified. At 8 bits, rounding shows the contrast only in pictures
whose level lies near a half.

    python benchmarks/depth.py [--seeds 3] [--quick]

Prints the mean accuracy, with the lowest and the highest, and writes benchmarks/results/depth.csv.
"""

from __future__ import annotations

import argparse
import csv
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from patchnpack import PackedImageLoader, Packing
from patchnpack.models import NaViT, NaViTConfig
from patchnpack.pixel_stats import pixel_stats
from patchnpack.trainer import TrainConfig, evaluate, train

HERE = Path(__file__).resolve().parent
STEP = 257  # values of 16 bits per step of 8 bits
NOISE = 8
DEPTHS: dict[str, dict[str, Any]] = {
    "16 bits": {"dtype": "uint16", "convert": None},
    "8 bits": {"dtype": "uint8", "convert": "scale"},
}


def draw(count: int, contrast: float, seed: int) -> list[dict[str, Any]]:
    """Draw pictures with their classes."""
    rng, items = np.random.default_rng(seed), []
    for i in range(count):
        image = rng.uniform(33_000, 33_000 + STEP) + rng.normal(0, NOISE, (16, 16, 1))
        image[:, 8 * (i % 2) : 8 * (i % 2) + 8] += contrast
        items.append({"image": np.rint(image).astype(np.uint16), "label": i % 2})
    return items


def accuracy(contrast: float, seed: int, images: int, epochs: int, **fields: Any) -> float:
    """The share of new pictures that a model classifies right after training."""
    packing = Packing(seq_len=64, patch_size=8, channels=1, **fields)
    options: dict[str, Any] = {"batch_size": 2, "label": "label", "fingerprint": f"{contrast} {seed}"}
    loader = PackedImageLoader(draw(images, contrast, seed), packing, shuffle=True, seed=seed, **options)
    mean, std = pixel_stats(loader).normalization()
    torch.manual_seed(seed)
    model = NaViT(NaViTConfig(num_classes=2, width=24, depth=1, patch_size=8, channels=1, mean=mean, std=std))
    train(model, loader, config=TrainConfig(epochs=epochs, lr=3e-3, device="cpu", precision="float32", seed=seed))
    held_out = PackedImageLoader(draw(images, contrast, seed + 1000), packing, **options)
    return evaluate(model, held_out, precision="float32")["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description="What the depth of a file is worth.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one seed and one contrast")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "depth.csv")
    options = parser.parse_args()
    seeds, contrasts = (1, (16,)) if options.quick else (options.seeds, (16, 64, 257))
    torch.set_num_threads(1)
    rows = []
    for contrast in contrasts:
        for depth, fields in DEPTHS.items():
            found = [accuracy(contrast, seed, 256, 20, **fields) for seed in range(seeds)]
            row = {"contrast": contrast, "steps of 8 bits": f"{contrast / STEP:.2f}", "depth": depth}
            rows.append(
                row | {"accuracy": f"{np.mean(found):.3f}", "low": f"{min(found):.3f}", "high": f"{max(found):.3f}"}
            )
            print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "torch", "command"])
        writer.writeheader()
        writer.writerows(row | {"torch": torch.__version__, "command": shlex.join(sys.argv)} for row in rows)


if __name__ == "__main__":
    main()
