"""Properties of the model for every choice of position, pooling and backend."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from patchnpack.models import NaViT, NaViTConfig
from patchnpack.models.pos_embed import COMBINES, axial_rope
from tests.closeness import assert_near, difference

Draw = Callable[..., Any]
Pack = Callable[..., Any]
Build = Callable[..., Any]

POSITIONS: dict[str, dict[str, Any]] = {
    **{
        f"{kind} {how}": {"position": kind, "position_combine": how}
        for kind in ("absolute", "fractional")
        for how in COMBINES[1:]
    },
    "sinusoidal": {"position": "sinusoidal"},
    "fourier": {"position": "fourier"},
    "fourier product": {"position": "fourier", "position_combine": "product"},
    "grid bilinear": {"position": "grid"},
    "grid bicubic": {"position": "grid", "position_resize": "bicubic"},
    "learned_grid": {"position": "learned_grid"},
    "mlp": {"position": "mlp"},
    "rope": {"position": "rope"},
}
OTHERS: dict[str, dict[str, Any]] = {
    "mean": {"pooling": "mean", "last_norm": "pooled"},
    "max": {"pooling": "max"},
    "cls": {"pooling": "cls"},
    "registers": {"registers": 2},
    "rope, cls, registers": {"position": "rope", "pooling": "cls", "registers": 3},
    "timm": {"bias": True, "layer_scale": 0.5, "qk_norm": False, "norm_eps": 1e-6, "last_norm": "none"},
    "qkv_bias": {"qkv_bias": True, "pooling": "mean"},
}
VARIANTS = POSITIONS | OTHERS


def model_of(config: NaViTConfig, variant: dict[str, Any]) -> NaViTConfig:
    return dataclasses.replace(config, position_grid=6, **variant)


def some_packs(draw: Draw) -> list[list[Any]]:
    first = [draw(5, 3, 0), draw(3, 5, 1, keep=9), draw(1, 1, 2), draw(4, 4, 3, seed=1)]
    return [first, [], [draw(3, 5, 4, seed=2), draw(8, 2, 1, keep=15)]]


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("backend", ["split", "dense"])
def test_an_image_in_a_pack_equals_the_image_alone_in_output_and_gradient(
    backend: str, variant: dict[str, Any], draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    model = build(model_of(dataclasses.replace(config, backend=backend), variant), torch.float64)
    packs, parameters = some_packs(draw), list(model.parameters())
    together = model(pack(packs))
    direction = torch.linspace(-1, 1, config.num_classes, dtype=torch.float64)
    for b, images in enumerate(packs):
        for j, image in enumerate(images):
            alone = model(pack([[image]]))[0, 0]
            assert alone.detach().norm() > 0.01
            assert_near(together[b, j], alone, 1e-12)
            in_pack = torch.autograd.grad(together[b, j] @ direction, parameters, retain_graph=True)
            by_itself = torch.autograd.grad(alone @ direction, parameters)
            assert_near(in_pack, by_itself, 1e-12)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_every_backend_gives_the_same_logits(
    variant: dict[str, Any], draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    batch = pack(some_packs(draw))
    with torch.no_grad():
        split, *others = (
            build(model_of(dataclasses.replace(config, backend=backend), variant))(batch)
            for backend in ("split", "dense", "flex")
        )
    for other in others:
        assert_near(other, split, 1e-5)


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "bfloat16 weights"])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_bfloat16_stays_close_to_float32(
    variant: dict[str, Any], autocast: bool, draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    config, batch = model_of(config, variant), pack(some_packs(draw))
    expected = build(config)(batch)
    low = build(config, torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = low(batch)
    assert logits.dtype == torch.bfloat16
    assert_near(logits.float(), expected, 0.15)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_only_the_coords_of_a_token_matter_not_its_slot(
    variant: dict[str, Any], draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    model, image, other = build(model_of(config, variant), torch.float64), draw(5, 3), draw(4, 4)
    order = np.random.default_rng(0).permutation(15)
    shuffled = dataclasses.replace(image, patches=image.patches[order], coords=image.coords[order])
    moved = dataclasses.replace(image, coords=image.coords[order])
    expected = model(pack([[other, image]]))
    assert_near(model(pack([[other, shuffled]])), expected, 1e-12)
    assert difference(model(pack([[other, moved]])), expected) > 1e-3


@pytest.mark.parametrize("variant", POSITIONS.values(), ids=POSITIONS)
def test_dropping_tokens_before_or_after_the_embedding_is_the_same(
    variant: dict[str, Any], draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    model, image = build(model_of(config, variant)), draw(7, 5)
    stays = np.sort(np.random.default_rng(0).permutation(35)[:11])
    dropped = dataclasses.replace(image, patches=image.patches[stays], coords=image.coords[stays])

    def embedded(batch: Any) -> torch.Tensor:
        coords = batch.coords[0, : batch.num_tokens]
        tokens = model.patch_embed(batch.patches[0, : batch.num_tokens])
        if model.pos_embed is None:
            return torch.cat([tokens, *(each.flatten(1) for each in axial_rope(coords.flip(-1).unbind(-1), 8, 1e4))], 1)
        return tokens + model.pos_embed(coords, batch.grids[0, :1].expand(len(coords), 2))

    before, after = embedded(pack([[dropped]])), embedded(pack([[image]]))[stays]
    assert_near(before, after, 1e-6)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("backend", ["split", "dense"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_batch_without_images_has_loss_zero_and_gradients_zero(
    reduction: str, backend: str, variant: dict[str, Any], pack: Pack, build: Build, config: NaViTConfig
) -> None:
    model = build(model_of(dataclasses.replace(config, backend=backend, drop_path=0.1), variant)).train()
    loss = model.loss(pack([[], []]), reduction)
    assert loss.item() == 0
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_learns_and_every_parameter_moves(
    variant: dict[str, Any], draw: Draw, pack: Pack, config: NaViTConfig
) -> None:
    torch.manual_seed(0)
    model, batch = NaViT(model_of(config, variant)), pack(some_packs(draw), columns=4)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = model.loss(batch)
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])] == []


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("backend", ["split", "dense"])
def test_values_in_padding_cannot_leak(
    backend: str, variant: dict[str, Any], draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    model = build(model_of(dataclasses.replace(config, backend=backend), variant))
    batch = pack(some_packs(draw))
    expected = model(batch)
    padding = batch.segment_ids == 0
    batch.patches[padding] = 255
    batch.coords[padding] = 97
    assert torch.equal(model(batch), expected)


@pytest.mark.parametrize("name", POSITIONS)
def test_a_grid_larger_than_any_table_works_wherever_the_position_extrapolates(
    name: str, draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    model, batch = build(model_of(config, POSITIONS[name])), pack([[draw(40, 2), draw(3, 3)]], slots=100)
    if name.startswith("absolute"):
        with pytest.raises(ValueError, match=r"40 patches per side.*end at max_grid 16; raise max_grid"):
            model(batch)
    else:
        assert model(batch).isfinite().all()


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_pooling_is_over_the_tokens_of_the_image_and_no_others(
    pooling: str, draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    changes: dict[str, Any] = {"pooling": pooling, "registers": 2}
    model, batch = (
        build(model_of(config, changes), torch.float64),
        pack([[draw(5, 3), draw(4, 4)], [draw(1, 1), draw(2, 6)]]),
    )
    features = model.features(batch)
    each = [t.mean(0) if pooling == "mean" else t.amax(0) for t in features.tokens.split(batch.lengths)]
    torch.testing.assert_close(features.pooled[batch.image_mask], torch.stack(each))
    torch.testing.assert_close(model.head(features.pooled[batch.image_mask]), model(batch)[batch.image_mask])
