"""`--init`, and commands that read a checkpoint, on weights of each library."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file

from patchnpack.models import NaViT, NaViTConfig
from patchnpack.trainer import load_checkpoint
from patchnpack.weights import open_model, to_big_vision
from tests.patchnpack.cli.runs import ran
from tests.timm_folders import write_timm_folders

Shards = Callable[..., str]
GOLDEN = Path(__file__).resolve().parents[2] / "golden"
FLAGS = ["--seq-len=64", "--device=cpu", "--precision=float32", "--resolution=fit:16"]


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, tuple[Path, list[str]]]:
    """Weights of each library, and the flags for what they do not show."""
    write_timm_folders(tmp_path)
    config = NaViTConfig(num_classes=7, width=24, depth=1, position="grid", gelu="tanh", norm_eps=1e-6, qk_norm=False)
    np.savez(tmp_path / "big_vision.npz", **to_big_vision(NaViT(config)))  # type: ignore[arg-type]
    hub = tmp_path / "siglip2"
    hub.mkdir()
    with np.load(GOLDEN / "transformers_Siglip2ForImageClassification.npz") as arrays:
        save_file({key[3:]: arrays[key] for key in arrays.files if key.startswith("sd/")}, hub / "model.safetensors")
        (hub / "config.json").write_text(str(arrays["config"]))
    return {
        "naflex": (tmp_path / "naflex", []),
        "vit": (tmp_path / "vit" / "model.safetensors", ["--model=heads=3"]),
        "big_vision": (tmp_path / "big_vision.npz", []),
        "transformers": (hub, []),
    }


@pytest.mark.parametrize("library", ["naflex", "vit", "big_vision", "transformers"])
def test_training_starts_from_weights_of_each_library(
    library: str, weights: dict[str, tuple[Path, list[str]]], shards: Shards, tmp_path: Path
) -> None:
    path, flags = weights[library]
    patch = [f"--patch-size={8 if library == 'transformers' else 16}"]
    given = [*FLAGS, *flags, *patch, "--model=drop_path=0.1", "--init", path]
    ran("train", shards(), *given, "--steps=1", "--lr=1e-12", "-o", tmp_path / "run")
    old = open_model(path, {"heads": 3} if flags else {})
    new = load_checkpoint(tmp_path / "run" / "checkpoint.pt").model
    assert (old.config.num_classes, new.config.num_classes, new.config.drop_path) == (7, 2, 0.1)
    for name, value in old.state_dict().items():
        if not name.startswith("head."):
            torch.testing.assert_close(new.state_dict()[name], value, rtol=0, atol=1e-6)
    content = tomllib.loads((tmp_path / "run" / "run.toml").read_text())
    assert "depth" not in content, "the weights decide it"
    assert content.get("heads") == (3 if flags else None)
    assert content["drop_path"] == 0.1
    ran("train", "--config", tmp_path / "run" / "run.toml", "-o", tmp_path / "again")
    losses = [load_checkpoint(tmp_path / name / "checkpoint.pt").state["losses"] for name in ("run", "again")]
    assert torch.equal(*losses)


def test_weights_are_evaluated_as_they_are(
    weights: dict[str, tuple[Path, list[str]]], shards: Shards, tmp_path: Path
) -> None:
    path, flags = weights["vit"]
    printed = ran("eval", path, shards(), *FLAGS, *flags, "-o", tmp_path / "p.parquet")
    assert "top-5 accuracy: " in printed
    assert len(pq.read_table(tmp_path / "p.parquet")["logits"][0]) == 7
    ran("features", path.parent, shards(), *FLAGS, *flags, "-o", tmp_path / "f.parquet")
    assert len(pq.read_table(tmp_path / "f.parquet")["feature"][0]) == 48


def test_fields_that_contradict_the_weights_and_missing_ones_raise(
    weights: dict[str, tuple[Path, list[str]]], shards: Shards, tmp_path: Path
) -> None:
    path, flags = weights["vit"]
    common = ["train", shards(), *FLAGS, "--steps=1", "-o", tmp_path / "run"]
    for extra, message in (
        ([], r"do not determine the number of heads; give heads"),
        ([*flags, "--depth=5"], r"depth is 5, but .* has 2; leave it out, or give other weights"),
        ([*flags, "--model=registers=3"], r"registers is 3, but .* has 0; leave it out"),
    ):
        with pytest.raises(ValueError, match=message):
            ran(*common, "--init", path, *extra)
    about = json.loads((path.parent / "config.json").read_text())
    (path.parent / "config.json").write_text(json.dumps(about | {"architecture": "vit_base_patch16_quickgelu_224"}))
    with pytest.raises(ValueError, match=r"config\.json|timm_config"):
        ran(*common, "--init", path, *flags)
    assert not (tmp_path / "run").exists()
