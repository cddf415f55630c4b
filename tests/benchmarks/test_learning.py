"""benchmarks/learning.py on a few pictures, and its control model without positions."""

from __future__ import annotations

import csv
import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from patchnpack import PackedImageLoader, Packing
from patchnpack.models import NaViT, NaViTConfig

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_every_position_is_measured_at_every_size_and_tables_refuse_larger_grids(tmp_path: Path) -> None:
    options = ["positions", "--images", "20", "--epochs", "1", "--seeds", "1", "--out", str(tmp_path)]
    script = [sys.executable, str(BENCHMARKS / "learning.py"), *options]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "learning_positions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len({(row["variant"], row["at"]) for row in rows}) == 3 * 11 * 6
    refused = {(row["variant"], row["at"]) for row in rows if row["value"] == "refuses"}
    tasks, combinations = ("place", "steps", "apart"), ("added", "stacked", "product")
    tables = [f"{task}: absolute, {combination}" for task in tasks for combination in combinations]
    assert refused == {(variant, "8x32, 32x8") for variant in tables}
    assert all(0 <= float(row["value"]) <= 1 for row in rows if row["value"] != "refuses")
    assert done.stdout.count("refuses |") == len(tables)


def test_control_is_invariant_to_patch_positions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    learning, marks = importlib.import_module("learning"), importlib.import_module("marks")
    shard = marks.draw_marks(tmp_path, "place", ((6, 6),), 7, (0,))
    loader = PackedImageLoader(shard, Packing(seq_len=256, patch_size=marks.PATCH), batch_size=1, label="cls")
    (batch,) = loader
    assert isinstance(batch.coords, torch.Tensor)
    order = torch.from_numpy(np.random.default_rng(0).permutation(36))
    coords = batch.coords.clone()
    for i in range(7):  # the images of a pack are contiguous
        coords[0, 36 * i : 36 * (i + 1)] = batch.coords[0, 36 * i : 36 * (i + 1)][order]
    moved = replace(batch, coords=coords)
    config = NaViTConfig(num_classes=9, **learning.SMALL)
    torch.manual_seed(0)
    model = NaViT(config).eval()
    control = learning.Unplaced(config).eval()
    control.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(control.features(moved).pooled, control.features(batch).pooled)
        assert not torch.allclose(model.features(moved).pooled, model.features(batch).pooled, atol=1e-2)
