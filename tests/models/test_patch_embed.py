from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from patchnpack.models.patch_embed import PatchEmbed, pi_resize, resize_matrix
from tests.closeness import assert_near, difference

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
    assert_near(folded, explicit, tolerance)
    direction = torch.linspace(-1, 1, folded.numel(), dtype=dtype).view_as(folded)
    assert_near(
        torch.autograd.grad(folded, list(layer.parameters()), direction),
        torch.autograd.grad(explicit, list(layer.parameters()), direction),
        tolerance,
    )


def test_checkpoints_do_not_depend_on_the_normalisation() -> None:
    assert set(embed().state_dict()) == {"weight", "bias"}


def test_padding_at_the_edges_counts_as_pixels_of_value_zero() -> None:
    layer = embed(torch.float64)
    black = torch.full((1, P * P, 3), 0.0, dtype=torch.float64)
    normalised = (black - torch.tensor(MEAN).double()) / torch.tensor(STD).double()
    out = layer(torch.zeros(1, P * P * 3, dtype=torch.uint8))
    assert_near(out, F.linear(normalised.flatten(1), layer.weight, layer.bias), 1e-6)


def test_an_image_of_the_mean_colour_gives_the_bias_in_low_precision_too() -> None:
    layer = embed(mean=(0.2, 0.4, 0.6))
    mean_colour = torch.tensor([51, 102, 153], dtype=torch.uint8).repeat(P * P)[None]
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(mean_colour)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float()[0], layer.bias, rtol=0.02, atol=0.01)


GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "pi_resize.npz"
SIZES = (8, 10, 12, 15, 20, 24, 30, 32, 40, 48)


@pytest.mark.parametrize("S", SIZES)
@pytest.mark.parametrize(("mode", "recorded"), [("bilinear", "flexi"), ("bicubic", "timm")])
def test_resized_weights_equal_those_recorded_from_timm(mode: str, recorded: str, S: int) -> None:
    with np.load(GOLDEN) as arrays:
        weight, expected = (torch.from_numpy(arrays[name]).permute(0, 2, 3, 1) for name in ("w", f"{recorded}_{S}"))
    resized = pi_resize(weight.flatten(1), 16, S, mode)
    assert_near(resized, expected.flatten(1), 2e-5)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("S", [P, 5, 7, 8, 13, 32])
def test_a_patch_resized_to_a_larger_size_keeps_its_token(S: int, mode: str) -> None:
    generator = torch.Generator().manual_seed(S)
    weight, patch = (torch.randn(5, P * P * 3, generator=generator, dtype=torch.float64) for _ in range(2))
    B = torch.from_numpy(resize_matrix(P, S, mode))
    larger = torch.einsum("ya,xb,nabc->nyxc", B, B, patch.view(5, P, P, 3)).flatten(1)
    before, after = patch @ weight.T, larger @ pi_resize(weight, P, S, mode).T
    assert_near(after, before, 1e-6)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("old", "new"), [(4, 4), (4, 7), (16, 40), (7, 4), (16, 5), (40, 16)])
def test_the_resize_equals_that_of_torch(old: int, new: int, mode: str) -> None:
    image = torch.randn(1, 1, old, old, dtype=torch.float64)
    expected = F.interpolate(image, size=(new, new), mode=mode, antialias=mode == "bicubic")
    B = torch.from_numpy(resize_matrix(old, new, mode))
    assert_near(B @ image @ B.T, expected, 2e-6)


def test_the_weights_for_a_smaller_size_are_the_least_squares_solution() -> None:
    weight, B = torch.randn(3, 64, dtype=torch.float64), torch.from_numpy(resize_matrix(8, 5, "bilinear"))
    both = torch.kron(B, B)  # (25, 64): the resize of a flat patch
    solution = torch.linalg.lstsq(both.T, weight.T).solution.T
    assert_near(pi_resize(weight, 8, 5), solution, 1e-5)


@pytest.mark.parametrize("S", [3, 4, 9])
def test_normalisation_folds_in_at_every_patch_size(S: int) -> None:
    layer, patches = embed(torch.float64), torch.randint(0, 256, (7, S * S * 3), dtype=torch.uint8)
    pixels = (patches.double().view(7, -1, 3) / 255 - torch.tensor(MEAN).double()) / torch.tensor(STD).double()
    expected = F.linear(pixels.flatten(1), pi_resize(layer.weight, P, S), layer.bias)
    assert_near(layer(patches), expected, 1e-5)


def test_resized_weights_reach_the_weight_with_a_gradient_after_inference_too() -> None:
    layer, patches = embed(), torch.randint(0, 256, (7, 11 * 11 * 3), dtype=torch.uint8)
    with torch.inference_mode():
        layer(patches)
    layer(patches).square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().sum() > 0


def test_weights_are_resized_from_the_original_size_not_through_an_intermediate_one() -> None:
    layer = embed()
    outputs = [layer(torch.full((1, S * S * 3), 90, dtype=torch.uint8)) for S in (9, 2, 9)]
    assert torch.equal(outputs[0], outputs[2])
    chained = pi_resize(pi_resize(layer.weight, P, 2), 2, 9)
    assert difference(chained, pi_resize(layer.weight, P, 9)) > 0.1
