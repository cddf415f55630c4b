"""Draw images, report on them, draw packs, and train at native aspect and on squares.

    python examples/demo.py [--folder demo] [--epochs 10] [--images 480]

Draws 600 images of shapes whose class only the true aspect ratio reveals, then runs the same commands that you would.
It takes minutes on two quiet cores; if other work runs on them, set OMP_NUM_THREADS=1. It ends with a validation
accuracy of at least 0.95 at native aspect ratio and around 0.6 on squares, where no model can do better (shapes.py
explains why). The folder then holds the shards, packs.png, and a checkpoint of each model.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from patchnpack.cli.main import app

sys.path.insert(0, str(Path(__file__).parent))
from shapes import draw_shapes

TRAIN, VALIDATION = "train-*.tar", "validation-*.tar"


def patchnpack(*arguments: str) -> None:
    """Print a command and run it."""
    print(f"\n$ patchnpack {shlex.join(arguments)}", flush=True)
    app(arguments, standalone_mode=False)


def hint_if_busy(load: float, cpus: int, threads: str | None) -> str:
    """Return a hint for a machine on which other work would slow threads that wait for each other, or "".

    Args:
        load: processes that ran or waited for a CPU in the last minute, on average.
        cpus: CPUs of the machine.
        threads: OMP_NUM_THREADS, or None if it is not set.
    """
    if threads is not None or load <= cpus / 2:
        return ""
    return f"Other work uses this machine (load {load:.1f} on {cpus} CPUs): if training is slow, set OMP_NUM_THREADS=1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("demo"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument(
        "--images", type=int, default=480, help="training images; a quarter as many are drawn for validation"
    )
    options = parser.parse_args()
    folder: Path = options.folder

    hint = hint_if_busy(os.getloadavg()[0], os.cpu_count() or 1, os.environ.get("OMP_NUM_THREADS"))
    if hint:
        print(hint)
    held_out = options.images // 4
    print(f"Drawing {options.images + held_out} images into {folder}/")
    draw_shapes(folder, options.images, held_out)
    train, validation, classes = (str(folder / name) for name in (TRAIN, VALIDATION, "classes.txt"))
    patchnpack("report", train, "--seq-len", "1024")
    picture = str(folder / "packs.png")
    patchnpack(
        "show",
        train,
        "--seq-len",
        "384",
        "--resolution",
        "native:resize",
        "--label",
        "cls",
        "--classes",
        classes,
        "--out",
        picture,
    )
    model = ["--width", "96", "--depth", "3", "--heads", "3", "--epochs", str(options.epochs), "--eval-every", "2"]
    data = [train, "--validation", validation, "--seq-len", "576", "--batch-size", "1"]
    for name, resolution in (("native", "native"), ("square", "square:160")):
        patchnpack("train", *data, "--resolution", resolution, *model, "--out", str(folder / name))
    print(
        f"\nLook at {picture}. The class is the aspect ratio of the shape: squares lose it, native aspect keeps it.\n"
        "Next, report on your own shards: patchnpack report 'SHARDS' --seq-len 4096"
    )


if __name__ == "__main__":
    main()
