from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from patchnpack.trainer import load_checkpoint
from tests.patchnpack.cli.runs import CPU, ran

Shards = Callable[..., str]


def test_eval_writes_each_image_once_with_its_logits(shards: Shards, tmp_path: Path, run: Path) -> None:
    out = tmp_path / "predictions.parquet"
    printed = ran("eval", run, shards("v.tar", images=20, broken=2), "-o", out, "--device=cpu", "--precision=float32")
    table = pq.read_table(out)
    assert table.column_names == ["key", "row", "label", "prediction", "logits"]
    assert table["row"].to_pylist() == list(range(2, 20)), "bad images are excluded"
    assert table["key"].to_pylist() == [f"{i:03d}" for i in range(2, 20)]
    assert table["label"].to_pylist() == [i % 2 for i in range(2, 20)]
    logits = torch.tensor(table["logits"].to_pylist())
    assert logits.shape == (18, 2)
    assert logits.argmax(-1).tolist() == table["prediction"].to_pylist()
    hits = sum(x == y for x, y in zip(table["label"].to_pylist(), table["prediction"].to_pylist(), strict=True))
    assert f"accuracy: {hits / 18:.4f} on 18 labelled images" in printed
    assert "18 images, 2 bad images" in printed
    one_bad = ran("eval", run, shards("w.tar", images=2, broken=1), "-o", out, "--device=cpu")
    assert "1 image, 1 bad image, 0 skipped" in one_bad
    assert re.search(r"accuracy: [01]\.0000 on 1 labelled image\n", one_bad)


def test_features_are_the_input_of_the_head(shards: Shards, tmp_path: Path, run: Path) -> None:
    out = tmp_path / "features.parquet"
    flags = ["--device=cpu", "--precision=float32"]
    ran("features", run, shards("v.tar"), "-o", out, *flags)
    ran("eval", run, shards("v.tar"), "-o", tmp_path / "p.parquet", *flags)
    table, logits = pq.read_table(out), torch.tensor(pq.read_table(tmp_path / "p.parquet")["logits"].to_pylist())
    assert table.column_names == ["key", "row", "feature"]
    features = torch.tensor(table["feature"].to_pylist())
    head = load_checkpoint(run).model.head
    assert isinstance(head, torch.nn.Linear)
    torch.testing.assert_close(
        torch.nn.functional.linear(features, head.weight, head.bias), logits, rtol=1e-4, atol=1e-5
    )


def test_eval_defaults_to_the_packing_of_the_run(shards: Shards, tmp_path: Path, run: Path) -> None:
    v, outs = shards("v.tar"), [tmp_path / f"{i}.parquet" for i in range(3)]
    flags = ["--device=cpu", "--precision=float32"]
    ran("eval", run, v, "-o", outs[0], *flags)
    ran("eval", run, v, "-o", outs[1], *flags, "--resolution=native:resize", "--seq-len=64")
    ran("eval", run, v, "-o", outs[2], *flags, "--resolution=fit:4")
    default, explicit, other = (pq.read_table(out)["logits"].to_pylist() for out in outs)
    assert default == explicit
    assert default != other


def test_eval_prints_and_writes_the_scores_of_each_class(shards: Shards, tmp_path: Path, run: Path) -> None:
    path = tmp_path / "metrics.json"
    printed = ran("eval", run, shards("v.tar"), "-o", tmp_path / "p.parquet", "--metrics", path, *CPU)
    content = json.loads(path.read_text())
    assert content["images"] == 24
    assert [(row["name"], row["images"]) for row in content["classes"]] == [("0", 12), ("1", 12)]
    assert f"macro F1: {content['macro_f1']:.4f}" in printed
    assert "precision" in printed
    assert content["prior"] == 0.5
    with pytest.raises(ValueError, match=r"metrics is .*, but no image has a label"):
        ran("eval", run, shards("v.tar"), "-o", tmp_path / "p.parquet", "--metrics", path, "--label=", *CPU)
    with pytest.raises(ValueError, match=r"--metrics is .* must end in \.json"):
        ran("eval", run, shards("v.tar"), "-o", tmp_path / "p.parquet", "--metrics", tmp_path / "m.csv")


def test_features_have_labels_only_if_asked(shards: Shards, tmp_path: Path, run: Path) -> None:
    out = tmp_path / "features.parquet"
    ran("features", run, shards("v.tar"), "-o", out, "--label=cls", *CPU)
    assert pq.read_table(out)["label"].to_pylist() == [i % 2 for i in range(24)]


def test_sweep_reports_accuracy_and_tokens_per_resolution(shards: Shards, tmp_path: Path, run: Path) -> None:
    out, plot = tmp_path / "sweep.csv", tmp_path / "sweep.png"
    printed = ran(
        "sweep", run, shards("v.tar"), "--resolutions=fit:4,fit:16", "-o", out, "--plot", plot, "--device=cpu"
    )
    lines = [line.split(",") for line in out.read_text().splitlines()]
    assert [line[:2] for line in lines] == [["patch_size", "resolution"], ["8", "fit:4"], ["8", "fit:16"]]
    tokens = [float(line[2]) for line in lines[1:]]
    assert 2 < tokens[0] <= 4 < tokens[1] <= 16
    assert "tokens per image" in printed
    with Image.open(plot) as picture:
        assert picture.width == 900


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        ("eval", ["-o", "p.csv"], r"--out is 'p\.csv'; it must end in \.parquet"),
        ("eval", ["--resolution=crop:16"], r"which draws sizes; use one that does not"),
        ("eval", ["--patch-size=8,16"], r"evaluate one, or compare several with `patchnpack sweep`"),
        ("features", ["-o", "p.csv"], r"must end in \.parquet"),
        ("sweep", ["-o", "s.txt"], r"must end in \.csv"),
        ("sweep", ["--plot", "s.pdf"], r"must end in \.png"),
    ],
)
def test_invalid_evaluation_options_raise(
    command: str, flags: list[str], message: str, shards: Shards, run: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        ran(command, run, shards("v.tar"), *flags)
