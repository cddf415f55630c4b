"""examples/segment.py: its masks match the shapes, and it runs as its docstring says."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from patchnpack import PackedImageLoader, Packing
from patchnpack.models import NaViT, NaViTConfig
from patchnpack.trainer import save_checkpoint

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
# With PYTHONSAFEPATH set, a script does not find shapes.py next to it.
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(EXAMPLES), os.environ.get("PYTHONPATH")]))}


@pytest.fixture
def segment(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "shapes", raising=False)
    spec = importlib.util.spec_from_file_location("segment", EXAMPLES / "segment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("shapes", None)  # other tests expect larger images


def test_shape_patches_are_brighter_than_background_patches(segment, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    segment.shapes.draw_shapes(tmp_path, 6, 6)
    model = NaViT(NaViTConfig(num_classes=3, width=24, depth=1, heads=1, patch_size=8)).eval()
    for split in ("train", "validation"):
        packing = Packing(seq_len=576, patch_size=8)
        loader = PackedImageLoader(f"{tmp_path}/{split}-*.tar", packing, batch_size=1, label="cls")
        images = list(segment.maps(model, loader))
        assert len(images) == 6
        for pixels, vectors, known in images:
            assert pixels.shape == (8 * known.shape[0], 8 * known.shape[1], 3)
            assert vectors["features"].shape == (*known.shape, 24)
            assert len(set(known[known > 0].tolist())) == 1  # one class per image
            light = vectors["pixels"].mean(-1)
            # Shapes have a mean colour above 180, backgrounds below 110, and patches on the edge lie between.
            assert light[known > 0].min() > light[known == 0].median()
            assert light[known > 0].median() > light[known == 0].max() - 60
            assert ((light > 150) == (known > 0)).float().mean() > 0.95


def test_linear_head_fits_linearly_separable_classes(segment) -> None:  # type: ignore[no-untyped-def]
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) * 40 + 700
    y = (x[:, 0] > 700).long() + 2 * (x[:, 1] > 700).long()
    head = segment.fit(x, y)
    assert (head(x).argmax(1) == y).float().mean() > 0.97


@pytest.mark.parametrize("checkpoint", [False, True])
def test_script_prints_its_table_and_writes_its_picture(checkpoint: bool, tmp_path: Path) -> None:
    script = [sys.executable, str(EXAMPLES / "segment.py"), "--images", "12"]
    if checkpoint:
        model = NaViT(NaViTConfig(num_classes=3, width=24, depth=1, heads=1, patch_size=8))
        save_checkpoint(tmp_path / "model.pt", model)
        script += ["--checkpoint", str(tmp_path / "model.pt")]
    picture = tmp_path / "segment.png"
    done = subprocess.run(
        [*script, "--picture", str(picture)], check=True, capture_output=True, text=True, env=ENVIRONMENT
    )
    lines = done.stdout.splitlines()
    assert lines[-5].startswith("accuracy of the model on held-out images: ")
    assert [line.split("  ")[0] for line in lines[-3:]] == [
        "shape everywhere",
        "linear layer on pixels",
        "linear layer on features",
    ]
    assert all(0 <= float(value) <= 1 for line in lines[-2:] for value in line.split()[-2:])
    assert np.asarray(Image.open(picture)).shape == (400, 600, 3)
