from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from patchnpack.models import NaViT, NaViTConfig, classification_loss
from patchnpack.models.attention import attention_backend
from tests.closeness import assert_near, difference

Draw = Callable[..., Any]
Pack = Callable[..., Any]
Build = Callable[..., Any]


def some_packs(draw: Draw) -> list[list[Any]]:
    """Images of equal and of different lengths, some with dropped tokens, in three packs of which one is empty."""
    first = [draw(5, 3, 0), draw(3, 5, 1, keep=9), draw(1, 1, 2), draw(4, 4, 3, seed=1)]
    return [first, [], [draw(3, 5, 4, seed=2), draw(8, 2, 1, keep=15)]]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_output_and_gradient_of_an_image_in_a_pack_equal_those_of_the_image_alone(
    dtype: torch.dtype, tolerance: float, draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    model, packs = build(config, dtype), some_packs(draw)
    together = model(pack(packs))
    direction = torch.linspace(-1, 1, config.num_classes, dtype=dtype)
    parameters = list(model.parameters())
    for b, images in enumerate(packs):
        for j, image in enumerate(images):
            alone = model(pack([[image]]))[0, 0]
            assert 0.3 < float(alone.detach().norm()) < 30, "the test's weights no longer keep the logits of order 1"
            assert_near(together[b, j], alone, tolerance)
            in_pack = torch.autograd.grad(together[b, j] @ direction, parameters, retain_graph=True)
            by_itself = torch.autograd.grad(alone @ direction, parameters)
            assert_near(in_pack, by_itself, tolerance)


def test_every_backend_gives_the_logits_of_the_dense_one(
    draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    batch = pack(some_packs(draw))
    dense = build(dataclasses.replace(config, backend="dense"))(batch)
    for backend in ("auto", "split"):
        assert_near(build(dataclasses.replace(config, backend=backend))(batch), dense, 1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_model_on_cuda_gives_the_logits_of_the_cpu(
    draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    batch, model = pack(some_packs(draw)), build(dataclasses.replace(config, width=48))
    expected = model(batch)
    on_device = model.cuda()(batch.to("cuda")).cpu()
    assert_near(on_device, expected, 1e-3)
    assert attention_backend("cuda") in ("varlen", "dense")
    with torch.autocast("cuda", torch.bfloat16):
        assert_near(model(batch.to("cuda")).float().cpu(), expected, 0.05)


def test_the_order_of_an_images_tokens_does_not_matter(
    draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    image, other = draw(5, 3), draw(4, 4)
    order = np.random.default_rng(0).permutation(15)
    shuffled = dataclasses.replace(image, patches=image.patches[order], coords=image.coords[order])
    model = build(config, torch.float64)
    assert_near(model(pack([[other, shuffled]])), model(pack([[other, image]])), 1e-13)
    moved = dataclasses.replace(image, coords=image.coords[order])
    assert difference(model(pack([[other, moved]])), model(pack([[other, image]]))) > 1e-3


def test_values_in_padding_cannot_leak(draw: Draw, pack: Pack, build: Build, config: NaViTConfig) -> None:
    model, batch = build(config), pack(some_packs(draw))
    expected, loss = model(batch), model.loss(batch)
    padding = batch.segment_ids == 0
    batch.patches[padding] = 255
    batch.coords[padding] = 7
    batch.labels[~batch.image_mask] = 3
    # Equal bits: the operations have the same shapes and order, and padding enters none of them.
    assert torch.equal(model(batch), expected)
    assert torch.equal(model.loss(batch), loss)


def test_columns_without_an_image_are_zero_and_the_others_are_in_place(
    draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    packs, model = some_packs(draw), build(config)
    batch = pack(packs, slots=50, columns=5)
    logits = model(batch)
    assert logits.shape == (3, 5, config.num_classes)
    assert torch.equal(logits.abs().sum(-1) > 0, batch.image_mask)


@pytest.mark.parametrize("packs", [[[]], [[], []]])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_batch_without_images_has_loss_zero_that_reaches_every_parameter(
    packs: list[list[Any]], reduction: str, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    model = build(config).train()
    loss = model.loss(pack(packs), reduction)
    assert loss.item() == 0
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@pytest.mark.filterwarnings("ignore:none of the . images of the batch has a label")
def test_a_batch_without_labels_has_loss_zero_that_reaches_every_parameter(
    draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    for label in (-100, [math.nan] * config.num_classes):
        model = build(config)
        loss = model.loss(pack([[draw(5, 3, label), draw(4, 4, label)]]))
        assert loss.item() == 0
        loss.backward()
        assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_loss_is_the_cross_entropy_of_the_labelled_images(
    draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    model = build(config)
    batch = pack([[draw(5, 3, 4), draw(4, 4, -100)], [draw(2, 2, 1), draw(3, 3, 0)]])
    log_p = model(batch).log_softmax(-1)
    each = torch.stack([-log_p[0, 0, 4], -log_p[1, 0, 1], -log_p[1, 1, 0]])
    torch.testing.assert_close(model.loss(batch, "sum"), each.sum())
    torch.testing.assert_close(model.loss(batch), each.mean())
    smooth = torch.stack([-log_p[b, j].mean() for b, j in ((0, 0), (1, 0), (1, 1))])
    torch.testing.assert_close(model.loss(batch, label_smoothing=0.2), (0.8 * each + 0.2 * smooth).mean())
    assert classification_loss(model(batch), batch)[1].item() == 3


def test_float_labels_give_sigmoid_cross_entropy_summed_over_classes(
    draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    model, target = build(config), [1.0, 0.0, 0.3, 1.0, 0.0]
    batch = pack([[draw(5, 3, target), draw(4, 4, [math.nan] * 5)]])
    logits, wanted = model(batch)[0, 0], torch.tensor(target)
    expected = -(wanted * logits.sigmoid().log() + (1 - wanted) * (-logits).sigmoid().log()).sum()
    torch.testing.assert_close(model.loss(batch), expected)
    torch.testing.assert_close(model.loss(batch, "sum"), expected)


def test_a_new_model_gives_every_class_the_same_probability(draw: Draw, pack: Pack, config: NaViTConfig) -> None:
    assert NaViT(config).loss(pack(some_packs(draw))).item() == pytest.approx(math.log(config.num_classes), rel=1e-6)


def test_without_classes_the_model_returns_pooled_features(draw: Draw, pack: Pack, config: NaViTConfig) -> None:
    model, batch = NaViT(dataclasses.replace(config, num_classes=0)), pack([[draw(5, 3), draw(4, 4)]])
    assert model(batch).shape == (1, 6, config.width)
    with pytest.raises(ValueError, match=r"num_classes 0, so there is no loss"):
        model.loss(batch)


def test_drop_path_drops_or_scales_a_branch_for_whole_images_in_training_only(
    draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    plain = build(config)
    model = build(dataclasses.replace(config, drop_path=0.5))
    batch = pack([[draw(2, 2) for _ in range(12)] for _ in range(8)], columns=12)
    torch.testing.assert_close(model(batch), plain(batch))
    torch.manual_seed(0)
    outcomes: list[torch.Tensor] = []
    for logits in model.train()(batch)[batch.image_mask].detach():
        if all(difference(logits, known) > 1e-4 for known in outcomes):
            outcomes.append(logits)
    assert len(outcomes) == 4  # attention and MLP of the second block, each dropped or not


def test_bfloat16_autocast_stays_close_to_float32(draw: Draw, pack: Pack, build: Build, config: NaViTConfig) -> None:
    model, batch = build(config), pack(some_packs(draw))
    with torch.autocast("cpu", torch.bfloat16):
        low = model(batch)
    assert low.dtype == torch.bfloat16
    assert_near(low.float(), model(batch), 0.05)


def test_without_qk_norm_the_model_has_no_norms_of_queries_and_keys(config: NaViTConfig) -> None:
    names = dict(NaViT(dataclasses.replace(config, qk_norm=False)).named_parameters())
    assert not any("q_norm" in name or "k_norm" in name for name in names)
    assert any("q_norm" in name for name in dict(NaViT(config).named_parameters()))


def test_a_batch_that_does_not_fit_is_refused_with_both_values_and_the_remedy(
    draw: Draw, pack: Pack, config: NaViTConfig
) -> None:
    batch = pack([[draw(5, 3, 2)]])
    with pytest.raises(ValueError, match=r"3 channels, but the model takes 1.*channels=3"):
        NaViT(dataclasses.replace(config, channels=1, mean=(0.5,), std=(0.5,)))(batch)
    with pytest.raises(ValueError, match=r"5 patches per side.*end at max_grid 4; raise max_grid"):
        NaViT(dataclasses.replace(config, max_grid=4))(batch)
    with pytest.raises(ValueError, match=r"label 2 is not a class from 0 to 1"):
        NaViT(dataclasses.replace(config, num_classes=2)).loss(batch)
    with pytest.raises(ValueError, match=r"label -1 is not a class"):
        NaViT(config).loss(pack([[draw(5, 3, -1)]]))
    with pytest.raises(ValueError, match=r"labels have 2 targets per image, but the model has 5 outputs"):
        NaViT(config).loss(pack([[draw(5, 3, [0.0, 1.0])]]))
    with pytest.raises(ValueError, match=r"reduction is 'none'; choose 'mean' or 'sum'"):
        NaViT(config).loss(batch, "none")
