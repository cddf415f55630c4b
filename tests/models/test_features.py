from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from patchnpack.models import NaViT, NaViTConfig, token_maps

Draw = Callable[..., Any]
Pack = Callable[..., Any]
Build = Callable[..., Any]


def some_packs(draw: Draw) -> list[list[Any]]:
    first = [draw(5, 3, 0), draw(3, 5, 1, keep=9), draw(1, 1, 2), draw(4, 4, 3, seed=1)]
    return [first, [], [draw(3, 5, 4, seed=2), draw(8, 2, 1, keep=15)]]


@pytest.mark.parametrize(
    "changes", [{}, {"pooling": "cls", "registers": 2}, {"pooling": "mean", "last_norm": "pooled"}]
)
@pytest.mark.parametrize("backend", ["split", "dense"])
def test_features_are_in_the_batchs_order_and_equal_those_of_each_image_alone(
    backend: str, changes: dict[str, Any], draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    model = build(dataclasses.replace(config, backend=backend, **changes), torch.float64)
    packs = some_packs(draw)
    batch = pack(packs)
    features = model.features(batch)
    assert features.tokens.shape == (batch.num_tokens, config.width)
    assert features.cu_seqlens.tolist() == batch.cu_seqlens.tolist()
    assert not features.pooled[~batch.image_mask].any()
    each = zip(features.tokens.split(batch.lengths), features.pooled[batch.image_mask], strict=True)
    for image, (tokens, pooled) in zip((image for images in packs for image in images), each, strict=True):
        alone = model.features(pack([[image]]))
        torch.testing.assert_close(tokens, alone.tokens)
        torch.testing.assert_close(pooled, alone.pooled[0, 0])
    torch.testing.assert_close(model.head(features.pooled)[batch.image_mask], model(batch)[batch.image_mask])


def test_a_token_map_holds_each_token_at_its_place_and_masks_dropped_ones(draw: Draw, pack: Pack) -> None:
    packs = some_packs(draw)
    batch = pack(packs)
    tokens = batch.patches.flatten(0, 1)[batch.token_index].float().requires_grad_()
    maps = token_maps(tokens, batch)
    for image, its, picture in zip((i for images in packs for i in images), maps, batch.images(), strict=True):
        gw, gh = image.grid
        assert its.features.shape == (gh, gw, tokens.shape[1])
        assert its.mask.sum() == len(image.coords)
        for (x, y), patch in zip(image.coords.tolist(), image.patches, strict=True):
            assert its.mask[y, x]
            assert its.features[y, x].tolist() == patch.tolist()
        assert not its.features[~its.mask].any()
        P = picture.patch_size
        pixels = its.features.detach().unflatten(-1, (P, P, 3)).transpose(1, 2).reshape(gh * P, gw * P, 3)
        assert pixels.byte().numpy().tolist() == picture.pixels().tolist()
    (gradient,) = torch.autograd.grad(torch.stack([each.features.sum() for each in maps]).sum(), tokens)
    assert torch.equal(gradient, torch.ones_like(tokens))


def test_a_batch_without_images_has_no_maps_and_other_tokens_are_refused(
    draw: Draw, pack: Pack, config: NaViTConfig
) -> None:
    empty = pack([[], []])
    assert token_maps(NaViT(config).features(empty).tokens, empty) == []
    with pytest.raises(ValueError, match=r"16 token features for a batch of 15 tokens.*features\(batch\)\.tokens"):
        token_maps(torch.zeros(16, 8), pack([[draw(5, 3)]]))
