"""`PatchSizes`: a patch size drawn for each block of packs, so that one model learns them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from patchnpack.packer.checks import check_whole
from patchnpack.packer.policies import _draws
from patchnpack.packer.policies.random import Purpose, counter_hash

# k patch sizes


@dataclass(frozen=True, slots=True)
class PatchSizes:
    """Patch sizes of which each block of packs draws one (FlexiViT, arXiv 2212.08013, section 3).

    Larger patches make fewer tokens of an image, so a block's packs are packed by its own token counts.

    ```
    96 x 96 pixels      P = 16: 36 tokens      P = 32: 9 tokens
    blocks of 2 packs   |16 16|32 32|32 32|16 16|
    ```

    With `end_weights` the draw follows a curriculum: the weights go in a straight line from `weights` to `end_weights`
    while the first `images` images are images_seen, large patches first, say.

    Attributes:
        sizes: sides of the patches in pixels, all different.
        weights: how often each comes up, relative to the others; None is evenly.
        end_weights: how often at the curriculum's end; None is no curriculum.
        images: images seen at the curriculum's end.

    >>> sizes = PatchSizes((8, 16, 32), weights=(1, 2, 1))
    >>> [sizes.draw(seed=0, epoch=0, block=block) for block in range(8)]
    [32, 16, 32, 16, 16, 16, 32, 8]
    """

    sizes: Sequence[int]
    weights: Sequence[float] | None = None
    end_weights: Sequence[float] | None = None
    images: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.sizes, tuple | list) or not self.sizes or len(set(self.sizes)) < len(self.sizes):
            raise ValueError(f"sizes is {self.sizes!r}; it must be patch sizes in pixels, all different: (8, 16, 32)")
        for size in self.sizes:
            check_whole("sizes", size)
        # As tuples of Python's own numbers, so that equal settings are equal and hash alike.
        object.__setattr__(self, "sizes", tuple(int(size) for size in self.sizes))
        for name in ("weights", "end_weights"):
            if (given := getattr(self, name)) is not None:
                weights = tuple(float(weight) for weight in given)
                if (
                    len(weights) != len(self.sizes)
                    or not all(0 <= w < float("inf") for w in weights)
                    or not sum(weights)
                ):
                    raise ValueError(
                        f"{name} is {given!r}; it must be {len(self.sizes)} numbers, one a patch size, none below 0, "
                        "one above"
                    )
                object.__setattr__(self, name, weights)
        if (self.end_weights is None) != (self.images is None):
            raise ValueError(
                f"end_weights is {self.end_weights} and images is {self.images}; a curriculum needs both: the weights "
                "at its end, and the images seen by then"
            )
        if self.images is not None:
            check_whole("images", self.images)

    def shares(self, images_seen: float = 0) -> np.ndarray:
        """How often each size comes up after `seen` images, float64 (k,); they sum to 1."""
        start: np.ndarray = np.array(self.weights or [1.0] * len(self.sizes))
        start /= start.sum()
        if self.end_weights is None or self.images is None:
            return start
        end = np.array(self.end_weights) / sum(self.end_weights)
        mixed: np.ndarray = start + (end - start) * min(1.0, images_seen / self.images)
        return mixed

    def draw(self, *, seed: int, epoch: int, block: int, images_seen: float = 0) -> int:
        """The patch size of a block: a function of its arguments alone."""
        u = np.empty(1)
        _draws.uniform(counter_hash(Purpose.PATCH_SIZE, seed, epoch, np.array([block], np.uint64)), u)
        ends = np.cumsum(self.shares(images_seen))
        # The last of positive weight, should the sum be a little below 1.
        return self.sizes[int(np.searchsorted(ends / ends[-1], u[0], side="right"))]
