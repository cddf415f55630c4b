"""Position embeddings: functions of a token's coords and its image's grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

# T tokens, G rows or columns of a table, D width, W features of one axis, E width of an attention head

AXIAL = ("absolute", "fractional", "sinusoidal", "fourier")
POSITIONS = (*AXIAL, "grid", "learned_grid", "mlp", "rope")
COMBINES = ("auto", "add", "stack", "product")
_OCTAVES = 128  # patches per side at which the shortest sinusoid resolves single patches


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which positions are computed for weights of `dtype`: at least float32.

    In bfloat16 or float16, neighbouring patches of a large grid would get equal positions.
    """
    return torch.promote_types(dtype, torch.float32)


def centres(index: torch.Tensor, sides: torch.Tensor, G: int, align_corners: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Place of row `index` of `sides` rows among G rows, and rows of G per row.

    With `align_corners` it is x (G - 1) for x = index / (side - 1), else x G - 1/2 for x = (index + 1/2) / side.
    """
    scale = (G - 1) / (sides - 1).clamp(min=1) if align_corners else G / sides
    return index * scale if align_corners else (index + 0.5) * scale - 0.5, scale


def resampling(
    index: torch.Tensor,
    sides: torch.Tensor,
    G: int,
    mode: str = "bilinear",
    *,
    antialias: bool = True,
    align_corners: bool = False,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Weights (T, G) of row `index` (T,) of a table of G rows resampled to `sides` (T,) rows.

    Equal to `F.interpolate` from G rows to each side with the same arguments; `mode` is "bilinear" or "bicubic".
    `align_corners` is supported without antialias only. Computed on the device for all sides at once.

    >>> resampling(torch.tensor([0, 1, 3]), torch.tensor([4, 4, 4]), 2, antialias=False).tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.0, 1.0]]
    """
    assert not (antialias and align_corners)
    index, sides = index[:, None].to(dtype), sides[:, None].to(dtype)
    if G == 1:
        return torch.ones_like(index)
    centre, scale = centres(index, sides, G, align_corners)
    if mode == "bicubic" and not antialias:  # four rows, of which those beyond an edge repeat the row at the edge
        away = (torch.arange(-2, G + 2, device=index.device) - centre).abs()
        weights = _cubic(away, -0.75)
        first, last = (part.sum(1, keepdim=True) for part in (weights[:, :3], weights[:, -3:]))
        return torch.cat([first, weights[:, 3:-3], last], 1)
    away = (torch.arange(G, device=index.device) - centre).abs()
    if antialias:  # where table rows are denser than patches, average the rows that a patch covers
        away = away / scale.clamp(min=1)
    weights = _cubic(away, -0.5) if mode == "bicubic" else (1 - away).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


def _cubic(away: torch.Tensor, a: float) -> torch.Tensor:
    """Keys' cubic convolution kernel at distances of 0 or more."""
    near, far = ((a + 2) * away - (a + 3)) * away**2 + 1, ((a * away - 5 * a) * away + 8 * a) * away - 4 * a
    return torch.where(away < 1, near, torch.where(away < 2, far, 0))


class _Linear(nn.Linear):
    """A linear layer that computes in the dtype of its input, whatever that of its weights."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class FourierFeatures(nn.Module):
    """Learned Fourier features of one axis, r (T,) -> (T, W) (arXiv 2006.10739; NaViT, section 2.1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.randn(width // 2) * 4)
        self.out = nn.Linear(2 * (width // 2), width, bias=False)

    def forward(self, r: torch.Tensor) -> torch.Tensor:
        angles = 2 * math.pi * r[:, None] * self.frequencies.to(r.dtype)
        return F.linear(torch.cat([angles.cos(), angles.sin()], 1), self.out.weight.to(r.dtype))


def sinusoids(r: torch.Tensor, width: int) -> torch.Tensor:
    """Sines and cosines (T, W) of r (T,) in [0, 1], of wavelengths from 2 to 2 / 128."""
    exponents = torch.linspace(0, math.log2(_OCTAVES), width // 2, dtype=r.dtype, device=r.device)
    angles = r[:, None] * (math.pi * 2**exponents)
    return torch.cat([angles.sin(), angles.cos()], 1)


class FactorizedPosEmbed(nn.Module):
    """Factorised position embedding of column and row (NaViT, arXiv 2307.06304, section 2.1).

    An aspect ratio unseen in training uses columns and rows that were seen. The two embeddings are added, stacked (half
    the width each) or multiplied. `kind` chooses them:

    absolute     learned tables indexed by patch number; a grid beyond `max_grid` is refused
    fractional   learned tables over the whole side, interpolated linearly at r = (i + 1/2) / side
    sinusoidal   fixed sines and cosines of r
    fourier      learned Fourier features of r

    Args:
        rows: entries of the tables of rows and of columns, (rows, columns).

    >>> embed = FactorizedPosEmbed((128, 128), 8)
    >>> embed(torch.tensor([[0, 0], [1, 0]]), torch.tensor([[2, 1], [2, 1]])).shape
    torch.Size([2, 8])
    """

    def __init__(self, rows: tuple[int, int], width: int, kind: str = "absolute", combine: str = "add") -> None:
        super().__init__()
        self.kind, self.combine = kind, combine
        self.width = width // 2 if combine == "stack" else width
        self.x: Any
        self.y: Any
        if kind in ("absolute", "fractional"):
            # Patch embeddings have a std of about 0.5, and positions must be of that order: the sum of two tables has a
            # std of 0.28, and so must their product.
            std = 0.08**0.25 if combine == "product" else 0.2
            tables = (nn.init.trunc_normal_(torch.empty(n, self.width), std=std) for n in reversed(rows))
            self.x, self.y = map(nn.Parameter, tables)
        elif kind == "fourier":
            self.x, self.y = FourierFeatures(self.width), FourierFeatures(self.width)

    def _axis(self, axis: int, coords: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        index, sides = coords[:, axis], grids[:, axis]
        if self.kind == "sinusoidal":
            dtype = wide(torch.get_default_dtype())
            return sinusoids((index.to(dtype) + 0.5) / sides, self.width)
        embed = self.y if axis else self.x
        if self.kind == "fourier":
            return embed((index.to(wide(embed.frequencies.dtype)) + 0.5) / sides)
        table = embed.to(wide(embed.dtype))
        if self.kind == "absolute":
            return F.embedding(index, table)
        return resampling(index, sides, len(table), antialias=False, dtype=table.dtype) @ table

    def forward(self, coords: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        """Embed coords (T, 2), (x, y), and grids (T, 2), (gw, gh), of any integer dtype as (T, D)."""
        x, y = self._axis(0, coords, grids), self._axis(1, coords, grids)
        if self.combine == "stack":
            return torch.cat([x, y], 1)
        return x * y if self.combine == "product" else x + y


class GridPosEmbed(nn.Module):
    """A learned table of rows x columns, resized to each image's grid.

    See ViT, arXiv 2010.11929, and SigLIP 2, arXiv 2502.14786.

    The resize is separable, so the value at (x, y) is Wy[y] table Wx[x] with the matrices of `resampling`: the outer
    product of two rows of weights times the flat table. One matrix product serves images of all shapes; it costs as
    much as embedding patches of as many values as the table has entries.

    Args:
        shape: (rows, columns) of the table.
        resize, antialias, align_corners: as in `resampling`.

    >>> GridPosEmbed((16, 16), 8)(torch.tensor([[0, 0], [4, 29]]), torch.tensor([[5, 3], [7, 30]])).shape
    torch.Size([2, 8])
    """

    def __init__(
        self,
        shape: tuple[int, int],
        width: int,
        resize: str = "bilinear",
        *,
        antialias: bool = True,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.resize, self.antialias, self.align_corners = resize, antialias, align_corners
        self.table = nn.Parameter(nn.init.trunc_normal_(torch.empty(*shape, width), std=0.2))  # [y, x]

    def forward(self, coords: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        table = self.table.to(wide(self.table.dtype))
        how: dict[str, Any] = {"antialias": self.antialias, "align_corners": self.align_corners, "dtype": table.dtype}
        x_TG, y_TG = (
            resampling(coords[:, axis], grids[:, axis], table.shape[1 - axis], self.resize, **how) for axis in (0, 1)
        )
        weights_TGG = y_TG[:, :, None] * x_TG[:, None]
        return weights_TGG.flatten(1) @ table.flatten(0, 1)


class LearnedGridPosEmbed(nn.Module):
    """A learned table of rows x columns with learned interpolation.

    A token lies between four entries of the table (see `centres`), at (dx, dy) in [0, 1] from the upper left one. An
    MLP of (dx, dy) and a softmax give the weights of the four entries.

    >>> LearnedGridPosEmbed((16, 16), 8)(torch.tensor([[0, 0], [4, 29]]), torch.tensor([[5, 3], [7, 30]])).shape
    torch.Size([2, 8])
    """

    def __init__(self, shape: tuple[int, int], width: int, hidden: int = 16, *, align_corners: bool = False) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.table = nn.Parameter(nn.init.trunc_normal_(torch.empty(*shape, width), std=0.2))  # [y, x]
        self.weights = nn.Sequential(_Linear(2, hidden), nn.GELU(), _Linear(hidden, 4))

    def forward(self, coords: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        table, (rows, columns, _) = self.table.to(wide(self.table.dtype)), self.table.shape
        place = [
            centres(coords[:, axis].to(table.dtype), grids[:, axis], side, self.align_corners)[0].clamp(0, side - 1)
            for axis, side in enumerate((columns, rows))
        ]
        low = [each.floor().long() for each in place]
        x, y = (
            torch.stack([each, (each + 1).clamp(max=side - 1)]) for each, side in zip(low, (columns, rows), strict=True)
        )  # each (2, T)
        neighbours = (y[:, None] * columns + x[None]).flatten(0, 1)  # (4, T)
        offsets = torch.stack([each - first for each, first in zip(place, low, strict=True)], -1)
        weights = self.weights(offsets).softmax(-1).T
        return (weights[..., None] * F.embedding(neighbours, table.flatten(0, 1))).sum(0)


class CoordinateMLP(nn.Module):
    """An MLP of each token's relative position (row / gh, column / gw).

    >>> CoordinateMLP(8)(torch.tensor([[0, 0], [4, 29]]), torch.tensor([[5, 3], [7, 30]])).shape
    torch.Size([2, 8])
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = _Linear(2, width), _Linear(width, width)

    def forward(self, coords: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        c = (coords.to(wide(self.up.weight.dtype)) / grids).flip(-1)
        out: torch.Tensor = self.down(F.gelu(self.up(c)))
        return out


def axial_rope(places: Sequence[torch.Tensor], head_width: int, base: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (T, 1, E/2) of the angles of axial RoPE.

    See Heo et al., arXiv 2403.13298, section 3.1, and for frames Qwen2-VL, arXiv 2409.12191, section 2.1.

    An axis with n angles has the token's place on it times base ** -(k/n), for k from 0 to n - 1. Rows come first, then
    columns, then frames. One axis has all E/2 angles, two have half of them each. Of three, frames have a quarter,
    rounded up to an even number, and the others half of the rest each.

    Args:
        places: row and column, row, column and frame, or only the frame of each token, integers (T,) each.

    >>> cos, sin = axial_rope([torch.tensor([3]), torch.tensor([2])], 8, 100.0)
    >>> [round(angle, 3) for angle in torch.atan2(sin, cos).flatten().tolist()]
    [3.0, 0.3, 2.0, 0.2]
    """
    pairs, dtype = head_width // 2, wide(torch.get_default_dtype())
    frames = 2 * -(-pairs // 8)
    sizes = [(pairs - frames) // 2] * 2 + [frames] if len(places) == 3 else [pairs // len(places)] * len(places)
    bands = [base ** -(torch.arange(n, device=places[0].device).to(dtype) / n) for n in sizes]
    angles = torch.cat([place[:, None] * band for place, band in zip(places, bands, strict=True)], 1)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotate each pair (2i, 2i + 1) of features of x (T, H, E) by an angle of `axial_rope`."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rope
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2).to(x.dtype)


class SumPosEmbed(nn.ModuleDict):
    """The sum of several position embeddings."""

    def forward(self, coords: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        return torch.stack([embed(coords, grids) for embed in self.values()]).sum(0)


def make_pos_embed(config: Any) -> nn.Module | None:
    """Make the module of a `NaViTConfig` that embeds coords and grids, (T, 2), in at least float32; None for "rope"."""
    D, shape, align_corners = config.width, config.position_shape, config.position_align_corners
    embeds = dict[str, nn.Module]()
    for kind in config.positions:
        if kind in AXIAL:
            rows = (config.max_grid, config.max_grid) if kind == "absolute" else shape
            embeds[kind] = FactorizedPosEmbed(rows, D, kind, config.combine(kind))
        elif kind == "grid":
            how = {"antialias": config.position_antialias, "align_corners": align_corners}
            embeds[kind] = GridPosEmbed(shape, D, config.position_resize, **how)
        elif kind == "learned_grid":
            embeds[kind] = LearnedGridPosEmbed(shape, D, align_corners=align_corners)
        elif kind == "mlp":
            embeds[kind] = CoordinateMLP(D)
    return SumPosEmbed(embeds) if len(embeds) > 1 else next(iter(embeds.values()), None)
