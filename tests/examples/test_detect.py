"""examples/detect.py: boxes of tokens, their matching and loss, and the script."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from patchnpack import Boxes, Native, PackedImageLoader, Packing, RandomResizedCrop, Square
from patchnpack.metrics import generalized_iou, mean_average_precision
from patchnpack.models import NaViT, NaViTConfig
from tests.examples.scripts import ENVIRONMENT, EXAMPLES, load_script

CONFIG = NaViTConfig(num_classes=0, width=24, depth=1, heads=1, patch_size=16, pooling="mean")
BOXES = Boxes("json:objects.bbox", format="xywh", labels="json:objects.category", classes=["tall", "even", "wide"])


@pytest.fixture
def detect(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_script("detect", monkeypatch)


def boxes(files: Path, resolution: Any, **choices: Any) -> PackedImageLoader:
    packing = Packing(seq_len=256, patch_size=16, resolution=resolution, **choices)
    return PackedImageLoader(f"{files}/train-*.tar", packing, batch_size=2, targets={"boxes": BOXES})


def test_layers_that_give_0_predict_the_tokens_own_patch(detect: ModuleType, tmp_path: Path) -> None:
    detect.scenes.draw_scenes(tmp_path, 6, 1)
    head = detect.Detection(CONFIG)
    for parameter in head.box.parameters():
        torch.nn.init.zeros_(parameter)
    for batch in boxes(tmp_path, Native()):
        _, found = head.predict(NaViT(CONFIG), batch)
        corner = batch.coords.flatten(0, 1)[batch.token_index]
        torch.testing.assert_close(found, torch.cat([corner, corner + 1], 1).float())


def test_matching_has_the_least_cost_of_all(detect: ModuleType) -> None:
    draws = torch.Generator().manual_seed(0)
    for n in (0, 1, 3):
        corners = torch.rand(6 + n, 2, 2, generator=draws).sort(1).values.flatten(1)
        found, true = corners[:6], corners[6:]
        logits, labels = torch.randn(6, 3, generator=draws), torch.arange(n)
        place = torch.rand(6, 2, generator=draws)
        token, known = detect.match(logits, found, place, true, labels)
        assert sorted(known.tolist()) == list(range(n))

        def cost(tokens: Any, found: Any = found, true: Any = true, logits: Any = logits, place: Any = place) -> float:
            total = 0.0
            for j, i in enumerate(tokens):
                p = float(logits[i, j].sigmoid())
                total += 2 * (0.75 * p**2 * np.log(1 - p) - 0.25 * (1 - p) ** 2 * np.log(p))
                total += math.dist(place[i].tolist(), ((true[j, :2] + true[j, 2:]) / 2).tolist())
                total += float(0.5 * (found[i] - true[j]).abs().sum() - 2 * generalized_iou(found[i], true[j]))
            return total

        best = min(itertools.permutations(range(6), n), key=cost)
        assert dict(zip(known.tolist(), token.tolist(), strict=True)) == dict(enumerate(best))


@pytest.mark.parametrize("resolution", [Native(), Square(144)], ids=["native", "square"])
def test_known_boxes_as_predictions_have_an_average_precision_of_1(
    detect: ModuleType, tmp_path: Path, resolution: Any
) -> None:
    class Known(detect.Detection):  # type: ignore[misc, name-defined]
        def predict(self, model: NaViT, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
            _, found = super().predict(model, batch)
            logits = torch.full((batch.num_tokens, 3), -9.0)
            for i, start in enumerate(batch.cu_seqlens[:-1].tolist()):
                known = batch.targets["boxes"].of(i)
                tokens = range(start, start + len(known))
                logits[tokens, known.labels] = 9.0
                found[tokens] = known.boxes / 16
            return logits, found

    detect.scenes.draw_scenes(tmp_path, 12, 1)
    loader, model, head = boxes(tmp_path, resolution, flip=0.5, vflip=0.5), NaViT(CONFIG), Known(CONFIG)
    found, known = detect.evaluate(model, head, loader)
    assert mean_average_precision(found, known, (0.5, 0.95)) == 1.0
    names = [key for batch in loader for pack in batch.keys for key in pack]
    scenes = [
        detect.scenes.draw_scene(np.random.default_rng((0, 0, int(name.removeprefix("train-"))))) for name in names
    ]
    for (true, labels), scene in zip(known, scenes, strict=True):
        assert labels.tolist() == scene.labels.tolist()
        corners = np.hstack([scene.boxes[:, :2], scene.boxes[:, :2] + scene.boxes[:, 2:]])
        np.testing.assert_allclose(true.numpy(), corners, atol=0.02)
    for batch in loader:
        with torch.no_grad():
            images, hits = head(model, *head.prepare(model, batch))[1:]
        assert int(images) == int(hits) == head.count(batch) == batch.num_images


def test_the_loss_of_an_image_is_its_formula(detect: ModuleType) -> None:
    true, labels = torch.tensor([[0.0, 0.0, 2.0, 2.0], [2.0, 0.0, 4.0, 1.0]]), torch.tensor([2, 0])
    place = torch.tensor([[0.5, 0.5], [1.5, 0.5], [2.5, 0.5], [3.5, 1.5]])  # two in the first box, one in the second
    found = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.0], [2.0, 0.0, 4.0, 1.0], [9.0, 9.0, 10.0, 10.0]])
    loss, hit = detect.image_loss(torch.zeros(4, 3), found, place, true, labels)
    assert hit is False  # the first of equal logits counts as the highest, and is right for one box only
    # Tokens 0 and 2 are matched and exact. With logits 0, a logit costs 0.25 log 2, times alpha 0.25 or 0.75.
    classes = 2 * 0.25 * np.log(2) * (2 * 0.25 + 10 * 0.75) / 2
    # Token 1 has half of the first box: a distance of 1 patch, and IoU and generalised IoU 0.5, a mean of three tokens.
    assert float(loss) == pytest.approx(classes + (0.5 * 1 + 2 * 0.5) / 3)
    logits = torch.zeros(4, 3)
    logits[0, 2] = logits[2, 0] = 1.0
    assert detect.image_loss(logits, found, place, true, labels)[1] is True
    lonely, hit = detect.image_loss(torch.zeros(4, 3), found, place, true[:0], labels[:0])
    assert hit is True
    assert float(lonely) == pytest.approx(2 * 12 * 0.75 * 0.25 * np.log(2))


def test_every_parameter_has_a_gradient_even_without_an_image_or_a_box(detect: ModuleType, tmp_path: Path) -> None:
    detect.scenes.draw_scenes(tmp_path, 4, 1)
    batch = next(iter(boxes(tmp_path, RandomResizedCrop(scale=(0.5, 1)))))
    for part in (batch, batch.select(torch.zeros_like(batch.image_mask))):
        model, head = NaViT(CONFIG), detect.Detection(CONFIG)
        total = head(model, *head.prepare(model, part)).total
        total.backward()
        assert total.isfinite()
        assert all(parameter.grad is not None for module in (model, head) for parameter in module.parameters())


def test_script_prints_its_table_and_writes_its_picture(tmp_path: Path) -> None:
    picture = tmp_path / "detect.png"
    script = [sys.executable, str(EXAMPLES / "detect.py"), "--images", "48", "--epochs", "2", "--width", "32"]
    done = subprocess.run(
        [*script, "--picture", str(picture)], check=True, capture_output=True, text=True, env=ENVIRONMENT
    )
    header, *lines = done.stdout.splitlines()[-3:]
    assert header.split() == ["resolution", "AP50", "AP50:95"]
    values = {name: [float(value) for value in rest] for name, *rest in map(str.split, lines)}
    assert list(values) == ["native", "square"]
    assert all(0 <= value <= 1 for each in values.values() for value in each)
    with Image.open(picture) as image:
        assert image.size == (8 * 260, 260)
