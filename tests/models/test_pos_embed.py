from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from patchnpack.models import NaViT, NaViTConfig
from patchnpack.models.pos_embed import (
    AXIAL,
    POSITIONS,
    FactorizedPosEmbed,
    GridPosEmbed,
    LearnedGridPosEmbed,
    axial_rope,
    resampling,
)
from patchnpack.models.stream import Stream
from tests.closeness import assert_near

SIDES = [1, 2, 3, 5, 8, 9, 15, 16, 17, 24, 40, 97]


def raster(gw: int, gh: int) -> tuple[torch.Tensor, torch.Tensor]:
    y, x = torch.meshgrid(torch.arange(gh), torch.arange(gw), indexing="ij")
    return torch.stack([x, y], -1).view(-1, 2).int(), torch.tensor([[gw, gh]]).expand(gw * gh, 2).int()


@pytest.mark.parametrize("combine", ["add", "stack", "product"])
def test_the_embedding_of_a_token_is_its_columns_and_its_rows_combined(combine: str) -> None:
    embed = FactorizedPosEmbed((4, 4), 8, "absolute", combine)
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


def interpolated(G: int, side: int, mode: str, **how: bool) -> torch.Tensor:
    """The weights (side, G) with which torch resizes a column of G rows."""
    image = torch.eye(G, dtype=torch.float64)[None, :, :, None].expand(1, G, G, 2)  # resized along rows only
    return F.interpolate(image, size=(side, 2), mode=mode, **how)[0, ..., 0].T


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("G", [1, 2, 7, 16])
def test_resampling_weights_equal_those_of_torch_at_every_side(mode: str, G: int, antialias: bool) -> None:
    for side in SIDES:
        weights = resampling(torch.arange(side), torch.full((side,), side), G, mode, antialias=antialias)
        # a float32 coordinate of up to 16 is off by up to 1e-6
        assert_near(weights, interpolated(G, side, mode, antialias=antialias), 1e-5)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("G", [1, 2, 7, 16])
def test_resampling_weights_with_aligned_corners_equal_those_of_torch(mode: str, G: int) -> None:
    for side in SIDES:
        weights = resampling(
            torch.arange(side), torch.full((side,), side), G, mode, antialias=False, align_corners=True
        )
        assert_near(weights, interpolated(G, side, mode, align_corners=True), 1e-5)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("shape", [(8, 8), (4, 16), (5, 2)])
@pytest.mark.parametrize("resize", ["bilinear", "bicubic"])
def test_a_grid_of_positions_is_the_table_resized_to_each_images_grid(
    resize: str, shape: tuple[int, int], antialias: bool
) -> None:
    embed = GridPosEmbed(shape, 6, resize, antialias=antialias)
    shapes = [(5, 7), (8, 8), (14, 3), (1, 30), (40, 9), (16, 4)]
    coords, grids = (torch.cat(each) for each in zip(*(raster(gw, gh) for gw, gh in shapes), strict=True))
    together = embed(coords, grids).split([gw * gh for gw, gh in shapes])
    for (gw, gh), ours in zip(shapes, together, strict=True):
        # rows first, then columns: at a width of 1, torch 2.13 gives wrong values for both at once
        how = {"mode": resize, "antialias": antialias}
        rows = F.interpolate(embed.table.permute(2, 0, 1)[None], size=(gh, shape[1]), **how)  # type: ignore[arg-type]
        expected = F.interpolate(rows, size=(gh, gw), **how)[0].flatten(1).T  # type: ignore[arg-type]
        assert_near(ours, expected, 1e-5)


ALL = [(position, combine) for position in AXIAL for combine in ("add", "stack", "product")]
ALL = [pair for pair in ALL if pair[0] != "sinusoidal" or pair[1] == "stack"]
ALL += [(position, "auto") for position in POSITIONS if position not in AXIAL]
NEVER_FLAT = ("absolute", "sinusoidal", "fourier", "mlp")  # a table is flat beyond its outermost entries


