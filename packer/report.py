"""What a configuration makes of a data set: packs, padding, and what the usual ways would cost instead."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from patchnpack.packer.balance import slowest_over_mean, window_of, window_order
from patchnpack.packer.checks import check_whole
from patchnpack.packer.config import Packing
from patchnpack.packer.images import Images, Rows
from patchnpack.packer.plan import Plan, plan
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
        ranks: ranks that a step's packs are shared out to.
        slowest_attention: the attention cost of a step's dearest pack over the packs' mean: as packed, and balanced in
            windows of `packing.balance`; 1 is even.
        slowest_model: the same of the whole model's cost, of `width` features.
        width: features of the model.
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
    ranks: int
    slowest_attention: tuple[float, float]
    slowest_model: tuple[float, float]
    width: int
    plan_s_a_million: float

    @property
    def padding(self) -> float:
        """Share of the slots that hold no token."""
        return self.ways[0].padding


def report(rows: Rows, packing: Packing, *, seed: int = 0, ranks: int = 8, width: int = 768) -> PackingReport:
    """Plans the rows with `packing`, and by the ways that people use otherwise.

    Args:
        rows: the images, in order of arrival.
        packing: what a sequence looks like.
        seed: of all draws.
        ranks: ranks that train together, at least 1: how long they wait for each other is told.
        width: features of the model that they train.

    >>> import numpy as np
    >>> sides = np.random.default_rng(0).integers(48, 385, (2, 1000))
    >>> found = report(Rows.of_sizes(*sides), Packing(seq_len=256))
    >>> found.images, found.packs, [way.name for way in found.ways][:2]
    (1000, 677, ['packed, largest_fit', 'packed, next_fit'])
    """
    check_whole("ranks", ranks)
    check_whole("width", width)
    made = plan(rows, packing, seed=seed, block=ranks)
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
            *_next_fit(rows, packing, seed, ranks),
            _longest(made),
            _square(made, rows),
        ),
        ranks=ranks,
        slowest_attention=_slowest(made, made.attention_cost(), packing, seed, ranks),
        slowest_model=_slowest(made, made.model_cost(width), packing, seed, ranks),
        width=width,
        plan_s_a_million=_plan_s_a_million(rows, packing, seed),
    )


def _slowest(made: Plan, cost: np.ndarray, packing: Packing, seed: int, ranks: int) -> tuple[float, float]:
    as_packed = slowest_over_mean(cost, ranks)
    if not packing.balance:
        return as_packed, as_packed
    window, attention = window_of(packing.balance, ranks), made.attention_cost()
    drawn = keys(Purpose.BALANCE, seed, 0, np.arange(window // ranks, dtype=np.uint64))
    parts = []
    for first in range(0, len(cost), window):
        part = slice(first, first + window)
        parts.append(cost[part][window_order(attention[part], made.patch_size[part], ranks, drawn)])
    return as_packed, slowest_over_mean(np.concatenate(parts), ranks)


def _packed(algorithm: str, packs: int, tokens: int, packing: Packing) -> Way:
    slots = packs * packing.seq_len
    return Way(name=f"packed, {algorithm}", sequences=packs, slots=slots, tokens=tokens)


def _next_fit(rows: Rows, packing: Packing, seed: int, block: int) -> list[Way]:
    if packing.algorithm == "next_fit":
        return []
    usual = packing.replace(algorithm="next_fit", fill="none" if packing.fill == "none" else "undrop")
    made = plan(rows, usual, seed=seed, block=block)
    return [_packed("next_fit", len(made), int(made.tokens().sum()), packing)]


def _by_patch_size(made: Plan) -> list[tuple[int, Images]]:
    """The images at each patch size."""
    each = np.repeat(made.patch_size, np.diff(made.offsets))
    return [(int(size), made.images.take(each == size)) for size in np.unique(each)]


def _longest(made: Plan) -> Way:
    """One image a row of as many slots as the longest has; of the longest at each patch size, if there are several."""
    parts = [images.keep.astype(np.int64) for _, images in _by_patch_size(made)]
    longest = " or ".join(f"{part.max()}" for part in parts)
    return Way(
        name="padded to the longest",
        sequences=sum(map(len, parts)),
        slots=sum(len(part) * int(part.max()) for part in parts),
        tokens=int(made.tokens().sum()),
        note=f"one image a row of {longest} slots",
    )


def _square(made: Plan, rows: Rows) -> Way:
    """The square whose tokens come nearest to the mean image's, so that the model computes about as much."""
    sides, tokens = [], 0
    for size, images in _by_patch_size(made):
        side = max(1, round(float(images.keep.mean()) ** 0.5))
        sides.append(f"{side * size}x{side * size}")
        tokens += len(images) * side**2
    stretch = np.maximum(rows.width, rows.height) / np.minimum(rows.width, rows.height)
    return Way(
        name=f"resized to {' or '.join(dict.fromkeys(sides))}",
        sequences=len(made.images),
        slots=tokens,
        tokens=tokens,
        note=f"{(stretch > 1.1).mean():.0%} of images stretched by over 10 %; median {np.median(stretch) - 1:.0%}",
    )


def _plan_s_a_million(rows: Rows, packing: Packing, seed: int) -> float:
    count = max(len(rows), _TIMED_ROWS)
    many = Rows.of_sizes(np.resize(rows.width, count), np.resize(rows.height, count))
    began = time.perf_counter()
    plan(many, packing, seed=seed)
    return (time.perf_counter() - began) / count * 1e6
