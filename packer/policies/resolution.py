"""Resolution policies: the size of each image, and so its number of tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from patchnpack.packer import _kernels
from patchnpack.packer.checks import check_whole

# n images, P patch size in pixels, m grid_multiple; all sides in pixels, (width, height) and (gw, gh) in that order


class Sizes(NamedTuple):
    """The geometry of each image.

    `box` is resized to `size` pixels, then centre-cropped or zero-padded to `grid`.

    Attributes:
        size: int32 (n, 2), (width, height) in pixels.
        grid: int32 (n, 2), (gw, gh) in patches.
        box: int32 (n, 4), (left, top, width, height) in pixels of the upright image; None is the whole image.
    """

    size: np.ndarray
    grid: np.ndarray
    box: np.ndarray | None = None


class SizeRequest(NamedTuple):
    """The arguments of a policy for n images; `Resolution.sizes` documents each field."""

    width: np.ndarray
    height: np.ndarray
    patch: int
    multiple: int
    keys: np.ndarray
    images_seen: np.ndarray
    limit: np.ndarray | None

    @property
    def unit(self) -> int:
        """Pixels of one grid cell: the sides of a grid are multiples of this."""
        return self.patch * self.multiple


class Resolution(ABC):
    """A policy that chooses the size of each image."""

    __slots__ = ()

    def sizes(
        self,
        width: np.ndarray,
        height: np.ndarray,
        patch: int,
        multiple: int = 1,
        *,
        keys: np.ndarray | None = None,
        images_seen: np.ndarray | None = None,
        limit: np.ndarray | None = None,
    ) -> Sizes:
        """Sizes of n images; each depends on its own image alone.

        Args:
            width, height: (n,), in pixels, upright.
            patch: P, in pixels.
            multiple: both sides of a grid are multiples of this.
            keys: uint64 (n,), keys of each image's random draws; needed only by a policy that draws.
            images_seen: int64 (n,), images seen in training before each; 0 by default.
            limit: int64 (n,), maximum tokens of each image, at least `multiple`**2; larger images are shrunk.

        Raises:
            ValueError: the policy cannot take an image.
        """
        if keys is None:
            if self.draws:
                raise ValueError(f"{self} draws each image's size; give keys, one uint64 per image")
            keys = np.empty(0, np.uint64)
        images_seen = np.zeros(len(width), np.int64) if images_seen is None else images_seen
        return self._sizes(SizeRequest(width, height, patch, multiple, keys, images_seen, limit))

    def undersize(self, width: np.ndarray, height: np.ndarray, unit: int) -> np.ndarray:
        """Which images are smaller than a patch, bool (n,): both sides are shorter than `unit` pixels.

        `sizes` pads or enlarges such an image, or a crop of one, to one grid cell, as it does with a single short side.

        Args:
            width, height: (n,), in pixels, upright.
            unit: P times `grid_multiple`, in pixels.
        """
        small: np.ndarray = np.maximum(width, height) < unit
        return small

    @property
    def draws(self) -> bool:
        """Whether sizes are drawn at random and so differ between epochs."""
        return False

    @abstractmethod
    def _sizes(self, request: SizeRequest) -> Sizes: ...


Edge = Literal["pad", "crop", "resize"]


def check_edge(edge: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless `edge` is one of `allowed`."""
    if edge not in allowed:
        raise ValueError(f"edge is {edge!r}; it must be one of {', '.join(map(repr, allowed))}")