def built(position: str | tuple[str, ...], combine: str, **changes: Any) -> NaViT:
    torch.manual_seed(0)
    fields: dict[str, Any] = {"num_classes": 2, "width": 48, "depth": 1, "max_grid": 512, "position_grid": (6, 9)}
    config = NaViTConfig(**fields | {"position": position, "position_combine": combine} | changes)
    return NaViT(config).eval()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("position", "combine"), ALL)
def test_positions_of_a_model_in_half_precision_are_computed_in_float32(
    position: str, combine: str, dtype: torch.dtype
) -> None:
    coords, grids = (torch.cat([a, b]) for a, b in zip(raster(256, 1), raster(19, 23), strict=True))
    model = built(position, combine).to(dtype)
    if model.pos_embed is None:  # rope: independent of the dtype that new tensors have
        expected = axial_rope(coords.flip(-1).unbind(-1), 16, 10_000.0)
        torch.set_default_dtype(dtype)
        try:
            angles = axial_rope(coords.flip(-1).unbind(-1), 16, 10_000.0)
        finally:
            torch.set_default_dtype(torch.float32)
        assert [each.dtype for each in angles] == [torch.float32] * 2
        assert_near(list(angles), list(expected), 1e-7)
        return
    positions, same_weights = model.pos_embed(coords, grids), copy.deepcopy(model.pos_embed).double()
    assert positions.dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        expected_positions = same_weights(coords, grids)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_near(positions, expected_positions, 1e-4 if position in ("fourier", "sinusoidal") else 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("position", "combine"), [pair for pair in ALL if pair[0] in NEVER_FLAT])
def test_every_column_of_a_wide_image_gets_its_own_position_in_half_precision(
    position: str, combine: str, dtype: torch.dtype
) -> None:
    model, seen = built(position, combine).to(dtype), list[torch.Tensor]()
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    coords, grids = raster(256, 1)
    segment_ids = torch.ones(1, 256, dtype=torch.int32)
    with torch.no_grad():
        patches = torch.zeros(1, 256, 16 * 16 * 3, dtype=torch.uint8)
        model.encode(patches, coords[None], grids[None, :1], Stream.dense(segment_ids, 1))
    assert seen[0].dtype == dtype
    assert len(seen[0].unique(dim=0)) == 256


@pytest.mark.parametrize("position", ["grid", "fractional", "sinusoidal", "fourier", "learned_grid", "mlp"])
def test_positions_that_keep_the_aspect_are_those_of_a_square_around_the_image(position: str) -> None:
    model = built(position, "auto", position_grid=6, position_keep_aspect=True)
    seen = list[torch.Tensor]()
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for gw, gh in ((7, 3), (7, 7)):
        coords, grids = raster(gw, gh)
        patches = torch.zeros(1, gw * gh, 16 * 16 * 3, dtype=torch.uint8)
        with torch.no_grad():
            stream = Stream.dense(torch.ones(1, gw * gh, dtype=torch.int32), 1)
            model.encode(patches, coords[None], grids[None, :1], stream)
    assert torch.equal(seen[0], seen[1][: 7 * 3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_grid": (4, 4, 4)}, r"position_grid is \(4, 4, 4\); give one number, or \(rows, columns\)"),
        ({"position_grid": (0, 4)}, r"position_grid is \(0, 4\)"),
        ({"position_align_corners": True}, "needs position 'grid' and position_antialias=False"),
        ({"position_align_corners": True, "position": ("grid", "learned_grid")}, "and position_antialias=False"),
        ({"position_align_corners": True, "position": "mlp"}, "or 'learned_grid'"),
        ({"position": ("grid", "grid")}, "give one, or several different ones"),
        ({"position": ()}, "give one, or several different ones"),
        ({"position": ("grid", "table")}, "position is 'table'; choose one of absolute, "),
        ({"position": ("mlp", "rope"), "width": 54}, "rope rotates pairs of features"),
        ({"position": ("mlp", "sinusoidal"), "position_combine": "add"}, "choose 'stack'"),
        ({"position_keep_aspect": True, "position": ("absolute", "rope")}, "positions relative to the sides"),
        ({"position_keep_aspect": True, "position_grid": (4, 16)}, "square table"),
        ({"position_keep_aspect": True, "position": "rope"}, "positions relative to the sides"),
        ({"block_norm": "post"}, "block_norm is 'post'; choose one of pre, res_post"),
    ],
)
def test_an_impossible_position_table_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NaViTConfig(num_classes=2, **({"position": "grid"} | changes))


