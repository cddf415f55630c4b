from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from patchnpack.models import NaViT, NaViTConfig
from patchnpack.packer.batch.packed_batch import PackedBatch
from patchnpack.trainer import Distillation, TrainConfig, repatchify, train

Draw = Callable[..., Any]
Pack = Callable[..., Any]
Build = Callable[..., Any]


@pytest.fixture
def batch(draw: Draw, pack: Pack) -> PackedBatch:
    images = [draw(5, 3, 1), draw(2, 4, 0), draw(4, 4, -100), draw(1, 1, 3)]
    batch: PackedBatch = pack([images[:2], [], images[2:]])
    return batch


@pytest.mark.parametrize(("t", "weight"), [(1.0, 0.0), (3.0, 0.0), (2.0, 0.7)])
@pytest.mark.parametrize("P", [4, 8])
def test_the_loss_is_t_squared_kl_per_image_plus_the_task_loss(
    P: int, t: float, weight: float, batch: PackedBatch, build: Build, config: NaViTConfig
) -> None:
    teacher = build(dataclasses.replace(config, patch_size=P, width=12))
    student = NaViT(config)
    with torch.no_grad():
        student.get_parameter("head.weight").normal_()
    objective = Distillation(teacher, temperature=t, task_weight=weight)
    outcome = objective(student, *objective.prepare(student, batch))
    seen = batch if P == 4 else repatchify(batch, P)
    expected = 0.0
    for z, y in zip(teacher(seen)[seen.image_mask], student(batch)[batch.image_mask], strict=True):
        p, q = (z.double() / t).softmax(-1), (y.double() / t).softmax(-1)
        expected += t**2 * float((p * (p / q).log()).sum().detach())
    expected += weight * student.loss(batch, "sum").item()
    assert outcome.total.item() == pytest.approx(expected, rel=1e-4)
    assert outcome.images.item() == objective.count(batch) == 4


def test_a_student_learns_to_agree_with_a_teacher_of_another_patch_size(
    draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    batches = [pack([[draw(4, 4, -100, seed=i), draw(6, 2, -100, seed=i)]], slots=30) for i in range(6)]
    teacher = build(dataclasses.replace(config, patch_size=8, num_classes=3))
    before = [p.clone() for p in teacher.parameters()]
    small = dataclasses.replace(config, num_classes=3)
    settings = TrainConfig(steps=150, lr=5e-3, weight_decay=0.0, precision="float32", eval_every=25)
    result = train(small, batches, config=settings, objective=Distillation(teacher))
    assert result.metrics["accuracy"] >= 11 / 12
    assert result.losses[-1] < 0.2 * result.losses[0]
    assert all(torch.equal(*pair) for pair in zip(before, teacher.parameters(), strict=True))


def test_a_student_that_is_the_teacher_has_loss_0(batch: PackedBatch, build: Build, config: NaViTConfig) -> None:
    objective = Distillation(build(config), temperature=2.0)
    total = objective(build(config), *objective.prepare(build(config), batch)).total.item()
    assert total == pytest.approx(0, abs=1e-5)


def test_teacher_and_student_must_match(batch: PackedBatch, build: Build, config: NaViTConfig) -> None:
    objective = Distillation(build(dataclasses.replace(config, num_classes=7)))
    with pytest.raises(ValueError, match=r"the student has 5 classes, the teacher 7"):
        objective.prepare(build(config), batch)
    far = Distillation(build(dataclasses.replace(config, patch_size=1, max_grid=4)))
    with pytest.raises(ValueError, match=r"position tables end at max_grid 4"):
        far.prepare(build(config), batch)
    with pytest.raises(ValueError, match=r"temperature is 0"):
        Distillation(build(config), temperature=0)


def test_the_teacher_is_neither_trained_nor_saved(build: Build, config: NaViTConfig) -> None:
    objective = Distillation(build(config))
    assert list(objective.parameters()) == []
    assert objective.state_dict() == {}


def test_teacher_and_student_see_the_same_mixed_image(
    draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    batch = pack([[draw(4, 4, 0), draw(4, 4, 1, seed=1)]])
    objective = Distillation(build(dataclasses.replace(config, patch_size=8)), mixup=1.0)
    mixed, seen = objective.prepare(build(config), batch, np.random.default_rng(0))
    assert not torch.equal(mixed.patches, batch.patches)
    for ours, theirs in zip(mixed.images(), seen.images(), strict=True):
        assert (ours.pixels() == theirs.pixels()).all()
