"""Baselines: the usual ways to batch images of different sizes, and their costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from patchnpack.packer.config import Packing
from patchnpack.packer.planning.images import Images, Rows
from patchnpack.packer.planning.plan import Plan
from patchnpack.packer.planning.planner import plan
from patchnpack.packer.policies.resolution import FitTokens

# n images; a slot is the place of one token in the model's input, filled or not

BUCKETS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """One way to batch the same images, and what it costs.

    Attributes:
        name: how the images are batched.
        sequences: total rows of the batches.
        slots: total token slots.
        tokens: slots that hold a token.
        attention_cost: total pairs of slots that attention computes: within each image for packs, within each row of
            slots for padded and masked images.
        resized: whether images get another size than the packing gives them, so that the model sees different images.
        note: what the figures do not show.
    """

    name: str
    sequences: int
    slots: int
    tokens: int
    attention_cost: int
    resized: bool = False
    note: str = ""

    @property
    def padding(self) -> float:
        """Share of the slots that hold no token."""
        return 1 - self.tokens / self.slots if self.slots else 0.0


def baselines(made: Plan, rows: Rows, packing: Packing, *, seed: int, epoch: int, block: int) -> tuple[Baseline, ...]:
    """The plan itself as a baseline, then the other ways to batch the same images.

    Args:
        made: the plan of the rows.
        rows: the images.
        packing: the configuration of the plan.
        seed, epoch, block: arguments of the plan.
    """
    return (
        _packed(made, packing),
        *_next_fit(rows, packing, seed, epoch, block),
        _longest(made),
        _bucketed(made),
        _fitted(made, rows, packing),
        _square(made, rows),
    )


def buckets(keep: np.ndarray, count: int = BUCKETS) -> tuple[np.ndarray, np.ndarray]:
    """Split images into buckets of similar token counts.

    Returns each bucket's longest image and number of images, int64 (count,).

    >>> buckets(np.array([5, 1, 2, 4, 3]), 2)
    (array([2, 5]), array([2, 3]))
    """
    keep = np.sort(keep.astype(np.int64))
    ends = np.unique(np.arange(1, count + 1) * len(keep) // count)
    ends = ends[ends > 0]
    return keep[ends - 1], np.diff(ends, prepend=0)


def row_positions(images: Images, rows: Rows) -> np.ndarray:
    """Position of each image's row in `rows`, int64 (M,)."""
    order = np.argsort(rows.row, kind="stable")
    return order[np.searchsorted(rows.row, images.row, sorter=order)]


def _packed(made: Plan, packing: Packing) -> Baseline:
    return Baseline(
        name=f"packed, {made.algorithm}",
        sequences=len(made),
        slots=len(made) * packing.seq_len,
        tokens=int(made.tokens().sum()),
        attention_cost=int(made.attention_cost().sum()),
    )


def _next_fit(rows: Rows, packing: Packing, seed: int, epoch: int, block: int) -> list[Baseline]:
    if packing.algorithm == "next_fit":
        return []
    next_fit = packing.replace(algorithm="next_fit", fill="none" if packing.fill == "none" else "undrop")
    return [_packed(plan(rows, next_fit, seed=seed, epoch=epoch, block=block), packing)]


def _by_patch_size(made: Plan) -> list[tuple[int, Images]]:
    """The images of the plan, grouped by patch size."""
    each = np.repeat(made.patch_size, np.diff(made.offsets))
    return [(int(size), made.images.take(each == size)) for size in np.unique(each)]


def _item(made: Plan) -> str:
    """What a row of slots holds: a sample of several images stays in one row."""
    return "image" if made.num_samples == len(made.images) else "sample"


def _longest(made: Plan) -> Baseline:
    """One sample per row, padded to the longest sample of its patch size."""
    parts = [images.sample_sums(images.keep.astype(np.int64)) for _, images in _by_patch_size(made)]
    longest = " or ".join(f"{part.max():,}" for part in parts)
    return Baseline(
        name="padded to the longest",
        sequences=sum(map(len, parts)),
        slots=sum(len(part) * int(part.max()) for part in parts),
        tokens=int(made.tokens().sum()),
        attention_cost=sum(len(part) * int(part.max()) ** 2 for part in parts),
        note=f"one {_item(made)} per row of {longest} slots",
    )


def _bucketed(made: Plan) -> Baseline:
    """One sample per row, padded to the longest sample of its bucket of similar lengths."""
    slots, attention, edges = 0, 0, []
    for _, images in _by_patch_size(made):
        longest, rows = buckets(images.sample_sums(images.keep))
        slots += int((longest * rows).sum())
        attention += int((longest**2 * rows).sum())
        edges.append(", ".join(f"{edge:,}" for edge in np.unique(longest)))
    return Baseline(
        name="bucketed by length",
        sequences=made.num_samples,
        slots=slots,
        tokens=int(made.tokens().sum()),
        attention_cost=attention,
        note=f"{BUCKETS} buckets of equally many {_item(made)}s, in rows of {' or '.join(edges)} slots; a batch "
        f"draws from one bucket, so its {_item(made)}s have similar sizes",
    )


def _fitted(made: Plan, rows: Rows, packing: Packing) -> Baseline:
    """Each image resized to at most the mean number of tokens, and padded to that number."""
    slots = tokens = attention = 0
    lengths: list[str] = []
    enlarged = 0
    for size, images in _by_patch_size(made):
        length = max(packing.grid_multiple**2, round(float(images.keep.mean())))
        at = row_positions(images, rows)
        policy = FitTokens(length, upsample=True)
        grid = policy.sizes(rows.width[at], rows.height[at], size, packing.grid_multiple).grid.prod(1, dtype=np.int64)
        slots, tokens = slots + len(grid) * length, tokens + int(grid.sum())
        attention += len(grid) * length**2
        enlarged += int((grid > images.grid.prod(1, dtype=np.int64)).sum())
        lengths.append(f"{length:,}")
    words = " or ".join(dict.fromkeys(lengths))
    return Baseline(
        name=f"fitted to {words} tokens",
        sequences=len(made.images),
        slots=slots,
        tokens=tokens,
        attention_cost=attention,
        resized=True,
        note=f"one image per row, resized to at most {words} tokens, aspect kept, as timm's NaFlex loader does for "
        f"each length that it draws; {enlarged / max(1, len(made.images)):.0%} of images enlarged",
    )


def _square(made: Plan, rows: Rows) -> Baseline:
    """The square whose token count is nearest to the mean image's: about equal compute."""
    sides, tokens, attention = [], 0, 0
    for size, images in _by_patch_size(made):
        side = max(1, round(float(images.keep.mean()) ** 0.5))
        sides.append(f"{side * size}x{side * size}")
        tokens += len(images) * side**2
        attention += len(images) * side**4
    stretch = np.maximum(rows.width, rows.height) / np.minimum(rows.width, rows.height)
    return Baseline(
        name=f"resized to {' or '.join(dict.fromkeys(sides))}",
        sequences=len(made.images),
        slots=tokens,
        tokens=tokens,
        attention_cost=attention,
        resized=True,
        note=f"{(stretch > 1.1).mean():.0%} of images stretched by over 10 %; median {np.median(stretch) - 1:.0%}",
    )
