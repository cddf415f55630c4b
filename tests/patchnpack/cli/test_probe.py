from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from patchnpack.trainer import load_checkpoint
from tests.patchnpack.cli.test_training import SMALL, ran, run

__all__ = ["run"]

Shards = Callable[..., str]
CPU = ["--device=cpu", "--precision=float32"]


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


def test_a_run_for_timm_is_refused_where_it_could_not_be_exported(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["train", shards(), *SMALL, "--epochs=1", "--for=timm", "-o", tmp_path / "run"]
    with pytest.raises(ValueError, match=r"norm_eps is 1e-05, and that of timm's models is 1e-06"):
        ran(*common)
    with pytest.raises(ValueError, match=r"position is 'absolute' .* which timm's naflexvit does not have"):
        ran(*common, "--model=norm_eps=1e-6")
    with pytest.raises(ValueError, match=r"the format is 'keras'; choose 'timm', 'big_vision' or 'onnx'"):
        ran(*common[:-3], "--for=keras", "-o", tmp_path / "run")
    assert not (tmp_path / "run" / "run.toml").exists()
    ran(*common, "--model=norm_eps=1e-6", "--position=grid")
    exported = tmp_path / "exported" / "model.safetensors"
    printed = ran("export", tmp_path / "run", "-o", exported, "--format=timm")
    assert f"wrote {exported} and {exported.parent / 'config.json'}" in printed
    monkeypatch.setattr("patchnpack.weights.export.to_onnx", lambda model: f"{model.config.width}".encode())
    printed = ran("export", tmp_path / "run", "-o", tmp_path / "new" / "model.onnx", "--format=onnx")
    assert f"wrote {tmp_path / 'new' / 'model.onnx'}" in printed
    assert (tmp_path / "new" / "model.onnx").read_bytes() == b"24"
    with pytest.raises(ValueError, match=r"for onnx it must end in \.onnx"):
        ran("export", tmp_path / "run", "-o", tmp_path / "model.pth", "--format=onnx")
    tables = []
    for number, weights in enumerate((tmp_path / "run", exported)):
        ran("eval", weights, shards("v.tar"), "-o", tmp_path / f"{number}.parquet", "--seq-len=64", *CPU)
        tables.append(pq.read_table(tmp_path / f"{number}.parquet"))
    assert tables[0]["logits"].to_pylist() == tables[1]["logits"].to_pylist()


def test_a_frozen_backbone_stays_and_class_weights_are_part_of_the_run(
    shards: Shards, tmp_path: Path, run: Path
) -> None:
    weights, out = tmp_path / "weights.txt", tmp_path / "tuned"
    weights.write_text("0 1.5\n1 0.5\n")
    common = [
        "train",
        shards(),
        *SMALL[3:],
        "--init",
        run,
        "--epochs=1",
        "--lr=0.1",
        "--resolution=native:resize",
        "-o",
        out,
    ]
    ran(*common, "--freeze=backbone", "--class-weights", weights)
    before, after = (load_checkpoint(path).model.state_dict() for path in (run, out / "checkpoint.pt"))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["head.weight", "head.bias"]
    with pytest.raises(ValueError, match=r"the objective's class_weights \(1\.5, 0\.5\), but this run has None"):
        ran(*common, "--freeze=backbone")
    with pytest.raises(ValueError, match=r"freeze is 2, but the model has 1 blocks; give at most 1, or 'backbone'"):
        ran(*common[:-1], tmp_path / "other", "--freeze=2")
    with pytest.raises(ValueError, match=r"freeze is 'head'; give a number of blocks, at least 0, or 'backbone'"):
        ran(*common[:-1], tmp_path / "other", "--freeze=head")


@pytest.mark.parametrize("store", ["patches", "images"])
def test_train_eval_and_show_take_packed_folders(store: str, shards: Shards, tmp_path: Path) -> None:
    packing = ["--seq-len=64", "--patch-size=8", "--resolution=fit:16"]
    for name in ("t", "v"):
        ran(
            "pack",
            shards(f"{name}.tar"),
            "-o",
            tmp_path / name,
            "--label=cls",
            *packing,
            "--workers=1",
            f"--store={store}",
        )
    model, out = SMALL[:3], tmp_path / "run"
    ran("train", tmp_path / "t", *model, "--validation", tmp_path / "v", "--epochs=1", "-o", out, *CPU)
    checkpoint = out / "checkpoint.pt"
    assert load_checkpoint(checkpoint).model.config.patch_size == 8
    assert load_checkpoint(checkpoint).metrics["images"] == 24
    ran("train", "--config", out / "run.toml", "-o", tmp_path / "again")
    losses = [load_checkpoint(path / "checkpoint.pt").state["losses"] for path in (out, tmp_path / "again")]
    assert torch.equal(*losses)
    outs = [tmp_path / f"{number}.parquet" for number in range(2)]
    for source, path in zip((tmp_path / "v", shards("v.tar")), outs, strict=True):
        assert "on 24 labelled images" in ran("eval", checkpoint, source, "-o", path, *CPU)
    logits = [torch.tensor(pq.read_table(path)["logits"].to_pylist()) for path in outs]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)
    ran("show", tmp_path / "t", "-o", tmp_path / "packs.png")
    with pytest.raises(ValueError, match=r"packing\.seq_len is 128, and the packs in .* were written with 64"):
        ran("train", tmp_path / "t", *model, "--seq-len=128", "--epochs=1", "-o", tmp_path / "other", *CPU)
    with pytest.raises(ValueError, match=r"root is 'x', which a packed folder was made with"):
        ran("eval", checkpoint, tmp_path / "v", "--root=x")


def test_packs_that_drop_tokens_are_not_evaluated(shards: Shards, tmp_path: Path, run: Path) -> None:
    packing = ["--seq-len=64", "--patch-size=8", "--token-drop=0.5", "--workers=1"]
    ran("pack", shards("t.tar"), "-o", tmp_path / "t", "--label=cls", *packing)
    with pytest.raises(ValueError, match=r"drop tokens or draw sizes, so their images are not whole; give the shards"):
        ran("eval", run, tmp_path / "t", *CPU)
