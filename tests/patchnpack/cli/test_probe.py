from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from patchnpack.trainer import load_checkpoint
from tests.patchnpack.cli.runs import CPU, ran

Shards = Callable[..., str]


def test_a_probe_fits_a_head_on_frozen_features(shards: Shards, tmp_path: Path, run: Path) -> None:
    out, held = tmp_path / "probe", shards("v.tar", images=20)
    printed = ran("probe", run, shards("t.tar"), "--validation", held, "-o", out, "--metrics", out / "m.json", *CPU)
    assert "fitted on 24 labelled images, 0 bad images, 0 skipped; l2 " in printed
    accuracy = float(re.findall(r"accuracy: ([\d.]+) on 20 labelled images", printed)[0])
    assert accuracy == 1.0, "grey levels are the classes"
    before, after = load_checkpoint(run).model, load_checkpoint(out / "checkpoint.pt").model
    for name, value in before.state_dict().items():
        assert torch.equal(value, after.state_dict()[name]) != name.startswith("head."), name
    assert json.loads((out / "m.json").read_text())["accuracy"] == 1.0
    ran("eval", out / "checkpoint.pt", held, "-o", tmp_path / "p.parquet", *CPU)
    table = pq.read_table(tmp_path / "p.parquet")
    assert table["label"].to_pylist() == table["prediction"].to_pylist()


def test_a_probe_takes_another_number_of_classes_and_class_weights(shards: Shards, tmp_path: Path, run: Path) -> None:
    ran("probe", run, shards("t.tar"), "--num-classes=4", "--class-weights=balanced", "--l2=0.1", "-o", tmp_path, *CPU)
    assert load_checkpoint(tmp_path / "checkpoint.pt").model.config.num_classes == 4
    with pytest.raises(ValueError, match=r"label 1 is not a class from 0 to 0"):
        ran("probe", run, shards("t.tar"), "--num-classes=1", "-o", tmp_path, *CPU)
