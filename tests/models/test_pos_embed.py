from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from patchnpack.models.pos_embed import FactorizedPosEmbed, GridPosEmbed, resampling
from tests.closeness import assert_near

SIDES = [1, 2, 3, 5, 8, 9, 15, 16, 17, 24, 40, 97]


def raster(gw: int, gh: int) -> tuple[torch.Tensor, torch.Tensor]:
    y, x = torch.meshgrid(torch.arange(gh), torch.arange(gw), indexing="ij")
    return torch.stack([x, y], -1).view(-1, 2).int(), torch.tensor([[gw, gh]]).expand(gw * gh, 2).int()


@pytest.mark.parametrize("combine", ["add", "stack", "product"])
def test_the_embedding_of_a_token_is_its_columns_and_its_rows_combined(combine: str) -> None:
    embed = FactorizedPosEmbed(4, 8, "absolute", combine)
    coords = torch.tensor([[0, 0], [3, 1], [1, 3]], dtype=torch.int32)
    combined: dict[str, Callable[[int, int], torch.Tensor]] = {
        "add": lambda x, y: embed.x[x] + embed.y[y],
        "stack": lambda x, y: torch.cat([embed.x[x], embed.y[y]]),
        "product": lambda x, y: embed.x[x] * embed.y[y],
    }
    expected = combined[combine]
    out = embed(coords, torch.full((3, 2), 4))
    torch.testing.assert_close(out, torch.stack([expected(x, y) for x, y in coords.tolist()]))
    assert out.shape == (3, 8)


@pytest.mark.parametrize("mode", ["linear", "bilinear", "bicubic"])
@pytest.mark.parametrize("G", [2, 7, 16])
def test_resampling_weights_equal_those_of_torch_at_every_side(mode: str, G: int) -> None:
    for side in SIDES:
        weights = resampling(torch.arange(side), torch.full((side,), side), G, mode)
        table = torch.eye(G, dtype=torch.float64)
        if mode == "linear":
            expected = F.interpolate(table.T[None], size=side, mode="linear")[0].T
        else:
            image = table[None, :, :, None].expand(1, G, G, 2)  # resized along rows only
            expected = F.interpolate(image, size=(side, 2), mode=mode, antialias=True)[0, ..., 0].T
        assert_near(weights, expected, 1e-5)  # a float32 coordinate of up to 16 is off by up to 1e-6


@pytest.mark.parametrize("resize", ["bilinear", "bicubic"])
def test_a_grid_of_positions_is_the_table_resized_to_each_images_grid(resize: str) -> None:
    embed = GridPosEmbed(8, 6, resize)
    shapes = [(5, 7), (8, 8), (14, 3), (1, 30), (40, 9)]
    coords, grids = (torch.cat(each) for each in zip(*(raster(gw, gh) for gw, gh in shapes), strict=True))
    together = embed(coords, grids).split([gw * gh for gw, gh in shapes])
    for (gw, gh), ours in zip(shapes, together, strict=True):
        # rows first, then columns: at a width of 1, torch 2.13 gives wrong values for both at once
        rows = F.interpolate(embed.table.permute(2, 0, 1)[None], size=(gh, 8), mode=resize, antialias=True)
        expected = F.interpolate(rows, size=(gh, gw), mode=resize, antialias=True)[0].flatten(1).T
        assert_near(ours, expected, 1e-5)
