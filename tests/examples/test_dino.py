"""The example of DINO: its pictures, its loss, its batches of views, and its table."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from patchnpack import PackedBatch, PackedImageLoader, Packing

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

spec = importlib.util.spec_from_file_location("dino", EXAMPLES / "dino.py")
assert spec is not None
assert spec.loader is not None
dino = importlib.util.module_from_spec(spec)
spec.loader.exec_module(dino)


def loader_of_crops(folder: Path, pictures: int, **options: Any) -> PackedImageLoader:
    dino.draw_crowds(folder, {"train": pictures})
    packing = Packing(seq_len=512, patch_size=16, max_images=160, views=dino.VIEWS)
    return PackedImageLoader(f"{folder}/train-*.tar", packing, batch_size=2, transform=dino.recolour, **options)


@pytest.mark.parametrize("label", range(6))
def test_a_crowd_is_light_on_dark_and_its_shapes_have_the_aspect_of_their_class(label: int) -> None:
    counts = []
    for seed in range(8):
        picture = dino.draw_crowd(label, np.random.default_rng(seed))
        assert picture.dtype == np.uint8
        assert all(64 <= side <= 192 for side in picture.shape[:2])
        light = picture.mean(-1) > 125
        assert 0.05 < light.mean() < 0.9
        counts.append([(light[:, 1:] != light[:, :-1]).sum(), (light[1:] != light[:-1]).sum()])
    across, down = np.sum(counts, 0)  # outlines crossed from left to right, and from top to bottom
    assert np.sign(np.log2(across / down).round()) == (1, 0, -1)[label % 3], (across, down)


def test_the_shards_hold_equally_many_pictures_of_each_class(tmp_path: Path) -> None:
    dino.draw_crowds(tmp_path, {"train": 12, "validation": 6})
    for split, count in (("train", 2), ("validation", 1)):
        loader = PackedImageLoader(f"{tmp_path}/{split}-*.tar", Packing(seq_len=512), batch_size=1, label="cls")
        labels = torch.cat([batch.labels[batch.image_mask] for batch in loader])
        assert labels.bincount().tolist() == [count] * len(dino.CLASSES)


def test_the_loss_equals_a_plain_loop_over_pairs_of_different_views() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(3, 10, 7, generator=generator), torch.randn(3, 2, 7, generator=generator).softmax(-1)
    each = [
        -(teacher[s, g] * student[s, v].log_softmax(-1)).sum()
        for s in range(3)
        for g in range(2)
        for v in range(10)
        if g != v
    ]
    torch.testing.assert_close(dino.dino_loss(student, teacher), torch.stack(each).mean())


def test_global_views_alone_have_the_features_that_they_have_among_all_views(tmp_path: Path) -> None:
    body, pictures = dino.Network().body.eval(), 0
    for batch in loader_of_crops(tmp_path, 12, shuffle=True, seed=3):
        views = batch.select(batch.frames < dino.GLOBALS)
        with torch.no_grad():
            of_all = body(batch)[batch.image_mask].unflatten(0, (-1, dino.V))
            of_globals = body(views)[views.image_mask].unflatten(0, (-1, dino.GLOBALS))
        torch.testing.assert_close(of_globals, of_all[:, : dino.GLOBALS], atol=1e-4, rtol=1e-4)
        pictures += batch.num_samples
        for sample in batch.images_by_sample():
            assert [image.frame for image in sample.images] == list(range(dino.V))
            assert all(len(image.coords) <= (36 if image.frame < dino.GLOBALS else 16) for image in sample.images)
    assert pictures == 12


def test_the_teacher_sees_the_global_views_and_the_student_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, list[list[int]]]] = []
    forward = dino.Network.forward

    def record(network: torch.nn.Module, batch: PackedBatch) -> torch.Tensor:
        trained = next(network.parameters()).requires_grad
        seen.append((trained, batch.frames[batch.image_mask].reshape(batch.num_samples, -1).unique(dim=0).tolist()))
        output: torch.Tensor = forward(network, batch)
        return output

    monkeypatch.setattr(dino.Network, "forward", record)
    dino.pretrain(loader_of_crops(tmp_path, 12), 1, seed=0)
    assert len(seen) >= 4
    assert seen == [(False, [[0, 1]]), (True, [list(range(10))])] * (len(seen) // 2)


def test_training_lowers_the_loss_and_moves_the_teacher_away_from_the_random_network(tmp_path: Path) -> None:
    random, teacher, losses = dino.pretrain(loader_of_crops(tmp_path, 24, shuffle=True), 8, seed=0)
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    before, after = random.state_dict(), teacher.state_dict()
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before if before[name].is_floating_point())


def test_the_nearest_neighbours_of_known_pictures_are_themselves(tmp_path: Path) -> None:
    dino.draw_crowds(tmp_path, {"train": 12})
    loader = PackedImageLoader(f"{tmp_path}/train-*.tar", Packing(seq_len=512), batch_size=1, label="cls")
    assert dino.knn_accuracy(dino.Network().body.eval(), loader, loader, k=1) == 1


def test_recolour_keeps_shape_and_dtype() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    found = dino.recolour(image, np.random.default_rng(1))
    assert (found.shape, found.dtype) == (image.shape, image.dtype)
    assert not np.array_equal(found, image)


def test_script_prints_its_table_and_writes_its_picture(tmp_path: Path) -> None:
    picture = tmp_path / "dino.png"
    script = [sys.executable, str(EXAMPLES / "dino.py"), "--pictures", "24", "--epochs", "1", "--seeds", "0", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*script, "--picture", str(picture)], check=True, capture_output=True, text=True, env=environment
    )
    header, *rows = run.stdout.splitlines()
    assert header == "seed   random network   DINO"
    assert [row.split()[0] for row in rows] == ["0", "1", "mean"]
    values = np.array([row.split()[1:] for row in rows], float)
    assert ((values >= 0) & (values <= 1)).all()
    np.testing.assert_allclose(values[2], values[:2].mean(0), atol=1e-3)
    with Image.open(picture) as image:
        assert image.width == 1600
