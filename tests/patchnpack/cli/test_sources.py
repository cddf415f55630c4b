"""Packed folders in place of shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from patchnpack.trainer import load_checkpoint
from tests.patchnpack.cli.runs import CPU, SMALL, ran

Shards = Callable[..., str]


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


@pytest.mark.parametrize("flag", ["--token-drop=0.5", "--flip=0.5"])
def test_packs_that_drop_tokens_or_mirror_are_not_evaluated(
    flag: str, shards: Shards, tmp_path: Path, run: Path
) -> None:
    packing = ["--seq-len=64", "--patch-size=8", flag, "--workers=1"]
    ran("pack", shards("t.tar"), "-o", tmp_path / "t", "--label=cls", *packing)
    with pytest.raises(ValueError, match=r"drop tokens, draw sizes or mirror images, so .*; give the shards"):
        ran("eval", run, tmp_path / "t", *CPU)