def fit_tokens(
    width: np.ndarray,
    height: np.ndarray,
    patch: int,
    multiple: int,
    max_tokens: int | np.ndarray,
    *,
    upsample: bool,
    pad: bool,
) -> Sizes:
    """The largest size of each image, aspect kept, with at most `max_tokens` patches.

    `max_tokens` is a number or (n,). With `pad` the aspect is kept to the pixel and the last patches are partly empty;
    without, both sides are rounded up to whole patches.
    """
    unit, cells = patch * multiple, np.asarray(max_tokens, np.int64) // multiple**2
    if (cells < 1).any():
        raise ValueError(
            f"max_tokens is {np.min(max_tokens)}, less than one grid_multiple cell of {multiple}x{multiple} patches; "
            f"give at least {multiple**2}"
        )
    fitted = np.empty((len(width), 4), np.int64)
    _kernels.fit_grids(width, height, unit, np.ascontiguousarray(np.broadcast_to(cells, len(width))), upsample, fitted)
    if pad:
        numerator, denominator = fitted[:, 2:3], fitted[:, 3:4]
        native = np.stack([width, height], 1).astype(np.int64)
        size = np.maximum(1, (2 * native * numerator + denominator) // (2 * denominator))
        # Computed from the rounded size: otherwise a last column that rounding emptied would still cost tokens.
        grid = -(-size // unit) * multiple
    else:
        grid = fitted[:, :2] * multiple
        size = grid * patch
    return Sizes(size.astype(np.int32), grid.astype(np.int32))


def shrink_above(
    sizes: Sizes,
    width: np.ndarray,
    height: np.ndarray,
    patch: int,
    multiple: int,
    max_tokens: int | np.ndarray,
    *,
    pad: bool,
) -> None:
    """Shrink the images whose grid has more than `max_tokens` patches, in place."""
    over = sizes.grid.prod(1, dtype=np.int64) > max_tokens
    if over.any():
        # These images are too large, so the largest size that fits is smaller: `upsample` enlarges none.
        limit = np.broadcast_to(np.asarray(max_tokens, np.int64), len(width))[over]
        fitted = fit_tokens(width[over], height[over], patch, multiple, limit, upsample=True, pad=pad)
        sizes.size[over], sizes.grid[over] = fitted.size, fitted.grid


def lesser(max_tokens: int | None, limit: np.ndarray | None) -> int | np.ndarray | None:
    """The stricter of a policy's own limit and that of a request, in tokens; None is no limit."""
    if max_tokens is None or limit is None:
        return limit if max_tokens is None else max_tokens
    lesser: np.ndarray = np.minimum(max_tokens, limit)
    return lesser


@dataclass(frozen=True, kw_only=True, slots=True)
class Native(Resolution):
    """Images at their own size (NaViT, arXiv 2307.06304, section 2.1).

    `edge` says what happens to a side that is not a multiple of the patch size: "pad" makes ceil(side / P) patches and
    fills the last with 0, "crop" makes floor(side / P) and takes the centre, "resize" stretches to the nearest
    multiple.

    ```
    a side of 42 pixels, P = 16     pad       |................|................|..........000000|     3 patches
                                    crop .....|................|................|.....                 2 patches
                                    resize    |................|................|................|     3 patches
    ```

    A side shorter than a patch becomes one patch: "pad" and "crop" fill it with 0, "resize" stretches. "resize" rounds
    ties to even, as the processors of Qwen2-VL do.

    Attributes:
        max_tokens: larger images are shrunk, aspect kept, to the largest size whose grid fits; None means no limit.
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
        check_edge(self.edge, ("pad", "crop", "resize"))

    def _sizes(self, request: SizeRequest) -> Sizes:
        width, height, patch, multiple, unit = *request[:4], request.unit
        native = np.stack([width, height], 1).astype(np.int64)
        if self.edge == "pad":
            grid = -(-native // unit)
            size = native
        elif self.edge == "crop":
            grid = np.maximum(1, native // unit)
            size = native
        else:
            grid = np.maximum(1, np.rint(native / unit)).astype(np.int64)  # a tie is exact in float64
            size = grid * unit
        sizes = Sizes(size.astype(np.int32), (grid * multiple).astype(np.int32))
        limit = lesser(self.max_tokens, request.limit)
        if limit is not None:
            shrink_above(sizes, width, height, patch, multiple, limit, pad=self.edge == "pad")
        return sizes

    def undersize(self, width: np.ndarray, height: np.ndarray, unit: int) -> np.ndarray:
        """See `Resolution.undersize`. With "crop", either side is shorter: no whole patch can be cut."""
        small: np.ndarray = (np.minimum if self.edge == "crop" else np.maximum)(width, height) < unit
        return small


@dataclass(frozen=True, slots=True)
class FitTokens(Resolution):
    """Each image at the largest size, aspect kept, whose grid has at most `max_tokens` patches.

    With `upsample=True` and `edge="resize"` this is the rule of NaFlex (SigLIP 2, arXiv 2502.14786, section 2.4.2),
    solved exactly instead of by bisection.

    ```
    300 x 200 pixels, P = 16, max_tokens = 24      scale 96 / 300: 96 x 64 pixels, grid 6 x 4, 24 tokens
    ```

    Attributes:
        max_tokens: maximum tokens per image.
        upsample: also enlarge smaller images.
        edge: "resize" rounds both sides up to whole patches; "pad" keeps the aspect to the pixel and leaves the last
            patches partly empty.

    >>> import numpy as np
    >>> FitTokens(24).sizes(np.array([300, 32]), np.array([200, 16]), patch=16).grid.tolist()
    [[6, 4], [2, 1]]
    """

    max_tokens: int
    upsample: bool = False
    edge: Literal["pad", "resize"] = "resize"

    def __post_init__(self) -> None:
        check_whole("max_tokens", self.max_tokens)
        check_edge(self.edge, ("pad", "resize"))

    def _sizes(self, request: SizeRequest) -> Sizes:
        limit = lesser(self.max_tokens, request.limit)
        assert limit is not None
        return fit_tokens(*request[:4], limit, upsample=self.upsample, pad=self.edge == "pad")


@dataclass(frozen=True, slots=True)
class Square(Resolution):
    """Every image resized to `size` x `size` pixels: the baseline of a plain ViT.

    Attributes:
        size: side in pixels, a multiple of the patch size.

    >>> import numpy as np
    >>> Square(224).sizes(np.array([500]), np.array([375]), patch=16).grid.tolist()
    [[14, 14]]
    """

    size: int

    def __post_init__(self) -> None:
        check_whole("size", self.size)

    def _sizes(self, request: SizeRequest) -> Sizes:
        unit = request.unit
        if self.size % unit:
            lower = max(unit, self.size // unit * unit)
            raise ValueError(
                f"Square({self.size}) is not a multiple of patch_size * grid_multiple = {unit}; use Square({lower})"
            )
        cells = np.full(len(request.width), self.size // unit, np.int64)
        if request.limit is not None:
            # Exact: a limit is far below 2**52.
            cells = np.minimum(cells, np.sqrt(request.limit // request.multiple**2).astype(np.int64))
        grid = np.stack([cells, cells], 1).astype(np.int32) * np.int32(request.multiple)
        return Sizes(grid * np.int32(request.patch), grid)
