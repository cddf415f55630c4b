"""Measure the gain of each paper's idea against training without it.

The images are those of examples/shapes.py, 48 to 192 pixels a side, 960 to train on and 480 others to evaluate on. A
model of width 96 and depth 3 trains from scratch with several seeds, for the same number of steps in each variant of an
experiment. The default number of epochs is low because every model eventually learns the shapes; the experiments
compare how soon.

* patch_sizes: FlexiViT's figure (arXiv 2212.08013, section 3.3). One model trains at random patch sizes, and others
  train at one size. All are evaluated at every size, the latter with PI-resized patch embeddings.
* distillation: random patch sizes again, learning from labels or from a model of patch size 8 (section 3.5) whose
  weights initialise the student. A third run learns from labels with those weights, to separate the two effects.
* positions: every position embedding, and a model without positions, on pictures whose class only positions reveal
  (`marks.py`). Models train at 35 or 36 tokens, and are evaluated there, at up to seven times as many tokens, and at
  aspect ratios not seen in training (NaViT, arXiv 2307.06304, section 3.4). Width 64, depth 2. There are twice as many
  pictures as images, a tenth of that per size to evaluate on, and other pictures for each seed. For a quick look, run
  with `--images 120 --seeds 1 --epochs 1`.
* token_drop: half of the tokens dropped, at a rate drawn per image (section 3.3) or one that follows the image's bytes
  (`ComplexityDrop`), random tokens or those without detail, against no token drop. All train on equal numbers of packs,
  and so with equal compute, and are evaluated on whole images.

    python benchmarks/learning.py patch_sizes|distillation|positions|token_drop [--seeds 3] [--epochs 4]

Prints a table of means and standard deviations over seeds, and writes benchmarks/results/learning_*.csv with one line
per figure; patch_sizes also draws docs/images/patch_sizes.svg.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from patchnpack import BetaDrop, ComplexityDrop, PackedImageLoader, Packing, PatchSizes
from patchnpack.loaders import Index, scan
from patchnpack.models import NaViT, NaViTConfig
from patchnpack.trainer import Distillation, TrainConfig, evaluate, train

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import marks  # noqa: E402
import shapes  # noqa: E402

SIZES = (8, 12, 16, 24, 32, 48)
MODEL: dict[str, Any] = {"num_classes": 3, "width": 96, "depth": 3, "heads": 3}
SMALL: dict[str, Any] = {"width": 64, "depth": 2, "heads": 2, "patch_size": marks.PATCH, "max_grid": 16}
POSITIONS: dict[str, dict[str, Any]] = {
    "absolute, added": {"position": "absolute"},
    "absolute, stacked": {"position": "absolute", "position_combine": "stack"},
    "absolute, product": {"position": "absolute", "position_combine": "product"},
    "fractional, learned": {"position": "fractional"},
    "fractional, sinusoidal": {"position": "sinusoidal"},
    "fractional, Fourier": {"position": "fourier"},
    "grid, interpolated": {"position": "grid"},
    "grid, learned weights": {"position": "learned_grid"},
    "coordinate MLP": {"position": "mlp"},
    "axial RoPE": {"position": "rope"},
    "none": {"max_grid": 32},
}
MARKED: dict[
    str, tuple[marks.Grid, ...]
] = {  # grids for measuring positions; the first entry is also used for training
    "35 or 36 tokens": ((6, 6), (5, 7), (7, 5), (4, 9), (9, 4)),
    "8x8": ((8, 8),),
    "12x12": ((12, 12),),
    "16x16": ((16, 16),),
    "4x16, 16x4": ((4, 16), (16, 4)),
    "8x32, 32x8": ((8, 32), (32, 8)),
}

Row = dict[str, Any]
Found = tuple[str, dict[str, float | str], float]  # variant, accuracy (or "refuses") by place of measurement, minutes


@dataclass(frozen=True)
class Data:
    """The images and the number of training epochs."""

    train: Index
    validation: Index
    epochs: int

    def fit(self, packing: Packing, seed: int, model: NaViT | NaViTConfig, **options: Any) -> tuple[NaViT, float]:
        """Train a model; return it with the training time in minutes."""
        loader = PackedImageLoader(self.train, packing, batch_size=1, shuffle=True, seed=seed, label="cls")
        budget = {"steps": options.pop("steps")} if "steps" in options else {"epochs": self.epochs}
        config = TrainConfig(**budget, lr=1e-3, seed=seed, eval_every=10**6, log_every=1e9)
        began = time.perf_counter()
        result = train(model, loader, config=config, **options)
        return result.model, (time.perf_counter() - began) / 60

    def accuracy(self, model: NaViT, packing: Packing) -> float:
        loader = PackedImageLoader(self.validation, packing, batch_size=1, label="cls")
        return evaluate(model, loader)["accuracy"]

    def accuracy_or_refusal(self, model: NaViT, packing: Packing) -> float | str:
        """Return the accuracy, or "refuses" if grids are larger than the model's `max_grid`."""
        try:
            return self.accuracy(model, packing)
        except ValueError as error:
            if "max_grid" not in str(error):
                raise
            return "refuses"

    def at_each_size(self, model: NaViT) -> dict[str, float | str]:
        """Return the accuracy at each patch size."""
        return {f"patch {size}": self.accuracy(model, Packing(seq_len=576, patch_size=size)) for size in SIZES}


