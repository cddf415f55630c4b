"""`Frames`: which images of a sample are used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from patchnpack.packer.checks import check_choice, check_whole, did_you_mean, shown
from patchnpack.packer.policies import _frames

# n samples; sample i has k_i images, of which c_i are chosen

Short = Literal["keep", "repeat", "skip"]
_HOW = ("uniform", "random", "first")
_KINDS = {"uniform": _frames.UNIFORM, "random": _frames.RANDOM, "first": _frames.STRIDE}


@dataclass(frozen=True, slots=True)
class Frames:
    """Choose `count` images of each sample: pages of a document, frames of a clip, slices of a volume.

    The choice is made before anything is planned, so only chosen images are decoded. Chosen images stay in order.

    ```
    12 images, count=4      uniform      |.#..#..#..#.|      the centres of 4 equal segments: (2 j + 1) k // (2 count)
                            random       |#...#.##....|      drawn for each sample and epoch
                            first        |####........|
                            stride:2     |#.#.#.#.....|      every second one, from the first
    ```

    Attributes:
        count: images of each sample, at least 1.
        how: "uniform", "random", "first" or "stride:N".
        short: treatment of a sample that offers fewer (with "stride:N", fewer than `count` at that stride): use those
            ("keep"), repeat the last of them until there are `count` ("repeat"), or skip and count the sample
            ("skip").

    Raises:
        ValueError: a value is not one of these.

    >>> import numpy as np
    >>> images = np.array([12, 3])
    >>> chosen, offsets, short = Frames(4).choose(images)
    >>> chosen.tolist(), offsets.tolist(), short.tolist()
    ([1, 4, 7, 10, 0, 1, 2], [0, 4, 7], [False, True])
    >>> Frames(4, "stride:2", short="repeat").choose(images)[0].tolist()
    [0, 2, 4, 6, 0, 2, 2, 2]
    """

    count: int
    how: str = "uniform"
    short: Short = "keep"

    def __post_init__(self) -> None:
        check_whole("frames.count", self.count)
        object.__setattr__(self, "count", int(self.count))
        check_choice("frames.short", self.short, get_args(Short))
        how: object = self.how
        stride = how[len("stride:") :] if isinstance(how, str) and how.startswith("stride:") else None
        if how not in _HOW and not (stride and stride.isdecimal() and stride.isascii() and int(stride)):
            raise ValueError(
                f"frames.how is {shown(how)}; it must be {', '.join(map(repr, _HOW))} or 'stride:N', such as 'stride:2'"
                f"{did_you_mean(how, _HOW)}"
            )
        if stride:
            object.__setattr__(self, "how", f"stride:{int(stride)}")  # equal settings look equal

    @property
    def draws(self) -> bool:
        """Whether the choice is drawn at random and so differs between epochs."""
        return self.how == "random"

    @property
    def stride(self) -> int:
        """N of "stride:N"; 1 otherwise."""
        return int(self.how.partition(":")[2] or 1)

    def choose(self, images: np.ndarray, keys: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Choose images of n samples; each choice depends on its own sample alone.

        Args:
            images: int (n,), images of each sample, at least 1.
            keys: uint64 (n,), keys of the draws; needed only by "random".

        Returns:
            The numbers of the chosen images within their samples, int64 (C,), in ascending order, sample by sample; the
            offset of each sample's first one, int64 (n + 1,); and which samples offer fewer than `count`, bool (n,).
            Such a sample has all that it offers if it is to be skipped.
        """
        images = np.ascontiguousarray(images, np.int64)
        offered = -(-images // self.stride)
        chosen = np.full(len(images), self.count) if self.short == "repeat" else np.minimum(offered, self.count)
        offsets = np.zeros(len(images) + 1, np.int64)
        np.cumsum(chosen, out=offsets[1:])
        if self.draws and keys is None:
            raise ValueError(f"{self} draws images; give keys, one uint64 per sample")
        out = np.empty(offsets[-1], np.int64)
        keys = np.zeros(len(images), np.uint64) if keys is None else np.ascontiguousarray(keys, np.uint64)
        kind = _KINDS.get(self.how, _frames.STRIDE)
        _frames.choose(images, offsets, kind, self.count, self.stride, keys, out)
        return out, offsets, offered < self.count
