"""Compare native aspect ratio with squares at equal tokens, model and epochs.

    python examples/native_vs_square.py TRAIN VALIDATION [--epochs 8] [--seeds 3] [--tokens 64] [--out FILE.csv]

The native runs fit each image into a number of tokens and keep its aspect ratio. The square runs resize it to a square
of the same number of tokens. Each runs with several seeds. Prints one line per run, then the means, and writes a CSV
with one line per run. On the shapes of `shapes.py`, native aspect ratio wins by far; docs/training.md has the figures
for photographs of clothing.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import tempfile
from pathlib import Path

from patchnpack import FitTokens, Packing, Square
from patchnpack.loaders import scan
from patchnpack.trainer import TrainConfig
from patchnpack.training import train_on_shards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("validation")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument(
        "--only", choices=["native", "square"], help="run only one of the two, for example to run both in parallel"
    )
    parser.add_argument("--out", type=Path, default=Path("native_vs_square.csv"))
    options = parser.parse_args()
    side = math.isqrt(options.tokens)
    if side**2 != options.tokens:
        parser.error(f"--tokens {options.tokens} is not a square number; use {side**2} or {(side + 1) ** 2}")

    train, validation = scan(options.train), scan(options.validation)
    resolutions: dict[str, FitTokens | Square] = {"native": FitTokens(options.tokens), "square": Square(16 * side)}
    if options.only:
        resolutions = {options.only: resolutions[options.only]}
    accuracies: dict[str, list[float]] = {name: [] for name in resolutions}
    rows = []
    for seed in range(options.seeds):
        for name, resolution in resolutions.items():
            packing = Packing(seq_len=1024, resolution=resolution, flip=0.5)
            config = TrainConfig(epochs=options.epochs, lr=options.lr, eval_every=options.epochs, seed=seed)
            with tempfile.TemporaryDirectory() as out:
                result = train_on_shards(
                    train,
                    validation,
                    packing,
                    config,
                    batch_size=1,
                    model={"width": options.width, "depth": options.depth, "heads": 3},
                    out=Path(out),
                )
            accuracies[name].append(result.metrics["accuracy"])
            last = result.history[-1]
            accuracy, minutes = accuracies[name][-1], last["minutes"]
            rows.append([name, seed, f"{accuracy:.4f}", f"{minutes:.2f}", f"{last['loss']:.4f}"])
            print(f"{name} seed {seed}: accuracy {accuracy:.3f} in {minutes:.1f} min", flush=True)
    for name, values in accuracies.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{name:8} mean {statistics.mean(values):.3f}, standard deviation {spread:.3f}, over {len(values)} seeds")
    with options.out.open("w", newline="") as file:
        csv.writer(file).writerows([["resolution", "seed", "accuracy", "minutes", "train_loss"], *rows])
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
