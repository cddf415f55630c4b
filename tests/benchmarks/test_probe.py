"""benchmarks/probe.py on drawn pictures: with each of three seeds the probe beats the prior."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
from webdataset import ShardWriter

from tests.images import encode_image

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
MARGIN = 0.3


def test_a_probe_on_frozen_features_beats_the_prior_with_every_seed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, images in (("train", 48), ("validation", 24)):
        with ShardWriter(f"{tmp_path}/{name}-%06d.tar", verbose=0, encoder=False) as sink:
            for i in range(images):
                pixels = rng.normal(50 + 50 * (i % 4), 20, (*rng.integers(32, 65, 2), 3)).clip(0, 255).astype(np.uint8)
                data = encode_image(pixels, "PNG")
                sink.write({"__key__": f"{i:03d}", "png": data, "cls": str(i % 4).encode()})
    shards = [str(tmp_path / f"{name}-000000.tar") for name in ("train", "validation")]
    options = ["--width=24", "--depth=1", "--epochs=1", "--out", str(tmp_path / "probe.csv")]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "probe.py"), *shards, *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with (tmp_path / "probe.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["backbone"], row["seed"]) for row in rows] == [
        (backbone, str(seed)) for seed in range(3) for backbone in ("random", "other classes")
    ]
    assert all(float(row["accuracy"]) > float(row["prior"]) + MARGIN for row in rows), rows
    assert done.stdout.count("above the prior by") == 2
