from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from patchnpack.models import NaViTConfig
from patchnpack.trainer import Classification, TrainConfig, train

Draw = Callable[..., Any]
Pack = Callable[..., Any]
Build = Callable[..., Any]

SOFT = [[0.2, 0.8, 0.0, 0.0, 0.0], [0.0, 0.5, 0.0, 0.5, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]]


def images(draw: Draw, labels: list[Any]) -> list[Any]:
    return [draw(2 + i, 3, label=label, seed=i) for i, label in enumerate(labels)]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("soft", [False, True])
def test_each_loss_is_its_formula_image_by_image(
    soft: bool, kind: str, smoothing: float, draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    labels: list[Any] = [*SOFT, [math.nan] * 5] if soft else [1, 4, 0, -100]
    batch, model = pack([images(draw, labels)]), build(config)
    objective = Classification(loss=kind, label_smoothing=smoothing)
    total, count, _ = objective(model, *objective.prepare(model, batch))
    expected = 0.0
    for z, label in zip(model(batch)[0, :3].detach().double(), labels, strict=False):
        t = torch.tensor(label).double() if soft else F.one_hot(torch.tensor(label), 5).double()
        if not (soft and kind == "sigmoid"):
            t = t * (1 - smoothing) + smoothing / 5
        if kind == "softmax":
            expected -= sum(float(t[c] * (z[c] - z.exp().sum().log())) for c in range(5))
        else:
            p = 1 / (1 + (-z).exp())
            expected -= sum(float(t[c] * p[c].log() + (1 - t[c]) * (1 - p[c]).log()) for c in range(5))
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert count.item() == objective.count(batch) == 3


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_class_weights_multiply_the_terms_of_their_classes(
    kind: str, smoothing: float, draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    labels, weights = [1, 4, 0, -100], [0.5, 2.0, 0.0, 1.0, 3.0]
    batch, model = pack([images(draw, labels)]), build(config)
    objective = Classification(loss=kind, label_smoothing=smoothing, class_weights=weights)
    total, count, _ = objective(model, *objective.prepare(model, batch))
    logits, known = model(batch)[0, :3].detach(), torch.tensor(labels[:3])
    if kind == "softmax":
        expected = F.cross_entropy(
            logits, known, weight=torch.tensor(weights), label_smoothing=smoothing, reduction="sum"
        )
    else:
        targets = F.one_hot(known, 5) * (1 - smoothing) + smoothing / 5
        expected = F.binary_cross_entropy_with_logits(logits, targets, weight=torch.tensor(weights), reduction="sum")
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert count.item() == 3, "a step divides by images, not by their weights"
    plain = objective.for_evaluation()
    assert isinstance(plain, Classification)
    assert plain.class_weights is None


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, -1.0], r"class_weights is \(1\.0, -1\.0\); give finite weights of at least 0"),
        ([0.0, 0.0], r"not all 0"),
        ([1.0, math.nan], r"give finite weights"),
    ],
)
def test_class_weights_are_finite_and_not_negative(weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Classification(class_weights=weights)


def test_class_weights_are_as_many_as_the_classes(draw: Draw, pack: Pack, config: NaViTConfig) -> None:
    batches = [pack([images(draw, [1, 4, 0])])]
    with pytest.raises(ValueError, match=r"class_weights has 2 weights for 5 classes; give one each"):
        train(config, batches, config=TrainConfig(steps=1), objective=Classification(class_weights=[1.0, 2.0]))


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("changes", [{}, {"mixup": 0.2}, {"cutmix": 0.2}, {"mixup": 0.2, "cutmix": 0.2}], ids=str)
def test_each_loss_learns_a_tiny_task(
    kind: str, changes: dict[str, float], draw: Draw, pack: Pack, config: NaViTConfig
) -> None:
    drawn = [draw(2 + i % 3, 3, label=i % 2, seed=i, high=256 if i % 2 else 60) for i in range(16)]
    batches = [pack([drawn[:2], drawn[2:5], drawn[5:8]]), pack([drawn[8:12], drawn[12:]])]
    small = NaViTConfig(num_classes=2, width=12, depth=1, heads=2, patch_size=4, max_grid=16)
    settings = TrainConfig(steps=60, lr=1e-2, loss=kind, eval_every=60, precision="float32", **changes)  # type: ignore[arg-type]
    result = train(small, batches, validation=batches, config=settings)
    assert result.metrics["accuracy"] == 1.0
    assert result.metrics["loss"] < (0.45 if kind == "softmax" else 0.9)


def test_a_hit_has_no_target_above_that_of_its_highest_logit(
    draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    model, objective = build(config), Classification(loss="softmax")
    best = int(model(pack([[draw(2, 3)]]))[0, 0].argmax())
    right, wrong = [0.0] * 5, [0.0] * 5
    right[best], wrong[(best + 1) % 5] = 1.0, 1.0
    for label, hits in ((right, 1), (wrong, 0)):
        assert int(objective(model, pack([[draw(2, 3, label)]])).hits) == hits


def test_an_empty_batch_has_loss_0_and_reaches_every_parameter(
    draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    for objective in (Classification(), Classification(loss="sigmoid"), Classification(mixup=1.0)):
        model = build(config)
        (batch,) = objective.prepare(model, pack([[]]), np.random.default_rng(0))
        total, count, _ = objective(model, batch)
        total.backward()
        assert (total.item(), count.item(), objective.count(batch)) == (0, 0, 0)
        assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_labels_that_do_not_fit_the_loss_are_refused(draw: Draw, pack: Pack, build: Build, config: NaViTConfig) -> None:
    model, several = build(config), pack([[draw(2, 3, [1.0, 1.0, 0.0, 0.0, 0.0])]])
    with pytest.raises(ValueError, match=r"sum to 2, but softmax needs a sum of 1: choose loss='sigmoid'"):
        Classification(loss="softmax").prepare(model, several)
    with pytest.raises(ValueError, match=r"mixup and cutmix with float labels need an explicit loss; choose"):
        Classification(mixup=1.0).prepare(model, several)
    Classification(loss="sigmoid", mixup=1.0).prepare(model, several)
