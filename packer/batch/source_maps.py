"""Points and values of packed images in the pixels of their sources, and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike

from patchnpack.packer.checks import check_choice
from patchnpack.packer.geometry import Geometry, cut_off

# N images, T valid tokens, F values per token or cell, s x s cells per token, P patch size; an image has n tokens and a
# source of W x H pixels

Mode = Literal["nearest", "bilinear"]


class Placed(Protocol):
    """What this module needs of a `PackedBatch`."""

    boxes: torch.Tensor
    sizes: torch.Tensor
    flipped: torch.Tensor
    grids: torch.Tensor
    coords: torch.Tensor
    token_index: torch.Tensor
    lengths: list[int]
    keys: list[list[str]]
    patch_size: int

    def geometries(self) -> list[Geometry]: ...


def map_points(batch: Placed, points: Any, image: Any, mapping: Callable[..., Any]) -> Any:
    """Map points (n, 2), or boxes (n, 4), by a function of `packer.geometry`; see `PackedBatch.to_image`."""
    is_tensor = isinstance(points, torch.Tensor)
    given = points if is_tensor else torch.from_numpy(np.asarray(points, np.float64))
    given = given.to(torch.promote_types(given.dtype, torch.float32))
    if given.ndim != 2 or given.shape[1] not in (2, 4):
        raise ValueError(
            f"points have the shape {tuple(given.shape)}; give (n, 2), the x and y of each, or (n, 4), the left, top, "
            "right and bottom of boxes"
        )
    columns = _columns_of(batch, image, len(given))

    def of_images(values: torch.Tensor) -> torch.Tensor:
        return values.flatten(0, 1)[columns].to(given.device, non_blocking=True)

    box, size, flip = of_images(batch.boxes), of_images(batch.sizes), of_images(batch.flipped)
    offset = cut_off(size, of_images(batch.grids), batch.patch_size)
    places = [values.to(given.dtype) for values in (box, size, flip, offset)]
    if given.shape[1] == 2:
        moved = mapping(given, *places)
    else:
        corners = torch.stack([mapping(given[:, :2], *places), mapping(given[:, 2:], *places)])
        moved = torch.cat([corners.amin(0), corners.amax(0)], 1)  # a mirror exchanges left and right
    return moved if is_tensor else moved.numpy()


def _columns_of(batch: Placed, image: int | ArrayLike | torch.Tensor, n: int) -> int | torch.Tensor:
    """Numbers of the columns among all B * K, of one image or of each of n, by their flat numbers."""
    K, counts = batch.grids.shape[1], [len(keys) for keys in batch.keys]
    # From the keys, which lie on the host: the mask would make a GPU wait.
    columns = np.concatenate([b * K + np.arange(count) for b, count in enumerate(counts)])
    if isinstance(image, int | np.integer) and not isinstance(image, bool):
        if not -len(columns) <= image < len(columns):
            raise ValueError(f"image is {image}; the batch has {len(columns)} images, counted from 0")
        return int(columns[image])
    number = image if isinstance(image, torch.Tensor) else torch.from_numpy(np.asarray(image))
    if number.is_floating_point() or number.dtype == torch.bool or number.shape not in ((), (n,)):
        raise ValueError(
            f"image is {str(number.dtype).removeprefix('torch.')} {tuple(number.shape)}; give one number, or one per "
            f"point, int ({n},)"
        )
    return torch.from_numpy(columns).to(number.device)[number.long()].to(batch.grids.device)


def lay_back(batch: Placed, values: torch.Tensor, mode: Mode, outside: float) -> list[torch.Tensor]:
    """Lay values of the valid tokens back to the pixels of each source; see `PackedBatch.maps`.

    >>> from patchnpack.packer.batch.packed_batch import PackedBatch
    >>> batch = PackedBatch(
    ...     patches=torch.zeros(1, 2, 12, dtype=torch.uint8),
    ...     segment_ids=torch.tensor([[1, 1]]),
    ...     coords=torch.tensor([[[0, 0], [1, 0]]]),
    ...     grids=torch.tensor([[[2, 1]]]),
    ...     image_sizes=torch.tensor([[[3, 2]]]),
    ...     sizes=torch.tensor([[[3, 2]]]),
    ...     image_mask=torch.tensor([[True]]),
    ...     labels=torch.tensor([[0]]),
    ...     rows=torch.tensor([[0]]),
    ...     keys=[["a"]],
    ...     patch_size=2,
    ... )
    >>> lay_back(batch, torch.tensor([7.0, 9.0]), "nearest", -1.0)[0].tolist()
    [[7.0, 7.0, 9.0], [7.0, 7.0, 9.0]]
    """
    check_choice("mode", mode, get_args(Mode))
    tokens, s = len(batch.token_index), values.shape[1] if values.ndim > 2 else 1
    if not 1 <= values.ndim <= 4 or len(values) != tokens:
        raise ValueError(
            f"values have the shape {tuple(values.shape)}; give those of the {tokens} valid tokens, (T, F) or (T,), or "
            "of their cells, (T, s, s, F) or (T, s, s): of (B, L, F), take values.flatten(0, 1)[batch.token_index]"
        )
    if values.ndim > 2 and (values.shape[2] != s or s == 0 or batch.patch_size % s):
        raise ValueError(
            f"values have {s} x {values.shape[2]} cells per token of {batch.patch_size} pixels; give s x s cells, s a "
            "divisor of the patch size"
        )
    kind = str(values.dtype).removeprefix("torch.")
    if not values.is_floating_point() and mode == "bilinear":
        raise ValueError(f"values are {kind}, which mode 'bilinear' cannot mix; use mode='nearest', or values.float()")
    if not values.is_floating_point() and (not math.isfinite(outside) or outside != int(outside)):
        raise ValueError(f"outside is {outside}, which values of {kind} cannot hold; give a whole number, such as 255")
    coords = batch.coords.flatten(0, 1)[batch.token_index].long()
    geometries, lengths = batch.geometries(), batch.lengths
    if values.ndim > 2:  # cells are tokens of smaller patches, of a finer grid
        geometries = [
            replace(each, grid=(each.grid[0] * s, each.grid[1] * s), patch_size=each.patch_size // s)
            for each in geometries
        ]
        steps = torch.arange(s, device=coords.device)
        coords = (coords[:, None] * s + torch.cartesian_prod(steps, steps).view(-1, 2).flip(1)).flatten(0, 1)
        values, lengths = values.flatten(0, 2), [n * s * s for n in lengths]
    split = zip(geometries, coords.split(lengths), values.split(lengths), strict=True)
    return [_of_image(geometry, here, own, mode, outside) for geometry, here, own in split]


def _of_image(
    geometry: Geometry, coords: torch.Tensor, values: torch.Tensor, mode: Mode, outside: float
) -> torch.Tensor:
    """Lay the values (n, F) of one image's tokens back to its source, (H, W, F)."""
    (W, H), (gw, gh), P, device = geometry.source, geometry.grid, geometry.patch_size, values.device
    out = values.new_full((H, W, *values.shape[1:]), outside)
    # Each axis is mapped by itself: the centres of all columns, and of all rows.
    centres = geometry.to_image(np.arange(max(W, H))[:, None] + np.full(2, 0.5))
    columns, rows = centres[:W, 0], centres[:H, 1]
    (across, columns), (down, rows) = (
        _visible(axis, extent) for axis, extent in zip((columns, rows), geometry.extent, strict=True)
    )
    if not len(columns) or not len(rows):
        return out
    slot = torch.full((gh, gw), -1, device=device)
    slot[coords[:, 1], coords[:, 0]] = torch.arange(len(coords), device=device)
    if mode == "nearest":
        x, y = (torch.from_numpy((axis // P).astype(np.int64)).to(device) for axis in (columns, rows))
        token = slot[y][:, x]
        laid, known = values[token.clamp(min=0)], token >= 0
    else:
        last_x, last_y = (-(-extent // P) - 1 for extent in geometry.extent)  # further tokens are all padding
        around = _neighbours(columns, P, last_x, values), _neighbours(rows, P, last_y, values)
        laid, known = _mixed(slot, values, *around)
    tail = (1,) * (values.ndim - 1)
    out[down, across] = laid.masked_fill(~known.view(*known.shape, *tail), outside)
    return out


def _visible(centres: np.ndarray, extent: int) -> tuple[slice, np.ndarray]:
    """The pixels of one axis whose centres lie in the packed image, and these centres there."""
    inside = np.flatnonzero((centres >= 0) & (centres < extent))
    part = slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0)
    return part, centres[part]


def _neighbours(
    centres: np.ndarray, P: int, last: int, values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The tokens on both sides of each pixel along one axis, and the share of the second one."""
    place = np.clip(centres / P - 0.5, 0, last)
    before = np.floor(place).astype(np.int64)
    share = torch.from_numpy(place - before).to(values.device, values.dtype)
    after = np.minimum(before + 1, last)
    return torch.from_numpy(before).to(values.device), torch.from_numpy(after).to(values.device), share


def _mixed(
    slot: torch.Tensor, values: torch.Tensor, x: tuple[torch.Tensor, ...], y: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of pixels between tokens, and which of them have one; a token that was dropped has no weight."""
    present = (slot >= 0).to(values.dtype)
    tail = (1,) * (values.ndim - 1)
    grid = values[slot.clamp(min=0)] * present.view(*present.shape, *tail)

    def between(grid: torch.Tensor) -> torch.Tensor:
        after_y, after_x = (share.view(-1, *(1,) * (grid.ndim - 1)) for share in (y[2], x[2]))
        lines = grid[y[0]] * (1 - after_y) + grid[y[1]] * after_y
        lines = lines.transpose(0, 1)
        return (lines[x[0]] * (1 - after_x) + lines[x[1]] * after_x).transpose(0, 1)

    weight = between(present)
    known = weight > 0
    return between(grid) / weight.where(known, torch.ones_like(weight)).view(*weight.shape, *tail), known