def patch_sizes(data: Data, seed: int) -> Iterator[Found]:
    for name, size in {"random": PatchSizes(SIZES), **{f"only {size}": size for size in (8, 16, 32)}}.items():
        steps = _steps(data, Packing(seq_len=576, patch_size=16))
        config = NaViTConfig(**MODEL, patch_size=32 if isinstance(size, PatchSizes) else size)
        model, minutes = data.fit(Packing(seq_len=576, patch_size=size), seed, config, steps=steps)
        yield name, data.at_each_size(model), minutes


def distillation(data: Data, seed: int) -> Iterator[Found]:
    steps = _steps(data, Packing(seq_len=576, patch_size=16))
    small = Packing(seq_len=576, patch_size=8)
    teacher, minutes = data.fit(small, 100 + seed, NaViTConfig(**MODEL, patch_size=8), steps=10 * steps)
    yield "teacher", data.at_each_size(teacher), minutes
    flexible = Packing(seq_len=576, patch_size=PatchSizes(SIZES))
    for name, start, objective in (
        ("labels", None, None),
        ("labels, from the teacher's weights", teacher, None),
        ("distilled, from the teacher's weights", teacher, Distillation(teacher)),
    ):
        student: NaViT | NaViTConfig = NaViTConfig(**MODEL, patch_size=8)
        if start is not None:
            student = NaViT(start.config)
            student.load_state_dict(start.state_dict())
        model, minutes = data.fit(flexible, seed, student, steps=steps, objective=objective)
        yield name, data.at_each_size(model), minutes


