"""Position embeddings: functions of a token's coords and its image's grid."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

# T tokens, G rows of a table, D width, W features of one axis, E width of an attention head

AXIAL = ("absolute", "fractional", "sinusoidal", "fourier")
POSITIONS = (*AXIAL, "grid", "learned_grid", "mlp", "rope")
COMBINES = ("auto", "add", "stack", "product")
_OCTAVES = 128  # patches per side at which the shortest sinusoid resolves single patches


def resampling(index: torch.Tensor, sides: torch.Tensor, G: int, mode: str) -> torch.Tensor:
    """Weights (T, G) of row `index` (T,) of a table of G rows resampled to `sides` (T,) rows.

    Equal to `F.interpolate(..., align_corners=False)` from G to each side: "linear" without antialias, "bilinear" and
    "bicubic" with antialias. Computed on the device for all sides at once.

    >>> resampling(torch.tensor([0, 1, 3]), torch.tensor([4, 4, 4]), 2, "linear").tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.0, 1.0]]
    """
    scale = G / sides[:, None].float()
    centre = (index[:, None] + 0.5) * scale - 0.5
    away = (torch.arange(G, device=index.device) - centre).abs()
    if mode != "linear":  # antialias: where table rows are denser than patches, average the rows that a patch covers
        away = away / scale.clamp(min=1)
    if mode == "bicubic":  # Keys' cubic with a = -0.5
        near, far = (1.5 * away - 2.5) * away**2 + 1, ((-0.5 * away + 2.5) * away - 4) * away + 2
        weights = torch.where(away < 1, near, torch.where(away < 2, far, 0))
    else:
        weights = (1 - away).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


class FourierFeatures(nn.Module):
    """Learned Fourier features of one axis, r (T,) -> (T, W) (arXiv 2006.10739; NaViT, section 2.1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.randn(width // 2) * 4)
        self.out = nn.Linear(2 * (width // 2), width, bias=False)

    def forward(self, r: torch.Tensor) -> torch.Tensor:
        angles = 2 * math.pi * r[:, None] * self.frequencies
        return self.out(torch.cat([angles.cos(), angles.sin()], 1))


def sinusoids(r: torch.Tensor, width: int) -> torch.Tensor:
    """Fixed features (T, W) of r (T,) in [0, 1].

    Sines and cosines with geometric wavelengths from 2 to 2 / 128.
    """
    frequencies = math.pi * torch.logspace(0, math.log2(_OCTAVES), width // 2, 2.0, device=r.device)
    angles = r[:, None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


class FactorizedPosEmbed(nn.Module):
    """Factorised position embedding of column and row (NaViT, arXiv 2307.06304, section 2.1).

    An aspect ratio unseen in training uses columns and rows that were seen. The two embeddings are added, stacked (half
    the width each) or multiplied. `kind` chooses them:

    absolute     learned tables indexed by patch number; a grid beyond `max_grid` is refused
    fractional   learned tables of G rows over the whole side, interpolated linearly at r = (i + 1/2) / side
    sinusoidal   fixed sines and cosines of r
    fourier      learned Fourier features of r

    >>> embed = FactorizedPosEmbed(128, 8)
    >>> embed(torch.tensor([[0, 0], [1, 0]]), torch.tensor([[2, 1], [2, 1]])).shape
    torch.Size([2, 8])
    """

    def __init__(self, rows: int, width: int, kind: str = "absolute", combine: str = "add") -> None:
        super().__init__()
        self.kind, self.combine, self.rows = kind, combine, rows
        self.width = width // 2 if combine == "stack" else width
        self.x: Any
        self.y: Any
        if kind in ("absolute", "fractional"):
            self.x = nn.Parameter(torch.empty(rows, self.width))
            self.y = nn.Parameter(torch.empty(rows, self.width))
            # Patch embeddings have a std of about 0.5, and positions must be of that order: the sum of two tables has a
            # std of 0.28, and so must their product.
            for table in (self.x, self.y):
                nn.init.trunc_normal_(table, std=0.08**0.25 if combine == "product" else 0.2)
        elif kind == "fourier":
            self.x, self.y = FourierFeatures(self.width), FourierFeatures(self.width)

    def _axis(self, axis: int, coords: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        index, sides = coords[:, axis], grids[:, axis]
        if self.kind == "sinusoidal":
            return sinusoids((index + 0.5) / sides, self.width)
        embed = self.y if axis else self.x
        if self.kind == "absolute":
            return F.embedding(index, embed)
        if self.kind == "fractional":
            return resampling(index, sides, self.rows, "linear").to(embed.dtype) @ embed
        return embed(((index + 0.5) / sides).to(embed.frequencies.dtype))

    def forward(self, coords: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        """Embed coords (T, 2), (x, y), and grids (T, 2), (gw, gh), of any integer dtype as (T, D)."""
        x, y = self._axis(0, coords, grids), self._axis(1, coords, grids)
        if self.combine == "stack":
            return torch.cat([x, y], 1)
        return x * y if self.combine == "product" else x + y


class GridPosEmbed(nn.Module):
    """A learned G x G table, resized with antialias to each image's grid.

    See ViT, arXiv 2010.11929, and SigLIP 2, arXiv 2502.14786.

    The resize is separable, so the value at (x, y) is Wy[y] table Wx[x] with the matrices of `resampling`: the outer
    product of two rows of weights times the flat table. One matrix product serves images of all shapes; it costs as
    much as embedding patches of G*G values.

    >>> GridPosEmbed(16, 8)(torch.tensor([[0, 0], [4, 29]]), torch.tensor([[5, 3], [7, 30]])).shape
    torch.Size([2, 8])
    """

    def __init__(self, side: int, width: int, resize: str = "bilinear") -> None:
        super().__init__()
        self.side, self.resize = side, resize
        self.table = nn.Parameter(torch.empty(side, side, width))  # [y, x]
        nn.init.trunc_normal_(self.table, std=0.2)

    def forward(self, coords: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        x_TG, y_TG = (resampling(coords[:, i], grids[:, i], self.side, self.resize) for i in (0, 1))
        weights_TGG = y_TG[:, :, None] * x_TG[:, None]
        return weights_TGG.flatten(1).to(self.table.dtype) @ self.table.flatten(0, 1)


class LearnedGridPosEmbed(nn.Module):
    """A learned G x G table with learned interpolation.

    A token lies between four entries of the table, at (dx, dy) in [0, 1] from the upper left one. An MLP of (dx, dy)
    and a softmax give the weights of the four entries.

    >>> LearnedGridPosEmbed(16, 8)(torch.tensor([[0, 0], [4, 29]]), torch.tensor([[5, 3], [7, 30]])).shape
    torch.Size([2, 8])
    """

    def __init__(self, side: int, width: int, hidden: int = 16) -> None:
        super().__init__()
        self.side = side
        self.table = nn.Parameter(torch.empty(side, side, width))  # [y, x]
        nn.init.trunc_normal_(self.table, std=0.2)
        self.weights = nn.Sequential(nn.Linear(2, hidden), nn.GELU(), nn.Linear(hidden, 4))

    def forward(self, coords: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        G = self.side
        place = ((coords + 0.5) * (G / grids) - 0.5).clamp(0, G - 1)
        low = place.floor().long()
        x, y = torch.stack([low, (low + 1).clamp(max=G - 1)]).unbind(-1)  # each (2, T)
        neighbours = (y[:, None] * G + x[None]).flatten(0, 1)  # (4, T)
        weights = self.weights((place - low).to(self.table.dtype)).softmax(-1).T
        return (weights[..., None] * F.embedding(neighbours, self.table.flatten(0, 1))).sum(0)


class CoordinateMLP(nn.Module):
    """An MLP of each token's relative position (row / gh, column / gw).

    >>> CoordinateMLP(8)(torch.tensor([[0, 0], [4, 29]]), torch.tensor([[5, 3], [7, 30]])).shape
    torch.Size([2, 8])
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(2, width), nn.Linear(width, width)

    def forward(self, coords: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        c = (coords / grids).flip(-1)
        return self.down(F.gelu(self.up(c.to(self.up.weight.dtype))))


def axial_rope(coords: torch.Tensor, head_width: int, base: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (T, 1, E/2) of the angles of axial RoPE.

    See Heo et al., arXiv 2403.13298, section 3.1.

    The first half of the angles encodes rows, the second columns: the row or column number times base ** -(4k/E), for k
    from 0 to E/4 - 1.

    >>> cos, sin = axial_rope(torch.tensor([[2, 3]]), 8, 100.0)
    >>> [round(angle, 3) for angle in torch.atan2(sin, cos).flatten().tolist()]
    [3.0, 0.3, 2.0, 0.2]
    """
    bands = base ** -(torch.arange(head_width // 4, device=coords.device) / (head_width // 4))
    angles = (coords.flip(-1)[..., None] * bands).flatten(1)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotate features of x (T, H, E) by the angles of `axial_rope`; same dtype.

    Each pair (2i, 2i + 1) is rotated by one angle.
    """
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rope
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2).to(x.dtype)


def make_pos_embed(
    position: str, *, width: int, max_grid: int, side: int, combine: str, resize: str
) -> nn.Module | None:
    """Make the module that embeds coords (T, 2) and grids (T, 2); None for "rope"."""
    if position in AXIAL:
        return FactorizedPosEmbed(max_grid if position == "absolute" else side, width, position, combine)
    if position == "grid":
        return GridPosEmbed(side, width, resize)
    if position == "learned_grid":
        return LearnedGridPosEmbed(side, width)
    return CoordinateMLP(width) if position == "mlp" else None
