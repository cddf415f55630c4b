"""examples/segment.py: predictions lie on the pixels of the source, and the script learns masks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from patchnpack import FitTokens, Mask, Native, PackedImageLoader, Packing, RandomResizedCrop, Square
from patchnpack.models import NaViT, NaViTConfig
from tests.examples.scripts import ENVIRONMENT, EXAMPLES, load_script

CONFIG = NaViTConfig(num_classes=0, width=24, depth=1, heads=1, patch_size=16, pooling="mean")


@pytest.fixture
def segment(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_script("segment", monkeypatch)


def masks(files: Path, resolution: Any, **choices: Any) -> PackedImageLoader:
    packing = Packing(seq_len=256, patch_size=16, resolution=resolution, **choices)
    targets, extras = {"mask": Mask("seg.png")}, ("jpg", "seg.png")
    return PackedImageLoader(f"{files}/train-*.tar", packing, batch_size=2, targets=targets, extras=extras)


@pytest.mark.parametrize(
    ("resolution", "least"),
    [(Native(), 1.0), (FitTokens(36), 0.85), (Square(144), 0.85)],
    ids=["native", "fit", "square"],
)
def test_the_masks_of_a_batch_laid_over_the_sources_are_the_masks_there(
    segment: ModuleType, tmp_path: Path, resolution: Any, least: float
) -> None:
    class Known(segment.Segmentation):  # type: ignore[misc, name-defined]
        def logits(self, model: NaViT, batch: Any) -> torch.Tensor:
            known = batch.targets["mask"].flatten(0, 1)[batch.token_index].long()
            return torch.nn.functional.one_hot(known.where(known < 4, 0), 4)

    segment.scenes.draw_scenes(tmp_path, 12, 1)
    loader = masks(tmp_path, resolution, flip=0.5, vflip=0.5)
    each, shown = segment.evaluate(NaViT(CONFIG), Known(CONFIG), loader)
    assert min(each) >= least
    assert len(shown) == 8
    assert all(picture.shape[:2] == found.shape for picture, found in shown)


def test_the_loss_is_the_mean_over_pixels_that_are_not_padding(segment: ModuleType, tmp_path: Path) -> None:
    segment.scenes.draw_scenes(tmp_path, 6, 1)
    model, head = NaViT(CONFIG), segment.Segmentation(CONFIG)
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    for batch in masks(tmp_path, RandomResizedCrop(scale=(0.5, 1)), flip=0.5):
        total, tokens, hits = head(model, *head.prepare(model, batch))
        mask: Any = batch.targets["mask"]
        known = mask.flatten(0, 1)[batch.token_index]
        assert int(tokens) == head.count(batch) == batch.num_tokens
        assert float(total.detach()) == pytest.approx(np.log(4) * float((known < 255).sum()) / 256, rel=1e-4)
        assert float(hits) == pytest.approx(float((known == 0).sum()) / 256)


def test_script_prints_its_table_and_writes_its_picture(tmp_path: Path) -> None:
    picture = tmp_path / "segment.png"
    script = [sys.executable, str(EXAMPLES / "segment.py"), "--images", "96", "--epochs", "4", "--width", "32"]
    done = subprocess.run(
        [*script, "--picture", str(picture)], check=True, capture_output=True, text=True, env=ENVIRONMENT
    )
    header, *lines = done.stdout.splitlines()[-3:]
    assert header.split() == ["resolution", "mean", "IoU", "background", "tall", "even", "wide"]
    values = {name: [float(value) for value in rest] for name, *rest in map(str.split, lines)}
    assert list(values) == ["native", "square"]
    for mean, *each in values.values():
        assert mean == pytest.approx(np.mean(each), abs=1e-3)
    assert values["native"][1] > 0.7, "background is soon told from shapes"
    with Image.open(picture) as image:
        assert image.size == (8 * 260, 520)
