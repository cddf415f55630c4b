"""A linear probe on frozen features against the prior: how much a frozen `NaViT` knows, over three seeds.

For each seed, a `NaViT` of width 96 and depth 3 is drawn ("random"), and then trained for two epochs to tell apart one
half of the classes ("other classes"). The probe sees only images of the other half, of which the backbone saw none.
Features of each image are computed once at native aspect ratio, at most 36 tokens; `patchnpack.probe` fits the head.
The prior is the accuracy of always predicting the most frequent class of the validation images.

    OMP_NUM_THREADS=1 python benchmarks/probe.py 'clothing/train-{000000..000009}.tar' clothing/validation-000000.tar

prints the table of docs/fine_tuning.md and writes benchmarks/results/probe.csv.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch

from patchnpack import FitTokens, PackedImageLoader, Packing
from patchnpack.loaders import Index, open_index
from patchnpack.models import NaViT, NaViTConfig
from patchnpack.predict import features
from patchnpack.probe import fit_probe
from patchnpack.scores import Scores, scores
from patchnpack.trainer import TrainConfig, train

PACKING = Packing(seq_len=512, resolution=FitTokens(36))
RESULTS = Path(__file__).parent / "results"


def split_classes(seed: int, num_classes: int) -> set[int]:
    """Draw the half of the classes that the probe sees."""
    return set(np.random.default_rng(seed).permutation(num_classes)[: num_classes // 2].tolist())


def loader(index: Index, classes: set[int], numbers: dict[str | None, int], **options: Any) -> PackedImageLoader:
    """A loader of the images of some classes, whose labels are the numbers of those classes."""
    names = [numbers[text] for text in index.cls.listed(np.arange(len(index)))]
    wanted = np.isin(names, list(classes))
    return PackedImageLoader(index, PACKING, label="cls", batch_size=1, where=lambda _: wanted, **options)


def arrays(model: NaViT, images: PackedImageLoader, classes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, D), and labels (N,) as places in `classes`."""
    table = features(model, images, labels=True)
    labels = np.searchsorted(classes, table["label"].to_numpy())
    return np.array(table["feature"].to_pylist(), np.float32), labels


def probe(
    model: NaViT, training: PackedImageLoader, held_out: PackedImageLoader, classes: set[int], seed: int
) -> Scores:
    """Fit a head on the training images, and score it on the others."""
    ordered = sorted(classes)
    weight, bias, _ = fit_probe(*arrays(model, training, ordered), len(ordered), seed=seed)
    inputs, labels = arrays(model, held_out, ordered)
    return scores(labels, inputs @ weight.numpy().T + bias.numpy())


def main(arguments: list[str] | None = None) -> None:
    """Run all seeds, print the table and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards")
    parser.add_argument("validation")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "probe.csv")
    given = parser.parse_args(arguments)
    indexes = [open_index(source) for source in (given.shards, given.validation)]
    texts = sorted({text for text in indexes[0].cls.listed(np.arange(len(indexes[0]))) if text is not None})
    numbers: dict[str | None, int] = {text: int(text) for text in texts}
    rows: list[dict[str, Any]] = []
    for seed in range(given.seeds):
        seen = split_classes(seed, len(numbers))
        rest = set(numbers.values()) - seen
        training, held_out = (loader(index, seen, numbers) for index in indexes)
        torch.manual_seed(seed)
        model = NaViT(NaViTConfig(num_classes=len(numbers), width=given.width, depth=given.depth)).eval()
        found = {"random": probe(model, training, held_out, seen, seed)}
        others = loader(indexes[0], rest, numbers, shuffle=True, seed=seed)
        config = TrainConfig(epochs=given.epochs, lr=5e-4, seed=seed, eval_every=given.epochs)
        trained = train(model, others, config=config).model
        found["other classes"] = probe(trained, training, held_out, seen, seed)
        for backbone, score in found.items():
            row: dict[str, Any] = {"backbone": backbone, "seed": seed, "classes": len(seen), "images": score.images}
            row |= {"prior": score.prior, "accuracy": score.accuracy, "macro_f1": score.macro_f1}
            rows.append(row)
            print(*(f"{value:.3f}" if isinstance(value, float) else value for value in row.values()), flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with given.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for backbone in dict.fromkeys(row["backbone"] for row in rows):
        margins = [row["accuracy"] - row["prior"] for row in rows if row["backbone"] == backbone]
        spread = f" ± {np.std(margins, ddof=1):.3f}" if len(margins) > 1 else ""
        print(f"{backbone}: above the prior by {np.mean(margins):.3f}{spread}")


if __name__ == "__main__":
    main()
