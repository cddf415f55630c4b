"""`PatchSizes`: a patch size drawn per block of packs, so that one model learns all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from patchnpack.packer.checks import check_whole, shown
from patchnpack.packer.policies import _draws
from patchnpack.packer.policies.random import Purpose, counter_hash

# k patch sizes


@dataclass(frozen=True, slots=True)
class PatchSizes:
    """Patch sizes, of which each block of packs draws one (FlexiViT, arXiv 2212.08013, section 3).

    Larger patches make fewer tokens per image, so each block is packed by the token counts at its own patch size.

    ```
    96 x 96 pixels      P = 16: 36 tokens      P = 32: 9 tokens
    blocks of 2 packs   |16 16|32 32|32 32|16 16|
    ```

    With `end_weights` the draw follows a curriculum: over the first `images` images of training the weights go linearly
    from `weights` to `end_weights`, for example from large patches to small ones.

    Attributes:
        sizes: patch sides in pixels, all different.
        weights: relative frequency of each size; None makes all equally frequent.
        end_weights: relative frequencies at the end of the curriculum; None means no curriculum.
        images: images seen at the end of the curriculum.

    >>> sizes = PatchSizes((8, 16, 32), weights=(1, 2, 1))
    >>> [sizes.draw(seed=0, epoch=0, block=block) for block in range(8)]
    [32, 16, 32, 16, 16, 16, 32, 8]
    """

    sizes: Sequence[int]
    weights: Sequence[float] | None = None
    end_weights: Sequence[float] | None = None
    images: int | None = None

    def __post_init__(self) -> None:
        given: object = self.sizes
        sizes = list(given) if isinstance(given, tuple | list | range | np.ndarray) else []
        for size in sizes:
            check_whole("sizes", size)
        if not sizes or len(set(sizes)) < len(sizes):
            raise ValueError(
                f"sizes is {shown(given)}; it must be different patch sizes in pixels, such as (8, 16, 32)"
            )
        # As tuples of Python numbers, so that equal settings compare and hash equal.
        object.__setattr__(self, "sizes", tuple(int(size) for size in sizes))
        for name in ("weights", "end_weights"):
            if (given := getattr(self, name)) is not None:
                try:
                    weights = tuple(float(weight) for weight in given)
                except (TypeError, ValueError):
                    weights = ()
                if (
                    len(weights) != len(self.sizes)
                    or not all(0 <= w < float("inf") for w in weights)
                    or not sum(weights)
                ):
                    raise ValueError(
                        f"{name} is {shown(given)}; it must be {len(self.sizes)} numbers, one per patch size, none "
                        "below 0 and at least one above 0"
                    )
                object.__setattr__(self, name, weights)
        if (self.end_weights is None) != (self.images is None):
            raise ValueError(
                f"end_weights is {self.end_weights} and images is {self.images}; a curriculum needs both: give the "
                "weights at its end and the number of images seen by then"
            )
        if self.images is not None:
            check_whole("images", self.images)

    def shares(self, images_seen: float = 0) -> np.ndarray:
        """Probability of each size after `images_seen` images, float64 (k,); the sum is 1."""
        start: np.ndarray = np.array(self.weights or [1.0] * len(self.sizes))
        start /= start.sum()
        if self.end_weights is None or self.images is None:
            return start
        end = np.array(self.end_weights) / sum(self.end_weights)
        mixed: np.ndarray = start + (end - start) * min(1.0, images_seen / self.images)
        return mixed

    def draw(self, *, seed: int, epoch: int, block: int, images_seen: float = 0) -> int:
        """The patch size of a block, in pixels: a pure function of the arguments."""
        u = np.empty(1)
        _draws.uniform(counter_hash(Purpose.PATCH_SIZE, seed, epoch, np.array([block], np.uint64)), u)
        ends = np.cumsum(self.shares(images_seen))
        # Dividing by the last keeps rounding from leaving a gap below 1.
        return self.sizes[int(np.searchsorted(ends / ends[-1], u[0], side="right"))]
