"""`Geometry`: where the pixels of a source come to lie in its packed image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

# P patch size; n points; sides and points in pixels, (x, y) in that order


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the pixels of an upright source come to lie in one packed image.

    ```
    source   -- box -->   cut out   -- resize -->   size   -- mirror, cut off `offset` -->   packed image
    ```

    Points are continuous: pixel i covers [i, i + 1), so its centre is i + 0.5. In the packed image, (0, 0) is the upper
    left corner of the first patch, and the patch at (x, y) covers [x P, (x + 1) P) and [y P, (y + 1) P).

    Attributes:
        source: (width, height) of the upright source.
        box: (left, top, width, height) of the part of the source that is used.
        size: (width, height) that this part is resized to.
        flip: whether the resized part is mirrored left-right and top-bottom.
        grid: (gw, gh), patches across and down.
        patch_size: P.

    >>> geometry = Geometry((100, 80), (20, 0, 60, 80), (30, 40), (True, False), (2, 3), 16)
    >>> geometry.to_image([[20, 0], [80, 40]]).tolist()
    [[30.0, 0.0], [0.0, 20.0]]
    >>> geometry.to_source([[0, 20]]).tolist()
    [[80.0, 40.0]]
    """

    source: tuple[int, int]
    box: tuple[int, int, int, int]
    size: tuple[int, int]
    flip: tuple[bool, bool]
    grid: tuple[int, int]
    patch_size: int

    @property
    def offset(self) -> tuple[int, int]:
        """Pixels that the centre crop to the grid cuts off at the left and the top; 0 where the image is padded."""
        left, top = cut_off(np.array(self.size), np.array(self.grid), self.patch_size).tolist()
        return left, top

    @property
    def extent(self) -> tuple[int, int]:
        """(width, height) of the packed image that shows the source; padding follows at the right and the bottom."""
        (left, top), (width, height), (gw, gh), P = self.offset, self.size, self.grid, self.patch_size
        return min(width - left, gw * P), min(height - top, gh * P)

    def to_image(self, points: ArrayLike) -> np.ndarray:
        """Map points of the source, (n, 2), to the packed image, float64 (n, 2)."""
        mapped: np.ndarray = points_to_image(np.asarray(points, np.float64), *self._columns())
        return mapped

    def to_source(self, points: ArrayLike) -> np.ndarray:
        """Map points of the packed image, (n, 2), to the source, float64 (n, 2)."""
        mapped: np.ndarray = points_to_source(np.asarray(points, np.float64), *self._columns())
        return mapped

    def _columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        box, size = np.array(self.box, np.float64), np.array(self.size, np.float64)
        return box, size, np.array(self.flip, np.float64), np.array(self.offset, np.float64)


# The functions below take numpy arrays or tensors, of one image or of one image per point, all of one kind.


def cut_off(size: Any, grid: Any, patch_size: int) -> Any:
    """Pixels that the centre crop to the grid cuts off at the left and the top, (..., 2); see `place_image`."""
    return (size - grid * patch_size).clip(0) // 2


def points_to_image(points: Any, box: Any, size: Any, flip: Any, offset: Any) -> Any:
    """Map points (n, 2) of the source to the packed image.

    `box` (..., 4), `size`, `flip` and `offset` (..., 2) are as in `Geometry`, in floating point; `flip` is 0 or 1.
    """
    sized = (points - box[..., :2]) * size / box[..., 2:]
    return sized * (1 - 2 * flip) + flip * size - offset


def points_to_source(points: Any, box: Any, size: Any, flip: Any, offset: Any) -> Any:
    """Map points (n, 2) of the packed image to the source; the inverse of `points_to_image`."""
    sized = (points + offset) * (1 - 2 * flip) + flip * size
    return sized * box[..., 2:] / size + box[..., :2]