class Unplaced(NaViT):
    """A NaViT without position information: every patch has coordinates (0, 0)."""

    def encode(self, patches: Any, coords: torch.Tensor, *others: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return super().encode(patches, torch.zeros_like(coords), *others)


def positions(data: Data, seed: int) -> Iterator[Found]:
    packing, images = Packing(seq_len=256, patch_size=marks.PATCH), 2 * len(data.train)
    for part, (task, classes) in enumerate(marks.CLASSES.items()):
        with tempfile.TemporaryDirectory() as folder:
            grid_sets = [next(iter(MARKED.values())), *MARKED.values()]
            counts = [images, *[images // 10] * len(MARKED)]
            indexes = [
                scan(marks.draw_marks(Path(folder), task, grids, count, (seed, part, i)))
                for i, (grids, count) in enumerate(zip(grid_sets, counts, strict=True))
            ]
            training = replace(data, train=indexes[0])
            sizes = {at: replace(data, validation=index) for at, index in zip(MARKED, indexes[1:], strict=True)}
            for name, options in POSITIONS.items():
                config = NaViTConfig(num_classes=classes, **{**SMALL, **options})
                torch.manual_seed(seed)
                start = Unplaced(config) if name == "none" else NaViT(config)
                model, minutes = training.fit(packing, seed, start)
                yield f"{task}: {name}", {at: sizes[at].accuracy_or_refusal(model, packing) for at in sizes}, minutes


def token_drop(data: Data, seed: int) -> Iterator[Found]:
    whole = Packing(seq_len=256, patch_size=16)
    dropped = whole.replace(token_drop=BetaDrop(mean=0.5, max=0.8))
    index = data.train
    simple, detailed = np.quantile(index.nbytes / (index.width.astype(float) * index.height), [0.05, 0.95]).tolist()
    follows = whole.replace(token_drop=ComplexityDrop(0.2, 0.8, simple, detailed))  # a mean rate of about a half
    steps = _steps(data, whole)
    packings = {
        "none": whole,
        "half, undrop": dropped,
        "half, none given back": dropped.replace(fill="none"),
        "half, most detail": dropped.replace(select="detail"),
        "by bytes, undrop": follows,
        "by bytes, most detail": follows.replace(select="detail"),
    }
    for name, packing in packings.items():
        model, minutes = data.fit(packing, seed, NaViTConfig(**MODEL), steps=steps)
        epochs = steps / _steps(replace(data, epochs=1), packing)
        yield name, {"whole images": data.accuracy(model, whole), "epochs": epochs}, minutes


def _steps(data: Data, packing: Packing) -> int:
    return PackedImageLoader(data.train, packing, batch_size=1, shuffle=True, label="cls").total_steps(data.epochs)


EXPERIMENTS: dict[
    str, tuple[Callable[[Data, int], Iterator[Found]], int]
] = {  # the function and its default number of epochs
    "patch_sizes": (patch_sizes, 4),
    "distillation": (distillation, 1),
    "positions": (positions, 3),
    "token_drop": (token_drop, 1),
}


def draw(rows: list[Row], path: Path) -> None:
    """Plot accuracy over patch size with a line per variant: the mean, and a band from minimum to maximum."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "patchnpack"
    figure = Figure(figsize=(6.5, 3.8), layout="constrained")
    axes = figure.subplots()
    for variant in dict.fromkeys(row["variant"] for row in rows):
        found = [
            [row["value"] for row in rows if row["variant"] == variant and row["at"] == f"patch {s}"] for s in SIZES
        ]
        name = "trained at random patch sizes" if variant == "random" else f"trained at {variant.split()[-1]}"
        (line,) = axes.plot(SIZES, [statistics.mean(values) for values in found], marker="o", label=name)
        axes.fill_between(SIZES, [min(v) for v in found], [max(v) for v in found], color=line.get_color(), alpha=0.15)
    axes.set(xscale="log", xlabel="patch size at evaluation", ylabel="validation accuracy", ylim=(0.3, 1.02))
    axes.set_xticks(SIZES, [str(size) for size in SIZES])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, metadata={"Date": None})


def print_table(rows: list[Row]) -> None:
    """Print one line per variant and one column per place of measurement: mean and standard deviation over seeds."""
    places = list(dict.fromkeys(row["at"] for row in rows))
    print("| variant | " + " | ".join(places) + " | minutes |")
    print("|---|" + "---|" * (len(places) + 1))
    for variant in dict.fromkeys(row["variant"] for row in rows):
        variant_rows = [row for row in rows if row["variant"] == variant]
        cells = []
        for place in places:
            values = [row["value"] for row in variant_rows if row["at"] == place]
            if "refuses" in values:
                cells.append("refuses")
                continue
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        print(
            f"| {variant} | "
            + " | ".join(cells)
            + f" | {statistics.mean(row['minutes'] for row in variant_rows):.1f} |"
        )


def write(rows: list[Row], details: Row, path: Path) -> None:
    """Write all rows so far; called after each variant, so that an interrupted run keeps its results."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *details])
        writer.writeheader()
        writer.writerows({**row, **details} for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="*", help=f"any of {', '.join(EXPERIMENTS)}; default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="default: as few as show a difference")
    parser.add_argument("--images", type=int, default=960)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    if unknown := set(options.experiment) - set(EXPERIMENTS):
        parser.error(f"{unknown.pop()!r} is not an experiment; choose from {', '.join(EXPERIMENTS)}")
    torch.set_num_threads(1)
    details = {
        "images": options.images,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, 1 thread",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
        "command": f"python {shlex.join(sys.argv)}",
        "date": str(datetime.date.today()),
    }
    print("\n".join(f"{name:9}{value}" for name, value in details.items()))
    shapes.MAX_SIDE = 192
    with tempfile.TemporaryDirectory() as folder:
        shapes.draw_shapes(folder, options.images, options.images // 2)
        training, validation = (scan(f"{folder}/{split}-*.tar") for split in ("train", "validation"))
        for experiment in options.experiment or EXPERIMENTS:
            run, epochs = EXPERIMENTS[experiment]
            data = Data(training, validation, options.epochs or epochs)
            rows: list[Row] = []
            for seed in range(options.seeds):
                for variant, found, minutes in run(data, seed):
                    for at, value in found.items():
                        rows.append(
                            {"variant": variant, "seed": seed, "epochs": data.epochs, "at": at, "value": value}
                            | {"minutes": minutes}
                        )
                    shown = ", ".join(f"{at} {v if isinstance(v, str) else f'{v:.3f}'}" for at, v in found.items())
                    print(f"{experiment}, {variant}, seed {seed}: {shown} ({minutes:.1f} min)", flush=True)
                    write(rows, details, options.out / f"learning_{experiment}.csv")
            print_table(rows)
            if experiment == "patch_sizes" and options.out == ROOT / "benchmarks" / "results":
                draw(rows, ROOT / "docs" / "images" / "patch_sizes.svg")


if __name__ == "__main__":
    main()
