"""`Plan`: which images go into which pack, with their sizes and token counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from patchnpack.packer.binpacking.algorithms import Algorithm
from patchnpack.packer.config import Scope
from patchnpack.packer.planning.images import Images, sums_between

# M images in the plan's packs, N packs


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """N packs: pack i holds the images `offsets[i]` to `offsets[i + 1]` of `images`.

    The images of a sample are neighbours in one pack, in order. A sample that is not packed is named by its first row.

    Attributes:
        offsets: int64 (N + 1,), offset of each pack's first image.
        patch_size: int32 (N,), P of each pack, in pixels.
        images: the images of all packs, pack by pack, in segment order.
        skipped: int64, first rows of the samples left out because they were oversize or undersize, or had too few
            images.
        oversize: int64, first rows of the samples of more than `seq_len` tokens (at any of the patch sizes) or more
            images than a pack holds, however they were treated.
        undersize: int64, first rows of the samples with an image smaller than a patch (of the largest size), however
            they were treated.
        algorithm: the packing algorithm; "auto" only where too few rows had arrived to decide.
        few: int64, first rows of the samples left out because `Frames(short="skip")` found too few images.
        scope: what a token attends to, its "image" or its "sample".
    """

    offsets: np.ndarray
    patch_size: np.ndarray
    images: Images
    skipped: np.ndarray
    oversize: np.ndarray
    undersize: np.ndarray
    algorithm: Algorithm
    few: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    scope: Scope = "image"

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def pack(self, i: int) -> Images:
        """The images of pack i."""
        return self.images.take(slice(self.offsets[i], self.offsets[i + 1]))

    def take(self, low: int, high: int) -> Plan:
        """Return packs `low` to `high - 1`, without the samples that the plan left out."""
        offsets, none = self.offsets[low : high + 1], np.zeros(0, np.int64)
        return Plan(
            offsets=offsets - offsets[0],
            patch_size=self.patch_size[low:high],
            images=self.images.take(slice(offsets[0], offsets[-1])),
            skipped=none,
            oversize=none,
            undersize=none,
            algorithm=self.algorithm,
            scope=self.scope,
        )

    def skipped_by_reason(self) -> dict[str, np.ndarray]:
        """The first rows of skipped samples, int64, by reason: "oversize", "undersize", and, if any, "frames"."""
        few = np.isin(self.skipped, self.few)
        over = np.isin(self.skipped, self.oversize) & ~few
        reasons = {"oversize": self.skipped[over], "undersize": self.skipped[~over & ~few]}
        return reasons | ({"frames": self.skipped[few]} if few.any() else {})

    @classmethod
    def concatenate(cls, plans: Sequence[Plan]) -> Plan:
        """Return the packs of all plans, in order, with what each left out; the last names the algorithm."""
        if len(plans) == 1:
            return plans[0]
        counts = np.concatenate([np.diff(plan.offsets) for plan in plans])
        return cls(
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            patch_size=np.concatenate([plan.patch_size for plan in plans]),
            images=Images.concatenate([plan.images for plan in plans]),
            skipped=np.concatenate([plan.skipped for plan in plans]),
            oversize=np.concatenate([plan.oversize for plan in plans]),
            undersize=np.concatenate([plan.undersize for plan in plans]),
            algorithm=plans[-1].algorithm,
            few=np.concatenate([plan.few for plan in plans]),
            scope=plans[-1].scope,
        )

    @property
    def num_samples(self) -> int:
        """Number of samples in the packs."""
        return self.images.num_samples

    def samples_per_pack(self) -> np.ndarray:
        """Samples in each pack, int64 (N,)."""
        frame = self.images.frame
        return np.diff(self.offsets) if frame is None else sums_between(frame == 0, self.offsets)

    def tokens(self) -> np.ndarray:
        """Tokens in each pack, int64 (N,)."""
        return sums_between(self.images.keep, self.offsets)

    def attention_cost(self) -> np.ndarray:
        """Attention cost of each pack, int64 (N,): the sum of the squared token counts of its images or its samples.

        `scope` says which.
        """
        keep = self.images.keep.astype(np.int64)
        if self.scope == "image" or self.images.frame is None:
            return sums_between(keep**2, self.offsets)
        ends = np.concatenate([[0], np.cumsum(self.samples_per_pack())])
        return sums_between(self.images.sample_sums(keep) ** 2, ends)

    def model_cost(self, width: int = 768) -> np.ndarray:
        """Cost of each pack in a transformer of `width` features, float64 (N,).

        The unit is the cost of one token in the matrices.

        In a block, a token costs 24 width**2 operations in the matrices (with an MLP four times as wide) and 4 width n
        in attention over the n tokens of its image, or of its sample (`scope`).
        """
        return self.tokens() + self.attention_cost() / (6 * width)
