"""What a configuration makes of a data set: packs, padding, and what the usual ways would cost instead."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from patchnpack.packer.balance import balanced_order, slowest_over_mean, window_of
from patchnpack.packer.config import Packing
from patchnpack.packer.plan import Plan, Rows, plan
from patchnpack.packer.random import Purpose, keys

# n images; a slot is the place of one token in what the model is given, whether a token fills it or not

_TIMED_ROWS = 200_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """One way to batch the same images, and what it costs.

    Attributes:
        name: what is done with the images.
        sequences: rows of the batches, in all.
        slots: token slots in all.
        tokens: slots that hold a token.
        note: what the figures do not show.
    """

    name: str
    sequences: int
    slots: int
    tokens: int
    note: str = ""

    @property
    def padding(self) -> float:
        """Share of the slots that hold no token."""
        return 1 - self.tokens / self.slots if self.slots else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PackingReport:
    """What `packing` makes of n images.

    Attributes:
        packing: the configuration.
        images: images in packs.
        tokens_before_drop: their patches.
        tokens: their tokens, after dropping.
        tokens_an_image: smallest, median, mean and largest number of tokens.
        packs: sequences of `packing.seq_len` slots.
        images_a_pack: smallest, mean and largest number of images.
        oversize: images of more than `seq_len` tokens; `packing.oversize` says what became of them.
        skipped: images left out because of that.
        ways: packing as configured first, then the ways it is compared with.
        slowest_of_8: with 8 ranks, the attention cost of a step's dearest pack over the packs' mean: as packed,
            and balanced in windows of `packing.balance`; 1 is even.
        plan_s_a_million: seconds of one core to plan a million such images.
    """

    packing: Packing
    images: int
    tokens_before_drop: int
    tokens: int
    tokens_an_image: tuple[int, float, float, int]
    packs: int
    images_a_pack: tuple[int, float, int]
    oversize: int
    skipped: int
    ways: tuple[Way, ...]
    slowest_of_8: tuple[float, float]
    plan_s_a_million: float

    @property
    def padding(self) -> float:
        """Share of the slots that hold no token."""
        return self.ways[0].padding


def report(rows: Rows, packing: Packing, *, seed: int = 0) -> PackingReport:
    """Plans the rows with `packing`, and by the ways that people use otherwise.

    >>> import numpy as np
    >>> sides = np.random.default_rng(0).integers(48, 385, (2, 1000))
    >>> found = report(Rows.of_sizes(*sides), Packing(seq_len=256))
    >>> found.images, found.packs, [way.name for way in found.ways][:2]
    (1000, 677, ['packed, largest_fit', 'packed, next_fit'])
    """
    made = plan(rows, packing, seed=seed)
    images = made.images
    if not len(images):
        raise ValueError(
            f"none of the {len(rows)} images is left to pack; {len(made.skipped)} were skipped as oversize"
        )
    keep = images.keep.astype(np.int64)
    counts = np.diff(made.offsets)
    tokens = int(keep.sum())
    return PackingReport(
        packing=packing,
        images=len(images),
        tokens_before_drop=int(images.grid.prod(1, dtype=np.int64).sum()),
        tokens=tokens,
        tokens_an_image=(int(keep.min()), float(np.median(keep)), float(keep.mean()), int(keep.max())),
        packs=len(made),
        images_a_pack=(int(counts.min()), float(counts.mean()), int(counts.max())),
        oversize=len(made.oversize),
        skipped=len(made.skipped),
        ways=(
            _packed(made.algorithm, len(made), tokens, packing),
            *_next_fit(rows, packing, seed),
            Way(
                name="padded to the longest",
                sequences=len(keep),
                slots=len(keep) * int(keep.max()),
                tokens=tokens,
                note=f"one image a row of {keep.max()} slots",
            ),
            _square(rows, keep, packing),
        ),
        slowest_of_8=_slowest_of_8(made, packing, seed),
        plan_s_a_million=_plan_s_a_million(rows, packing, seed),
    )


def _slowest_of_8(made: Plan, packing: Packing, seed: int) -> tuple[float, float]:
    cost = made.attention_cost()
    as_packed = slowest_over_mean(cost, 8)
    if not packing.balance:
        return as_packed, as_packed
    window = window_of(packing.balance, 8)
    drawn = keys(Purpose.BALANCE, seed, 0, np.arange(window // 8, dtype=np.uint64))
    parts = [cost[first : first + window] for first in range(0, len(cost), window)]
    return as_packed, slowest_over_mean(np.concatenate([part[balanced_order(part, 8, drawn)] for part in parts]), 8)


def _packed(algorithm: str, packs: int, tokens: int, packing: Packing) -> Way:
    slots = packs * packing.seq_len
    return Way(name=f"packed, {algorithm}", sequences=packs, slots=slots, tokens=tokens)


def _next_fit(rows: Rows, packing: Packing, seed: int) -> list[Way]:
    if packing.algorithm == "next_fit":
        return []
    made = plan(rows, packing.replace(algorithm="next_fit"), seed=seed)
    return [_packed("next_fit", len(made), int(made.tokens().sum()), packing)]


def _square(rows: Rows, keep: np.ndarray, packing: Packing) -> Way:
    """The square whose tokens come nearest to the mean image's, so that the model computes about as much."""
    side = max(1, round(float(keep.mean()) ** 0.5))
    stretch = np.maximum(rows.width, rows.height) / np.minimum(rows.width, rows.height)
    return Way(
        name=f"resized to {side * packing.patch_size}x{side * packing.patch_size}",
        sequences=len(rows),
        slots=len(rows) * side**2,
        tokens=len(rows) * side**2,
        note=f"{(stretch > 1.1).mean():.0%} of images stretched by over 10 %; median {np.median(stretch) - 1:.0%}",
    )


def _plan_s_a_million(rows: Rows, packing: Packing, seed: int) -> float:
    count = max(len(rows), _TIMED_ROWS)
    many = Rows.of_sizes(np.resize(rows.width, count), np.resize(rows.height, count))
    began = time.perf_counter()
    plan(many, packing, seed=seed)
    return (time.perf_counter() - began) / count * 1e6
