"""Scope "sample" in training and evaluation: losses, hits and counts are those of samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from patchnpack.models import NaViT, NaViTConfig
from patchnpack.packer.batch.packed_batch import PackedBatch
from patchnpack.predict import features, predict
from patchnpack.trainer import Classification, Contrastive, Distillation, TrainConfig, evaluate, repatchify, train
from patchnpack.trainer.loader_check import check_loader
from tests.closeness import assert_near
from tests.models.conftest import of_samples

Draw = Callable[..., Any]
Pack = Callable[..., Any]
Build = Callable[..., Any]


@pytest.fixture
def config(config: NaViTConfig) -> NaViTConfig:
    return dataclasses.replace(config, scope="sample", time="learned", max_frames=4)


@pytest.fixture
def batch(draw: Draw, pack: Pack) -> PackedBatch:
    """Samples of 2, 1 and 2 images with classes 1, 3 and none, and an empty pack."""
    images = [draw(5, 3, 1), draw(2, 4, 1), draw(4, 4, 3), draw(3, 3, -100), draw(1, 1, -100)]
    return of_samples(pack([images, []], slots=60), [[2, 1, 2], []])


def test_evaluation_counts_samples(batch: PackedBatch, build: Build, config: NaViTConfig) -> None:
    model = build(config)
    metrics = evaluate(model, [batch, batch], precision="float32")
    log_p = model(batch)[0].detach().log_softmax(-1)
    assert (metrics["samples"], metrics["unlabelled"]) == (4, 2)
    assert "images" not in metrics
    assert metrics["loss"] == pytest.approx(-float(log_p[0, 1] + log_p[1, 3]) / 2, rel=1e-5)
    assert metrics["accuracy"] == ((log_p[0].argmax() == 1).int() + (log_p[1].argmax() == 3).int()).item() / 2
    batch.labels[:] = -100
    with (
        pytest.warns(UserWarning, match="none of the 3 samples of the batch has a label"),
        pytest.raises(ValueError, match="none of the 3 samples of the evaluation data has a label"),
    ):
        evaluate(model, [batch], precision="float32")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_loss_of_a_step_is_the_mean_over_its_samples(
    accumulate: int, draw: Draw, pack: Pack, batch: PackedBatch, build: Build, config: NaViTConfig
) -> None:
    other = of_samples(pack([[draw(2, 2, 4), draw(3, 2, 4), draw(2, 3, 0)]]), [[2, 1]])
    batches, model = [batch, other], build(config)
    sums = [model.loss(each, "sum").item() for each in batches]
    expected = [sum(sums) / 4] if accumulate == 2 else [sums[0] / 2]
    settings = TrainConfig(
        steps=2 // accumulate, accumulate=accumulate, label_smoothing=0.0, device="cpu", precision="float32", lr=1e-9
    )
    result = train(build(config), batches, config=settings, validation=batches)
    assert result.losses[0] == pytest.approx(expected[0], rel=1e-5)
    row = result.history[-1]
    assert row["val_samples"] == 4
    assert row["images_per_second"] / row["samples_per_second"] == pytest.approx(8 / 5)


def test_progress_shows_samples_per_second_where_they_are_not_images(
    batch: PackedBatch, pack: Pack, draw: Draw, config: NaViTConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = TrainConfig(steps=1, device="cpu", precision="float32")
    train(config, [batch], config=settings)
    assert "samples/s" in capsys.readouterr().err
    train(config, [pack([[draw(3, 3, 1)]])], config=settings)
    assert "samples/s" not in capsys.readouterr().err


def test_mixing_is_refused(batch: PackedBatch, config: NaViTConfig) -> None:
    settings = TrainConfig(steps=1, mixup=0.2, device="cpu", precision="float32")
    with pytest.raises(ValueError, match=r"mix single images, but the model has scope 'sample'; set both to 0"):
        train(config, [batch], config=settings)


def test_distillation_compares_samples_at_each_models_patch_size(
    batch: PackedBatch, build: Build, config: NaViTConfig
) -> None:
    teacher, student = build(dataclasses.replace(config, patch_size=8)), build(config)
    seen = repatchify(batch, 8)
    assert (seen.samples.tolist(), seen.frames.tolist()) == ([[1, 1, 2, 3, 3]], [[0, 1, 0, 0, 1]])
    objective = Distillation(teacher, task_weight=0.5)
    outcome = objective(student, *objective.prepare(student, batch))
    p, q = teacher(seen)[0, :3].softmax(-1), student(batch)[0, :3].softmax(-1)
    divergence, task = (p * (p / q).log()).sum(), Classification()(student, batch)
    torch.testing.assert_close(outcome.total, divergence + 0.5 * task.total, rtol=1e-4, atol=1e-5)
    assert (int(outcome.images), objective.count(student.units(batch)), int(task.images)) == (3, 3, 2)
    with pytest.raises(ValueError, match="the student has scope 'image', the teacher 'sample'"):
        objective.prepare(build(dataclasses.replace(config, scope="image")), batch)


def test_a_sample_has_the_text_of_its_first_image(batch: PackedBatch, config: NaViTConfig) -> None:
    image = NaViT(dataclasses.replace(config, num_classes=0))
    objective = Contrastive(image, embed=8, tower={"width": 12, "depth": 1, "heads": 2})
    told = dataclasses.replace(batch, extras={"txt": [["one", "two", None, "three", "four"], []]})
    images, texts = objective.embed(image, *objective.prepare(image, told))
    assert objective.count(image.units(told)) == len(images) == len(texts) == 2
    pooled = objective.projection(image(told)[0, [0, 2]])
    assert_near(images, torch.nn.functional.normalize(pooled, dim=-1), 1e-5)
    assert_near(texts, torch.nn.functional.normalize(objective.tower(["one", "three"]), dim=-1), 1e-5)


def test_predictions_and_features_have_one_row_per_sample(
    batch: PackedBatch, build: Build, config: NaViTConfig
) -> None:
    model = build(config)
    table = predict(model, [batch], precision="float32")
    assert table["key"].to_pylist() == ["0/0", "0/2", "0/3"]
    assert table["row"].to_pylist() == [0, 2, 3]
    assert table["label"].to_pylist() == [1, 3, None]
    assert table["prediction"].to_pylist() == model(batch)[0, :3].argmax(-1).tolist()
    assert features(model, [batch], precision="float32").column_names == ["key", "row", "feature"]


def test_a_loader_whose_packing_has_another_scope_is_refused(build: Build, config: NaViTConfig) -> None:
    loader = SimpleNamespace(largest_grids=dict, packing=SimpleNamespace(channels=3, dtype="uint8", scope="image"))
    with pytest.raises(ValueError, match=r"packing has scope 'image'.*model has scope 'sample'; set Packing\(scope="):
        check_loader(build(config), loader, labels=False)
    loader.packing.scope = "sample"
    check_loader(build(config), loader, labels=False)
