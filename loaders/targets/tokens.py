"""Cutting a dense target to the tokens of its image: all values of each token, the most frequent one, or the mean."""

from __future__ import annotations

import numpy as np

from patchnpack.packer import _kernels
from patchnpack.packer.geometry import Geometry

# h rows, w columns, C values per pixel, P patch size, k kept tokens

_FEW = 256  # different values that are counted without sorting them first


def framed(values: np.ndarray, geometry: Geometry, fill: float) -> np.ndarray:
    """Cut or pad values (h, w, C) to the image's grid: (gh * P, gw * P, C), with `fill` beyond the image."""
    (left, top), patch = geometry.offset, geometry.patch_size
    across, down = geometry.grid[0] * patch, geometry.grid[1] * patch
    seen = values[top : top + down, left : left + across]
    if seen.shape[:2] == (down, across):
        return seen
    out = np.full((down, across, values.shape[2]), fill, values.dtype)
    out[: seen.shape[0], : seen.shape[1]] = seen
    return out


def cut(
    values: np.ndarray, geometry: Geometry, fill: float, coords: np.ndarray, out: np.ndarray, first: int, keep: int
) -> None:
    """Write all values of the kept tokens to `out[first : first + keep]`, in the order of the image's own patches.

    Args:
        values: (h, w, C).
        geometry: of the image.
        fill: what stands beyond the image.
        coords: int32 (n, 2), grid positions of all slots.
        out: (n, P * P * C) of the type of `values`, contiguous.
        first, keep: the slots of the image.
    """
    pixels = np.ascontiguousarray(framed(values, geometry, fill))
    pixels = pixels.view(np.uint8).reshape(*pixels.shape[:2], -1)
    _kernels.place_image(
        pixels, geometry.patch_size, *geometry.grid, coords, out.view(np.uint8).reshape(len(out), -1), first, keep
    )


def majority(values: np.ndarray, geometry: Geometry, fill: int, coords: np.ndarray) -> np.ndarray:
    """Return the most frequent value of each token, (k,); of equally frequent ones the smallest.

    What lies beyond the image does not count.

    Args:
        values: whole numbers (h, w, 1).
        geometry, fill: as in `cut`.
        coords: int32 (k, 2), grid positions of the tokens.
    """
    tokens, seen = _of_tokens(values, geometry, fill, coords)
    tokens = tokens[..., 0]
    inside = tokens[seen]
    if not len(inside):
        return np.full(len(coords), fill, values.dtype)
    low, high = int(inside.min()), int(inside.max())
    if high - low < _FEW:
        distinct, codes = np.arange(low, high + 1).astype(values.dtype), inside.astype(np.int64) - low
    else:
        distinct, codes = np.unique(inside, return_inverse=True)
    token = np.nonzero(seen)[0]
    counts = np.bincount(token * len(distinct) + codes, minlength=len(coords) * len(distinct))
    chosen: np.ndarray = distinct[counts.reshape(len(coords), -1).argmax(1)]
    chosen[~seen.any(1)] = fill
    return chosen


def means(values: np.ndarray, geometry: Geometry, fill: float, coords: np.ndarray) -> np.ndarray:
    """Return the mean of each token's values, (k, C), rounded where the type is whole; see `majority`."""
    tokens, seen = _of_tokens(values, geometry, fill, coords)
    count = seen.sum(1)[:, None]
    sums = np.where(seen[..., None], tokens, 0).sum(1, dtype=np.float64)
    mean = np.where(count, sums / np.maximum(count, 1), fill)
    rounded: np.ndarray = (mean if values.dtype.kind == "f" else np.rint(mean)).astype(values.dtype)
    return rounded


def _of_tokens(
    values: np.ndarray, geometry: Geometry, fill: float, coords: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The values of each token (k, P * P, C), and which of them lie in the image, bool (k, P * P)."""
    (gw, gh), patch, (left, top) = geometry.grid, geometry.patch_size, geometry.offset
    x, y = coords.T
    patches = framed(values, geometry, fill).reshape(gh, patch, gw, patch, -1)
    tokens = patches[y, :, x]
    rows = np.arange(patch) < (values.shape[0] - top - y * patch)[:, None]
    columns = np.arange(patch) < (values.shape[1] - left - x * patch)[:, None]
    seen = rows[:, :, None] & columns[:, None, :]
    return tokens.reshape(len(coords), patch * patch, -1), seen.reshape(len(coords), -1)
