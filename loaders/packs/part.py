"""Parts: the windows of a stream of packs that are written, each a file of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from patchnpack.loaders.errors import BadRow
from patchnpack.loaders.remote.download import name_of
from patchnpack.packer import Images, Plan

# N packs of a part, M images in them


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What a part is made of.

    Attributes:
        images: the M images of all its packs.
        offsets: int64 (N + 1,), pack i holds the images `offsets[i]` to `offsets[i + 1]`.
        patch_size: int32 (N,), in pixels.
        cost: int64 (N,), what attention in each pack costs.
    """

    images: Images
    offsets: np.ndarray
    patch_size: np.ndarray
    cost: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def of(cls, plan: Plan) -> Part:
        """All packs of a plan."""
        return cls(images=plan.images, offsets=plan.offsets, patch_size=plan.patch_size, cost=plan.attention_cost())

    def take(self, low: int, high: int) -> Part:
        """The packs from `low` to the one before `high`."""
        offsets = self.offsets[low : high + 1]
        return Part(
            images=self.images.take(slice(offsets[0], offsets[-1])),
            offsets=offsets - offsets[0],
            patch_size=self.patch_size[low:high],
            cost=self.cost[low:high],
        )

    @classmethod
    def join(cls, parts: list[Part]) -> Part:
        """The packs of all parts, in order."""
        if len(parts) == 1:
            return parts[0]
        ends = np.concatenate([[0], *(np.diff(part.offsets) for part in parts)])
        return cls(
            images=Images.concatenate([part.images for part in parts]),
            offsets=np.cumsum(ends).astype(np.int64),
            patch_size=np.concatenate([part.patch_size for part in parts]),
            cost=np.concatenate([part.cost for part in parts]),
        )


def noted(bad: BadRow) -> dict[str, Any]:
    """A bad image as it is written down: the shard by its own name, so that its folder changes no byte."""
    return {**asdict(bad), "shard": name_of(bad.shard)}


def cut(plans: Iterable[Plan], packs: int) -> Iterator[Part]:
    """The packs of the plans, in parts of so many; the last part may have fewer."""
    waiting: list[Part] = []
    have = 0
    for plan in plans:
        part, low = Part.of(plan), 0
        while have + len(part) - low >= packs:
            high = low + packs - have
            yield Part.join([*waiting, part.take(low, high)])
            waiting, have, low = [], 0, high
        if low < len(part):
            waiting.append(part.take(low, len(part)))
            have += len(part) - low
    if waiting:
        yield Part.join(waiting)
