"""`report`: packs, padding and cost of a data set, compared with baselines."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from patchnpack.packer.analysis.baselines import Baseline, baselines, row_positions
from patchnpack.packer.analysis.histogram import Histogram
from patchnpack.packer.binpacking.balance import load_imbalance, window_of, window_order
from patchnpack.packer.binpacking.pricing.cutting_stock import GROUPS
from patchnpack.packer.binpacking.pricing.prices import Prices
from patchnpack.packer.checks import check_whole
from patchnpack.packer.config import Packing
from patchnpack.packer.planning.images import Rows
from patchnpack.packer.planning.plan import Plan
from patchnpack.packer.planning.planner import plan
from patchnpack.packer.policies.random import Purpose, counter_hash

# n images, N packs; a slot is the place of one token in the model's input, filled or not

_TIMED_ROWS = 200_000
_GROUPS = 100  # groups of consecutive packs whose fill is reported: as many as a chart can show
_SHOWN_PACKS = 12
_ASPECTS = 2.0 ** np.arange(-2, 2.0625, 0.125)  # width over height; wider and taller images count in the outermost bins


@dataclass(frozen=True, kw_only=True, slots=True)
class Distributions:
    """The distributions behind the means of a report.

    Attributes:
        tokens_per_image: images by number of kept tokens.
        tokens_per_sample: samples by number of kept tokens.
        images_per_sample: samples by number of images.
        aspect: images by width over height of the source.
        drop_rate: images by share of dropped tokens.
        images_per_pack: packs by number of images.
        attention_per_pack: packs by attention cost.
        fill: least and mean share of filled slots, for consecutive groups of packs.
        packs: the first packs, as the token counts of their images.
    """

    tokens_per_image: Histogram
    tokens_per_sample: Histogram
    images_per_sample: Histogram
    aspect: Histogram
    drop_rate: Histogram
    images_per_pack: Histogram
    attention_per_pack: Histogram
    fill: tuple[tuple[float, float], ...]
    packs: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pricing:
    """What the prices of "priced" took.

    Attributes:
        token_counts: distinct token counts of the images, over all patch sizes.
        groups: prices that were solved for; fewer than `token_counts` where rare counts share a price.
        seconds: seconds on one core.
    """

    token_counts: int
    groups: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PackingReport:
    """The packs of n samples under one configuration.

    Attributes:
        packing: the configuration.
        samples: samples in packs.
        images: images in packs.
        images_per_sample: smallest, mean and largest number of images.
        tokens_native: patches of the images at their own sizes, sides rounded up.
        tokens_before_drop: patches of the images at the sizes that the packing gives them.
        tokens: tokens of the images after dropping.
        tokens_per_image, tokens_per_sample: smallest, median, mean and largest number of tokens.
        drop_rate: mean share of an image's tokens that is dropped.
        packs: number of packs of `packing.seq_len` slots.
        images_per_pack, samples_per_pack: smallest, mean and largest number.
        oversize: samples of more than `seq_len` tokens or `max_images` images, treated as `packing.oversize` says.
        undersize: samples with an image smaller than a patch, treated as `packing.undersize` says.
        skipped: samples skipped, by reason: "oversize", "undersize" and, if any, "frames".
        attention_cost: sum of the squared token counts of the images, or of the samples (`packing.scope`).
        attention_per_pack: attention cost of a pack: smallest, mean and largest.
        attention_spread: standard deviation of a pack's attention cost over its mean; 0 is even.
        baselines: the packing itself first, then the baselines.
        batch_size: packs per batch.
        batch_bytes: bytes of a batch's tensors, at the largest patch size.
        steps: batches of each rank per epoch.
        empty_packs: empty packs that fill the last step.
        ranks: number of ranks that share a step's packs.
        attention_imbalance: attention cost of a step's costliest pack over that of its mean pack: as packed, and
            balanced in windows of `packing.balance`; 1 is even.
        model_imbalance: the same for the cost of a whole model of `width` features.
        width: features of the model.
        planning_seconds_per_million: seconds on one core to plan a million such samples.
        pricing: what the prices took; None if the algorithm uses none.
        distributions: the distributions behind the means.
    """

    packing: Packing
    samples: int
    images: int
    images_per_sample: tuple[int, float, int]
    tokens_native: int
    tokens_before_drop: int
    tokens: int
    tokens_per_image: tuple[int, float, float, int]
    tokens_per_sample: tuple[int, float, float, int]
    drop_rate: float
    packs: int
    images_per_pack: tuple[int, float, int]
    samples_per_pack: tuple[int, float, int]
    oversize: int
    undersize: int
    skipped: dict[str, int]
    attention_cost: int
    attention_per_pack: tuple[int, float, int]
    attention_spread: float
    baselines: tuple[Baseline, ...]
    batch_size: int
    batch_bytes: int
    steps: int
    empty_packs: int
    ranks: int
    attention_imbalance: tuple[float, float]
    model_imbalance: tuple[float, float]
    width: int
    planning_seconds_per_million: float
    pricing: Pricing | None
    distributions: Distributions

    @property
    def item(self) -> str:
        """What is packed: "sample" where any has several images, otherwise "image"."""
        return "sample" if self.images > self.samples else "image"

    @property
    def padding(self) -> float:
        """Share of the packs' slots that hold no token."""
        return self.baselines[0].padding

    @property
    def epoch_padding(self) -> float:
        """Share of empty slots in all batches, including the empty packs that fill the last step."""
        return 1 - self.tokens / ((self.packs + self.empty_packs) * self.packing.seq_len)


