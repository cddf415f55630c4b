from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from patchnpack.models import NaViTConfig
from patchnpack.trainer import autocast_dtype, evaluate

Draw = Callable[..., Any]
Pack = Callable[..., Any]
Build = Callable[..., Any]


def test_every_labelled_image_counts_once_and_the_others_are_counted_separately(
    draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    model = build(config)
    images = [draw(2 + i % 4, 1 + i % 3, label=-100 if i in (2, 6) else i % 5, seed=i) for i in range(11)]
    batches = [pack([images[:4], images[4:5]]), pack([[], images[5:7]]), pack([images[7:]]), pack([[]])]
    metrics = evaluate(model, batches, precision="float32")
    labelled = [image for image in images if image.label != -100]
    each = [model.loss(pack([[image]])).item() for image in labelled]
    hits = [model(pack([[image]]))[0, 0].argmax().item() == image.label for image in labelled]
    assert metrics["images"] == 9
    assert metrics["unlabelled"] == 2
    assert metrics["loss"] == pytest.approx(sum(each) / 9, rel=1e-5)
    assert metrics["accuracy"] == sum(hits) / 9


def test_an_image_with_float_targets_is_a_hit_if_its_best_class_has_the_highest_target(
    draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    model = build(config)
    best = int(model(pack([[draw(5, 3)]]))[0, 0].argmax())
    right, wrong = [0.0] * 5, [1.0] * 5
    right[best], wrong[best] = 0.5, 0.9
    batch = pack([[draw(5, 3, right), draw(5, 3, right), draw(5, 3, wrong), draw(5, 3, [math.nan] * 5)]], slots=60)
    metrics = evaluate(model, [batch], precision="float32")
    assert (metrics["accuracy"], metrics["images"], metrics["unlabelled"]) == (2 / 3, 3, 1)


@pytest.mark.parametrize("training", [False, True])
def test_evaluation_restores_mode_and_gradients(
    training: bool, draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    model = build(config).train(training)
    evaluate(model, [pack([[draw(5, 3)]])])
    assert model.training is training
    assert all(parameter.grad is None for parameter in model.parameters())


class Endless:
    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("an endless loader must not be started")

    def __len__(self) -> int:
        raise TypeError("repeat=True has no length")


@pytest.mark.filterwarnings("ignore:none of the . images of the batch has a label")
def test_a_loader_without_an_end_or_labels_is_refused(
    draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    model = build(config)
    with pytest.raises(ValueError, match=r"a loader with a length.*repeat=False"):
        evaluate(model, Endless())
    with pytest.raises(ValueError, match=r"none of the 1 images of the evaluation data has a label"):
        evaluate(model, [pack([[draw(5, 3, -100)]])])
    with pytest.raises(ValueError, match=r"none of the 0 images of the evaluation data has a label"):
        evaluate(model, [])


CAPABILITIES = [
    ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, None),
    ({"avx2": True, "avx512_f": True, "avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
    ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
    ({"neon": True, "bf16": True}, None),  # Arm
    ({}, None),
]


def test_precision_is_as_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda:0")
    for features, expected in CAPABILITIES:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=features: found)
        assert autocast_dtype(cpu, "float32") is None
        assert autocast_dtype(cpu, "bfloat16") == torch.bfloat16
        assert autocast_dtype(cpu, "auto") == expected, features
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as in an older torch
    assert autocast_dtype(cpu, "auto") is None
    for capability, expected in (((7, 5), None), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert autocast_dtype(cuda, "float32") is None
        assert autocast_dtype(cuda, "auto") == expected, capability
    assert autocast_dtype(torch.device("meta"), "auto") is None
