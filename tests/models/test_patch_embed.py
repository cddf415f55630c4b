from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from patchnpack.models.patch_embed import PatchEmbed

P, MEAN, STD = 4, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def embed(dtype: torch.dtype = torch.float32, **changes: Any) -> PatchEmbed:
    torch.manual_seed(0)
    layer = PatchEmbed(P, 3, 8, **{"mean": MEAN, "std": STD, **changes})
    torch.nn.init.normal_(layer.bias)
    return layer.to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
def test_folded_normalisation_equals_explicit_normalisation_in_output_and_gradient(
    dtype: torch.dtype, tolerance: float, draw: Callable[..., Any], pack: Callable[..., Any]
) -> None:
    batch = pack([[draw(5, 3), draw(2, 4)], [draw(6, 6)]])
    valid = batch.token_index
    layer = embed(dtype)
    folded = layer(batch.patches.flatten(0, 1)[valid])
    explicit = F.linear(batch.normalized_patches(MEAN, STD, dtype).flatten(0, 1)[valid], layer.weight, layer.bias)
    torch.testing.assert_close(folded, explicit, rtol=tolerance, atol=tolerance)
    direction = torch.linspace(-1, 1, folded.numel(), dtype=dtype).view_as(folded)
    for ours, theirs in zip(
        torch.autograd.grad(folded, list(layer.parameters()), direction),
        torch.autograd.grad(explicit, list(layer.parameters()), direction),
        strict=True,
    ):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


def test_checkpoints_do_not_depend_on_the_normalisation() -> None:
    assert set(embed().state_dict()) == {"weight", "bias"}


def test_black_edge_pixels_are_pixels_of_value_zero() -> None:
    layer = embed(torch.float64)
    black = torch.full((1, P * P, 3), 0.0, dtype=torch.float64)
    normalised = (black - torch.tensor(MEAN).double()) / torch.tensor(STD).double()
    out = layer(torch.zeros(1, P * P * 3, dtype=torch.uint8))
    torch.testing.assert_close(out, F.linear(normalised.flatten(1), layer.weight, layer.bias), rtol=1e-6, atol=1e-6)


def test_an_image_of_the_mean_colour_gives_the_bias_in_low_precision_too() -> None:
    layer = embed(mean=(0.2, 0.4, 0.6))
    mean_colour = torch.tensor([51, 102, 153], dtype=torch.uint8).repeat(P * P)[None]
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(mean_colour)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float()[0], layer.bias, rtol=0.02, atol=0.01)