def report(
    rows: Rows,
    packing: Packing,
    *,
    seed: int = 0,
    epoch: int = 0,
    batch_size: int = 8,
    ranks: int = 8,
    width: int = 768,
    made: Plan | None = None,
) -> PackingReport:
    """Plan the rows with `packing`, and compare with the baselines.

    Args:
        rows: the samples, in order of arrival.
        packing: the configuration.
        seed, epoch: keys of the random draws.
        batch_size: packs per batch of one rank, at least 1.
        ranks: number of ranks that train together, at least 1; the report says how long they wait for each other.
        width: features of the model that is trained.
        made: an existing plan of the rows; None plans them.

    >>> import numpy as np
    >>> sides = np.random.default_rng(0).integers(48, 385, (2, 1000))
    >>> found = report(Rows.of_sizes(*sides), Packing(seq_len=256))
    >>> found.images, found.packs, [baseline.name for baseline in found.baselines][:2]
    (1000, 677, ['packed, largest_fit', 'packed, next_fit'])
    """
    check_whole("batch_size", batch_size)
    check_whole("ranks", ranks)
    check_whole("width", width)
    step = batch_size * ranks
    made = plan(rows, packing, seed=seed, epoch=epoch, block=step) if made is None else made
    images, skipped = made.images, {reason: len(left) for reason, left in made.skipped_by_reason().items()}
    if not len(images):
        few = f", {skipped['frames']} for too few frames" if "frames" in skipped else ""
        raise ValueError(
            f"none of the {len(rows)} {'images' if rows.offsets is None else 'samples'} is left to pack: "
            f"{skipped['oversize']} were skipped as oversize and {skipped['undersize']} as undersize{few}; raise "
            "seq_len, or choose oversize='shrink' or 'drop', or undersize='pad'"
        )
    keep, before = images.keep.astype(np.int64), images.grid.prod(1, dtype=np.int64)
    counts, attention, source = np.diff(made.offsets), made.attention_cost(), row_positions(images, rows)
    of_sample, tokens = np.diff(images.sample_offsets()), images.sample_sums(keep)
    patch = np.repeat(made.patch_size, counts).astype(np.int64)
    native = -(-rows.width[source].astype(np.int64) // patch) * -(-rows.height[source].astype(np.int64) // patch)
    steps = -(-len(made) // step)
    return PackingReport(
        packing=packing,
        samples=made.num_samples,
        images=len(images),
        images_per_sample=_range(of_sample),
        tokens_native=int(native.sum()),
        tokens_before_drop=int(before.sum()),
        tokens=int(keep.sum()),
        tokens_per_image=_quartet(keep),
        tokens_per_sample=_quartet(tokens),
        drop_rate=float((1 - keep / before).mean()),
        packs=len(made),
        images_per_pack=_range(counts),
        samples_per_pack=_range(made.samples_per_pack()),
        oversize=len(made.oversize),
        undersize=len(made.undersize),
        skipped=skipped,
        attention_cost=int(attention.sum()),
        attention_per_pack=_range(attention),
        attention_spread=float(attention.std() / attention.mean()),
        baselines=baselines(made, rows, packing, seed=seed, epoch=epoch, block=step),
        batch_size=batch_size,
        batch_bytes=batch_size * pack_bytes(packing),
        steps=steps,
        empty_packs=steps * step - len(made),
        ranks=ranks,
        attention_imbalance=imbalance(attention, attention, made.patch_size, packing, seed, ranks),
        model_imbalance=imbalance(attention, made.model_cost(width), made.patch_size, packing, seed, ranks),
        width=width,
        planning_seconds_per_million=_planning_seconds_per_million(rows, packing, seed),
        pricing=_pricing(made, packing) if made.algorithm == "priced" else None,
        distributions=Distributions(
            tokens_per_image=Histogram.of_counts(keep),
            tokens_per_sample=Histogram.of_counts(tokens),
            images_per_sample=Histogram.of_counts(of_sample),
            aspect=Histogram.of(rows.width[source] / rows.height[source], _ASPECTS),
            drop_rate=Histogram.of(1 - keep / before, np.linspace(0, 1, 21)),
            images_per_pack=Histogram.of_counts(counts),
            attention_per_pack=Histogram.of_counts(attention),
            fill=_fill_in_order(made, packing),
            packs=tuple(tuple(made.pack(i).keep.tolist()) for i in range(min(_SHOWN_PACKS, len(made)))),
        ),
    )


def pack_bytes(packing: Packing) -> int:
    """Bytes of one pack in a `PackedBatch` with class labels, at the largest patch size.

    Patches, segment ids and coords count per slot; grids, sizes, mask, labels and rows per image.

    >>> pack_bytes(Packing(seq_len=1024, patch_size=16, max_images=64))
    800832
    """
    slot = max(map(packing.token_bytes, packing.patch_sizes)) + 4 + 8
    return packing.seq_len * slot + packing.max_images * (8 + 8 + 1 + 8 + 8)


def imbalance(
    attention: np.ndarray, cost: np.ndarray, patch_size: np.ndarray, packing: Packing, seed: int, ranks: int
) -> tuple[float, float]:
    """`load_imbalance` of an epoch's packs, in plan order and after balancing.

    Args:
        attention: (N,), attention cost, by which packs are balanced.
        cost: (N,), the cost whose imbalance is measured.
        patch_size: (N,), patch size of each pack.
        packing: the configuration; `balance` is the window.
        seed: key of the order of shares.
        ranks: number of packs that run in parallel.
    """
    as_packed = load_imbalance(cost, ranks)
    if not packing.balance:
        return as_packed, as_packed
    window = window_of(packing.balance, ranks)
    drawn = counter_hash(Purpose.BALANCE, seed, 0, np.arange(window // ranks, dtype=np.uint64))
    parts = []
    for first in range(0, len(cost), window):
        part = slice(first, first + window)
        parts.append(cost[part][window_order(attention[part], patch_size[part], ranks, drawn)])
    return as_packed, load_imbalance(np.concatenate(parts), ranks)


def _range(values: np.ndarray) -> tuple[int, float, int]:
    return int(values.min()), float(values.mean()), int(values.max())


def _quartet(values: np.ndarray) -> tuple[int, float, float, int]:
    return int(values.min()), float(np.median(values)), float(values.mean()), int(values.max())


def _fill_in_order(made: Plan, packing: Packing) -> tuple[tuple[float, float], ...]:
    groups = np.array_split(made.tokens() / packing.seq_len, min(_GROUPS, len(made)))
    return tuple((float(group.min()), float(group.mean())) for group in groups)


def _pricing(made: Plan, packing: Packing) -> Pricing:
    patch_size = np.repeat(made.patch_size, made.samples_per_pack())
    lengths = made.images.sample_sums(made.images.keep)
    counts = [np.bincount(lengths[patch_size == size]) for size in np.unique(patch_size)]
    distinct = [int(np.count_nonzero(each)) for each in counts]
    began = time.perf_counter()
    for each in counts:
        Prices.of_counts(each, packing.seq_len)
    seconds = time.perf_counter() - began
    return Pricing(token_counts=sum(distinct), groups=sum(min(GROUPS, each) for each in distinct), seconds=seconds)


def _planning_seconds_per_million(rows: Rows, packing: Packing, seed: int) -> float:
    count = max(len(rows), _TIMED_ROWS)
    if rows.offsets is None:
        many = Rows.of_sizes(np.resize(rows.width, count), np.resize(rows.height, count))
    else:
        many = rows.take(np.resize(np.arange(len(rows)), count))
    began = time.perf_counter()
    plan(many, packing, seed=seed)
    return (time.perf_counter() - began) / count * 1e6
