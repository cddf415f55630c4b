"""Resolution policies: what size each image is given, and so how many tokens it becomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from patchnpack.packer import _kernels
from patchnpack.packer.checks import check_whole

# n images, P patch size in pixels, m grid_multiple; all sides in pixels, (width, height) and (gw, gh) in that order


class Sizes(NamedTuple):
    """What each image becomes: resized to `size` pixels, then centre-cropped or zero-padded to `grid` patches."""

    size: np.ndarray  # int32 (n, 2), (width, height)
    grid: np.ndarray  # int32 (n, 2), (gw, gh)


Edge = Literal["pad", "crop", "resize"]


def _check_edge(edge: str, allowed: tuple[str, ...]) -> None:
    if edge not in allowed:
        raise ValueError(f"edge is {edge!r}; it must be one of {', '.join(map(repr, allowed))}")


def fit_tokens(
    width: np.ndarray, height: np.ndarray, patch: int, multiple: int, max_tokens: int, *, upsample: bool, pad: bool
) -> Sizes:
    """The largest size of each image, aspect kept, whose grid has at most `max_tokens` patches.

    With `pad` the size keeps the aspect to the pixel and the last patches are part empty; without, both sides are
    rounded up to whole patches.
    """
    unit, cells = patch * multiple, max_tokens // multiple**2
    if cells < 1:
        raise ValueError(
            f"max_tokens is {max_tokens}, less than one grid_multiple cell of {multiple}x{multiple} patches"
        )
    fitted = np.empty((len(width), 4), np.int64)
    _kernels.fit_grids(width, height, unit, cells, upsample, fitted)
    if pad:
        numerator, denominator = fitted[:, 2:3], fitted[:, 3:4]
        native = np.stack([width, height], 1).astype(np.int64)
        size = np.maximum(1, (2 * native * numerator + denominator) // (2 * denominator))
        # From the rounded size, or a last column that rounding emptied would still cost its tokens.
        grid = -(-size // unit) * multiple
    else:
        grid = fitted[:, :2] * multiple
        size = grid * patch
    return Sizes(size.astype(np.int32), grid.astype(np.int32))


@dataclass(frozen=True, kw_only=True, slots=True)
class Native:
    """Images as they are (NaViT, arXiv 2307.06304, section 2.1).

    Where a side is not a multiple of the patch size, `edge` decides: "pad" makes ceil(side / P) patches and fills the
    last with 0, "crop" makes floor(side / P) and takes the centre, "resize" stretches to the nearest multiple.

    ```
    a side of 40 pixels, P = 16     pad       |................|................|........00000000|     3 patches
                                    crop  ....|................|................|....                  2 patches
                                    resize    |................|................|................|     3 patches
    ```

    Attributes:
        max_tokens: larger images are shrunk, aspect kept, to the largest size whose grid fits; None is no limit.
        edge: "pad", "crop" or "resize".

    >>> import numpy as np
    >>> Native().sizes(np.array([40]), np.array([33]), patch=16).grid.tolist()
    [[3, 3]]
    """

    max_tokens: int | None = None
    edge: Edge = "pad"

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            check_whole("max_tokens", self.max_tokens)
        _check_edge(self.edge, ("pad", "crop", "resize"))

    def sizes(self, width: np.ndarray, height: np.ndarray, patch: int, multiple: int = 1) -> Sizes:
        """Sizes and grids of images of the given widths and heights (n,), in pixels.

        Raises ValueError for an image smaller than a patch (for "crop": narrower or lower than a patch).
        """
        unit = patch * multiple
        native = np.stack([width, height], 1).astype(np.int64)
        self._check_patch(native, patch, multiple)
        if self.edge == "pad":
            grid = -(-native // unit)
            size = native
        elif self.edge == "crop":
            grid = native // unit
            size = native
        else:
            grid = np.maximum(1, (2 * native + unit) // (2 * unit))
            size = grid * unit
        sizes = Sizes(size.astype(np.int32), (grid * multiple).astype(np.int32))
        if self.max_tokens is not None:
            shrink_above(sizes, width, height, patch, multiple, self.max_tokens, pad=self.edge == "pad")
        return sizes

    def _check_patch(self, native: np.ndarray, patch: int, multiple: int) -> None:
        unit = patch * multiple
        small = native.min(1) < unit if self.edge == "crop" else native.max(1) < unit
        if small.any():
            w, h = native[small.argmax()]
            what = "a patch" if multiple == 1 else f"grid_multiple {multiple} x {multiple} patches"
            pad = ", edge='pad'" if self.edge == "crop" else ""
            raise ValueError(
                f"an image of {w}x{h} pixels is smaller than {what} of {unit}x{unit} ({int(small.sum())} of "
                f"{len(small)} images are); use a smaller patch_size{pad}, or leave such images out"
            )


@dataclass(frozen=True, slots=True)
class FitTokens:
    """Each image at the largest size, aspect kept, whose grid has at most `max_tokens` patches.

    With `upsample=True` and `edge="resize"` this is NaFlex's rule (SigLIP 2, arXiv 2502.14786, section 2.4.2), solved
    exactly instead of by bisection.

    ```
    300 x 200 pixels, P = 16, max_tokens = 24      scale 96 / 300: 96 x 64 pixels, grid 6 x 4, 24 tokens
    ```

    Attributes:
        max_tokens: tokens an image has at most.
        upsample: also enlarge images that are smaller.
        edge: "resize" rounds both sides up to whole patches; "pad" keeps the aspect to the pixel and leaves the last
            patches part empty.

    >>> import numpy as np
    >>> FitTokens(24).sizes(np.array([300, 32]), np.array([200, 16]), patch=16).grid.tolist()
    [[6, 4], [2, 1]]
    """

    max_tokens: int
    upsample: bool = False
    edge: Literal["pad", "resize"] = "resize"

    def __post_init__(self) -> None:
        check_whole("max_tokens", self.max_tokens)
        _check_edge(self.edge, ("pad", "resize"))

    def sizes(self, width: np.ndarray, height: np.ndarray, patch: int, multiple: int = 1) -> Sizes:
        """Sizes and grids of images of the given widths and heights (n,), in pixels."""
        return fit_tokens(
            width, height, patch, multiple, self.max_tokens, upsample=self.upsample, pad=self.edge == "pad"
        )


@dataclass(frozen=True, slots=True)
class Square:
    """Every image resized to `size` x `size` pixels, its aspect lost: the plain ViT's baseline.

    Attributes:
        size: side in pixels, a multiple of the patch size.

    >>> import numpy as np
    >>> Square(224).sizes(np.array([500]), np.array([375]), patch=16).grid.tolist()
    [[14, 14]]
    """

    size: int

    def __post_init__(self) -> None:
        check_whole("size", self.size)

    def sizes(self, width: np.ndarray, height: np.ndarray, patch: int, multiple: int = 1) -> Sizes:
        """Sizes and grids of images of the given widths and heights (n,), in pixels."""
        unit = patch * multiple
        if self.size % unit:
            lower = max(unit, self.size // unit * unit)
            raise ValueError(
                f"Square({self.size}) is not a multiple of patch_size * grid_multiple = {unit}; use Square({lower})"
            )
        shape = (len(width), 2)
        return Sizes(np.full(shape, self.size, np.int32), np.full(shape, self.size // patch, np.int32))


Resolution = Native | FitTokens | Square


def shrink_above(
    sizes: Sizes, width: np.ndarray, height: np.ndarray, patch: int, multiple: int, max_tokens: int, *, pad: bool
) -> np.ndarray:
    """Shrinks, in place, the images whose grid has more than `max_tokens` patches; returns which (bool (n,))."""
    over: np.ndarray = sizes.grid.prod(1, dtype=np.int64) > max_tokens
    if over.any():
        # These are too large as they are, so the largest size that fits is smaller, even where `upsample` made them so.
        fitted = fit_tokens(width[over], height[over], patch, multiple, max_tokens, upsample=True, pad=pad)
        sizes.size[over], sizes.grid[over] = fitted
    return over