def test_a_square_table_has_one_spelling() -> None:
    assert NaViTConfig(num_classes=2, position="grid", position_grid=(8, 8)).position_grid == 8


def test_aligned_corners_put_the_corner_patches_on_the_corner_entries_of_a_learned_grid() -> None:
    coords, grids = raster(7, 5)
    for aligned in (False, True):
        embed = LearnedGridPosEmbed((3, 4), 6, align_corners=aligned)
        with torch.no_grad():  # all weight on the upper left of the four entries
            down: Any = embed.weights[2]
            down.weight.zero_()
            down.bias.copy_(torch.tensor([100.0, 0.0, 0.0, 0.0]))
        x, y = coords.double().unbind(1)
        x, y = (x / 6 * 3, y / 4 * 2) if aligned else ((x + 0.5) / 7 * 4 - 0.5, (y + 0.5) / 5 * 3 - 0.5)
        assert_near(embed(coords, grids), embed.table[y.clamp(min=0).long(), x.clamp(min=0).long()], 1e-6)
        if aligned:  # x' (G - 1), with x' from 0 at the first patch to 1 at the last
            assert [float(x[0]), float(x[6]), float(y[-1])] == [0, 3, 2]


@pytest.mark.parametrize("aligned", [False, True])
def test_a_side_of_one_patch_or_one_entry_has_a_place_in_a_learned_grid(aligned: bool) -> None:
    for shape, (gw, gh) in (((1, 4), (3, 5)), ((4, 4), (1, 1)), ((2, 1), (1, 9))):
        embedded = LearnedGridPosEmbed(shape, 6, align_corners=aligned)(*raster(gw, gh))
        assert embedded.isfinite().all()


def test_the_field_aligns_the_corners_of_a_learned_grid_beside_other_positions() -> None:
    for position in ("learned_grid", ("learned_grid", "mlp")):
        aligned, half = (built(position, "auto", position_align_corners=value) for value in (True, False))
        half.load_state_dict(aligned.state_dict())
        assert aligned.pos_embed is not None
        assert half.pos_embed is not None
        assert not torch.allclose(aligned.pos_embed(*raster(5, 7)), half.pos_embed(*raster(5, 7)))


def test_several_positions_are_added() -> None:
    coords, grids = (torch.cat(each) for each in zip(raster(5, 7), raster(14, 3), strict=True))
    model = built(("learned_grid", "mlp", "sinusoidal"), "auto")
    assert model.config.position == ("learned_grid", "mlp", "sinusoidal")
    assert isinstance(model.pos_embed, torch.nn.ModuleDict)
    parts = [part(coords, grids) for part in model.pos_embed.values()]
    assert [type(part).__name__ for part in model.pos_embed.values()] == [
        "LearnedGridPosEmbed",
        "CoordinateMLP",
        "FactorizedPosEmbed",
    ]
    assert_near(model.pos_embed(coords, grids), parts[0] + parts[1] + parts[2], 1e-6)


def test_a_table_is_added_and_rope_rotates_as_well() -> None:
    both, table = built(("grid", "rope"), "auto"), built("grid", "auto")
    table.load_state_dict(both.state_dict())  # rope has no weights, and one added embedding keeps its names
    coords, grids = raster(4, 3)
    stream = Stream.dense(torch.ones(1, 12, dtype=torch.int32), 1)
    patches = torch.zeros(1, 12, 16 * 16 * 3, dtype=torch.uint8)
    with torch.no_grad():
        same, other = (model.encode(patches, coords[None], grids[None, :1], stream)[0] for model in (both, table))
    assert not torch.allclose(same, other)
    seen = list[torch.Tensor]()
    for model in (both, table):
        model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        model.encode(patches, coords[None], grids[None, :1], stream)
    assert torch.equal(*seen)


def test_one_position_has_one_spelling() -> None:
    assert NaViTConfig(num_classes=2, position=("grid",)).position == "grid"
    assert built(("grid",), "auto").state_dict().keys() == built("grid", "auto").state_dict().keys()
