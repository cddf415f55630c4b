"""Resolution policies that vary: sizes drawn per image and epoch, and a schedule over training."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from patchnpack.packer.checks import check_whole
from patchnpack.packer.policies import _draws
from patchnpack.packer.policies.resolution import (
    FitTokens,
    Native,
    Resolution,
    SizeRequest,
    Sizes,
    Square,
    check_edge,
    fit_tokens,
    lesser,
    shrink_above,
)

# n images; all sides in pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSide(Resolution):
    """Each image draws a side; its area becomes side squared, aspect kept.

    See NaViT, arXiv 2307.06304, section 2.2.

    ```
    400 x 100 pixels, a side of 128 drawn        256 x 64 pixels, at P = 16 a grid of 16 x 4
    ```

    Attributes:
        low, high: range of the side, in pixels.
        dist: "truncnormal" is a normal of mean -0.5 and deviation 1, truncated to [-1, 1] and mapped to [low, high], so
            smaller sides are more frequent; "uniform" makes all sides equally frequent.
        upsample: also enlarge smaller images; without, they keep their size.
        edge: "resize" rounds both sides to whole patches; "pad" keeps the aspect to the pixel and leaves the last
            patches partly empty.

    >>> import numpy as np
    >>> keys = np.arange(3, dtype=np.uint64)
    >>> SampleSide(low=64, high=256).sizes(np.full(3, 400), np.full(3, 100), patch=16, keys=keys).size.tolist()
    [[144, 32], [224, 48], [224, 48]]
    """

    low: int
    high: int
    dist: Literal["truncnormal", "uniform"] = "truncnormal"
    upsample: bool = True
    edge: Literal["pad", "resize"] = "resize"

    def __post_init__(self) -> None:
        check_whole("low", self.low)
        if not self.low < self.high:
            raise ValueError(
                f"low is {self.low} and high is {self.high}; low must be below high (for one area use FitTokens)"
            )
        check_whole("high", self.high)
        if self.dist not in ("truncnormal", "uniform"):
            raise ValueError(f"dist is {self.dist!r}; it must be 'truncnormal' or 'uniform'")
        check_edge(self.edge, ("pad", "resize"))

    @property
    def draws(self) -> bool:
        """True: sizes differ between epochs."""
        return True

    def sides(self, keys: np.ndarray) -> np.ndarray:
        """The side drawn from each key, float64 (n,), in pixels."""
        unit = np.empty(len(keys))
        if self.dist == "uniform":
            _draws.uniform(keys, unit)
        else:
            _draws.truncated_normal(keys, np.full(len(keys), -0.5), 1.0, -1.0, 1.0, unit)
            unit = (unit + 1) / 2
        return self.low + (self.high - self.low) * unit

    def _sizes(self, request: SizeRequest) -> Sizes:
        native = np.stack([request.width, request.height], 1).astype(np.float64)
        scale = self.sides(request.keys) / np.sqrt(native.prod(1))
        if not self.upsample:
            scale = np.minimum(scale, 1)
        scaled, unit = native * scale[:, None], request.unit
        if self.edge == "pad":
            size = np.maximum(1, np.rint(scaled)).astype(np.int64)
            grid = -(-size // unit)
        else:
            grid = np.maximum(1, np.rint(scaled / unit)).astype(np.int64)
            size = grid * unit
        sizes = Sizes(size.astype(np.int32), (grid * request.multiple).astype(np.int32))
        if request.limit is not None:
            shrink_above(sizes, *request[:4], request.limit, pad=self.edge == "pad")
        return sizes


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomResizedCrop(Resolution):
    """A random crop of each image: the usual augmentation, without the resize to a square.

    The part's area is a uniform share of the image's, its aspect uniform in the logarithm, its place uniform (Szegedy
    et al. 2015, arXiv 1409.4842, section 6). It keeps its own resolution: each side of the part is rounded to whole
    patches, within the image, so no pixel is resampled and no patch is partly empty. A part of more than `max_tokens`
    patches is shrunk instead, both sides rounded up to whole patches.

    ```
    640 x 480 pixels      +---------------+
                          |    +-------+  |     a part of 272 x 359 pixels is drawn: at P = 16 a grid of 17 x 22 of
                          |    |       |  |     272 x 352 pixels; with max_tokens=100 the part is shrunk to
                          +----+-------+--+     144 x 176 pixels, 9 x 11
    ```

    Attributes:
        scale: range of the crop's share of the image's area, above 0 and at most 1.
        ratio: range of the crop's aspect, width over height.
        max_tokens: larger crops are shrunk, aspect kept; None means no limit.
        upsample: also enlarge smaller crops to `max_tokens`.

    >>> import numpy as np
    >>> crop = RandomResizedCrop(scale=(0.2, 0.5), max_tokens=100)
    >>> sizes = crop.sizes(np.array([640]), np.array([480]), patch=16, keys=np.array([7], np.uint64))
    >>> sizes.box.tolist(), sizes.grid.tolist()
    ([[332, 71, 272, 359]], [[9, 11]])
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    max_tokens: int | None = None
    upsample: bool = False

    def __post_init__(self) -> None:
        for name, largest in (("scale", 1.0), ("ratio", float("inf"))):
            try:
                low, high = getattr(self, name)
                good = 0 < low <= high <= largest and high < float("inf")
            except (TypeError, ValueError):
                good = False
            if not good:
                limit = " <= 1" if name == "scale" else ""
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be (low, high), 0 < low <= high{limit}")
        if self.max_tokens is not None:
            check_whole("max_tokens", self.max_tokens)
        elif self.upsample:
            raise ValueError("upsample is True and max_tokens is None; give max_tokens, to which crops are enlarged")

    @property
    def draws(self) -> bool:
        """True: crops differ between epochs."""
        return True

    def _sizes(self, request: SizeRequest) -> Sizes:
        box = np.empty((len(request.width), 4), np.int32)
        _draws.crops(
            request.keys,
            request.width,
            request.height,
            np.array(self.scale, np.float64),
            np.array(self.ratio, np.float64),
            box,
        )
        if self.upsample:
            limit = lesser(self.max_tokens, request.limit)
            assert limit is not None
            return fit_tokens(*_shape(box, request), limit, upsample=True, pad=False)._replace(box=box)
        whole = _whole_patches(box, request)
        grid = np.maximum(1, whole[:, 2:] // request.unit) * np.int32(request.multiple)
        limit = lesser(self.max_tokens, request.limit)
        shrunk = np.zeros(len(box), np.bool_) if limit is None else grid.prod(1, dtype=np.int64) > limit
        sizes = Sizes(whole[:, 2:].copy(), grid, np.where(shrunk[:, None], box, whole))
        if limit is not None:
            shrink_above(sizes, *_shape(box, request), limit, pad=False)
        return sizes


def _shape(box: np.ndarray, request: SizeRequest) -> tuple[np.ndarray, np.ndarray, int, int]:
    return box[:, 2], box[:, 3], request.patch, request.multiple


def _whole_patches(box: np.ndarray, request: SizeRequest) -> np.ndarray:
    """The boxes with both sides rounded to whole grid cells, around the same centres, int32 (n, 4).

    A box stays within its image. Where the image is shorter than a cell, the side stays as it is.
    """
    image = np.stack([request.width, request.height], 1).astype(np.int64)
    start, side, unit = box[:, :2].astype(np.int64), box[:, 2:].astype(np.int64), request.unit
    rounded = np.clip(np.rint(side / unit).astype(np.int64), 1, np.maximum(1, image // unit)) * unit
    rounded = np.where(image < unit, side, rounded)
    start = np.clip(start + (side - rounded) // 2, 0, image - rounded)
    return np.concatenate([start, rounded], 1).astype(np.int32)


@dataclass(frozen=True, slots=True)
class ScheduledResolution(Resolution):
    """A curriculum: each stage sets the policy from a given image of training on.

    Attributes:
        stages: (images seen, policy) pairs in ascending order; the first starts at 0.

    >>> import numpy as np
    >>> grow = ScheduledResolution(((0, FitTokens(64)), (1_000_000, FitTokens(256))))
    >>> image = np.array([640, 640])
    >>> grow.sizes(image, image, patch=16, images_seen=np.array([999_999, 1_000_000])).grid.tolist()
    [[8, 8], [16, 16]]
    """

    stages: tuple[tuple[int, Resolution], ...]

    def __post_init__(self) -> None:
        kinds = (Native, FitTokens, SampleSide, RandomResizedCrop, Square)
        try:
            starts = [start for start, _ in self.stages]
            good = all(isinstance(policy, kinds) for _, policy in self.stages)
        except (TypeError, ValueError):
            starts, good = [], False
        if not good or starts[:1] != [0] or any(b <= a for a, b in pairwise(starts)):
            raise ValueError(
                f"stages is {self.stages!r}; each must pair the images seen, growing from 0, with a resolution policy"
            )

    @property
    def draws(self) -> bool:
        """Whether any stage draws sizes."""
        return any(policy.draws for _, policy in self.stages)

    def undersize(self, width: np.ndarray, height: np.ndarray, unit: int) -> np.ndarray:
        """See `Resolution.undersize`: by the rule of any stage, so that the answer is the same all through training."""
        small: np.ndarray = np.any([policy.undersize(width, height, unit) for _, policy in self.stages], axis=0)
        return small

    def _sizes(self, request: SizeRequest) -> Sizes:
        starts = [start for start, _ in self.stages]
        if not len(request.images_seen):
            return self.stages[0][1]._sizes(request)
        first = bisect_right(starts, int(request.images_seen.min())) - 1
        last = bisect_right(starts, int(request.images_seen.max())) - 1
        if first == last:
            return self.stages[first][1]._sizes(request)
        n = len(request.images_seen)
        out = Sizes(np.empty((n, 2), np.int32), np.empty((n, 2), np.int32), np.zeros((n, 4), np.int32))
        assert out.box is not None
        out.box[:, 2], out.box[:, 3] = request.width, request.height
        stage = np.searchsorted(starts, request.images_seen, side="right") - 1
        for number in range(first, last + 1):
            here = stage == number
            part = self.stages[number][1]._sizes(
                SizeRequest(
                    request.width[here],
                    request.height[here],
                    request.patch,
                    request.multiple,
                    request.keys[here] if len(request.keys) else request.keys,
                    request.images_seen[here],
                    None if request.limit is None else request.limit[here],
                )
            )
            out.size[here], out.grid[here] = part.size, part.grid
            if part.box is not None:
                out.box[here] = part.box
        return out


RESOLUTIONS = (Native, FitTokens, SampleSide, RandomResizedCrop, Square, ScheduledResolution)
