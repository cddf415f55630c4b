"""The compiled choice of the patches with the most detail."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def _keep_most(detail: np.ndarray, grid_w: int, coords: np.ndarray, first: int, keep: int) -> None:
    """Write the positions of the `keep` patches with the largest `detail`, in raster order, to `coords`."""
    chosen = np.zeros(len(detail), np.bool_)
    chosen[np.argsort(-detail, kind="mergesort")[:keep]] = True
    slot = first
    for token in range(len(detail)):
        if chosen[token]:
            coords[slot, 0], coords[slot, 1] = token % grid_w, token // grid_w
            slot += 1


@njit(nogil=True, cache=True)
def choose_detailed(
    pixels: np.ndarray, patch: int, grid_w: int, grid_h: int, coords: np.ndarray, first: int, keep: int
) -> None:
    """Write the grid positions of the `keep` patches with the most detail to `coords` (n, 2), from `first` on.

    The detail of a patch is the variance of its pixels, summed over channels; padding does not count. The positions
    are in raster order, and of equal patches the earlier ones are kept. `pixels` is (H, W, C), of whole numbers; for
    float32 see `choose_detailed_fractions`.
    """
    height, width, channels = pixels.shape
    top, left = max(0, height - grid_h * patch) // 2, max(0, width - grid_w * patch) // 2
    detail = np.empty(grid_w * grid_h, np.float64)
    for token in range(len(detail)):
        first_row, first_column = top + token // grid_w * patch, left + token % grid_w * patch
        last_row, last_column = min(first_row + patch, height), min(first_column + patch, width)
        count, spread = np.int64(max(0, last_row - first_row) * max(0, last_column - first_column)), np.int64(0)
        for channel in range(channels):
            total, squares = np.int64(0), np.int64(0)  # whole numbers, so that every machine keeps the same patches
            for row in range(first_row, last_row):
                for column in range(first_column, last_column):
                    value = np.int64(pixels[row, column, channel])
                    total += value
                    squares += value * value
            spread += count * squares - total * total
        detail[token] = spread / (count * count) if count else -1.0
    _keep_most(detail, grid_w, coords, first, keep)


@njit(nogil=True, cache=True)
def choose_detailed_fractions(
    pixels: np.ndarray, patch: int, grid_w: int, grid_h: int, coords: np.ndarray, first: int, keep: int
) -> None:
    """`choose_detailed` for float32 pixels (H, W, C), whose sums are not exact."""
    height, width, channels = pixels.shape
    top, left = max(0, height - grid_h * patch) // 2, max(0, width - grid_w * patch) // 2
    detail = np.empty(grid_w * grid_h, np.float64)
    for token in range(len(detail)):
        first_row, first_column = top + token // grid_w * patch, left + token % grid_w * patch
        last_row, last_column = min(first_row + patch, height), min(first_column + patch, width)
        count = max(0, last_row - first_row) * max(0, last_column - first_column)
        detail[token] = 0.0 if count else -1.0
        for channel in range(channels if count else 0):
            total, squares = 0.0, 0.0
            # Far from 0, squares of the values would hide their differences; those of equal values are exactly 0.
            shift = np.float64(pixels[first_row, first_column, channel])
            for row in range(first_row, last_row):
                for column in range(first_column, last_column):
                    value = pixels[row, column, channel] - shift
                    total += value
                    squares += value * value
            detail[token] += squares / count - (total / count) * (total / count)
    _keep_most(detail, grid_w, coords, first, keep)
