"""`Planner` and `plan`: assign samples to packs, with their sizes and token counts. No pixels are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np

from patchnpack.packer.binpacking.algorithms import DECREASING
from patchnpack.packer.binpacking.pack_lengths import SAMPLE, is_undecided, pack_ready
from patchnpack.packer.binpacking.patterns import pack_by_patterns
from patchnpack.packer.checks import check_whole
from patchnpack.packer.config import Packing
from patchnpack.packer.planning.decision import Decision
from patchnpack.packer.planning.fill import fewest_tokens, fill_packs
from patchnpack.packer.planning.images import Images, Rows
from patchnpack.packer.planning.measure import Measured, measure
from patchnpack.packer.planning.plan import Plan
from patchnpack.packer.policies.patch_sizes import PatchSizes

# n samples, M images, N packs


def images_per_pack(rows: Rows, packing: Packing, *, seed: int) -> tuple[float, ...]:
    """Estimate the samples per pack at each patch size from the first of `rows`.

    A curriculum counts the samples of earlier blocks with this estimate: all streams then agree on a block's patch size
    without knowing what the others packed.
    """
    if not isinstance(packing.patch_size, PatchSizes) or not len(rows):
        return (0.0,) * len(packing.patch_sizes)
    first, free = rows.take(slice(SAMPLE)), packing.replace(oversize="drop")
    measured = [measure(first, free, seed=seed, epoch=0, patch_size=size) for size in packing.patch_sizes]
    return tuple(
        packing.seq_len / float(at_size.images.sample_sums(at_size.images.keep).mean()) for at_size in measured
    )


class _Items(NamedTuple):
    """Samples as the packers take them: tokens, the fewest that `fill` may cut them to, and images of each, (n,)."""

    lengths: np.ndarray
    least: np.ndarray | None
    counts: np.ndarray | None

    @classmethod
    def of(cls, images: Images, counts: np.ndarray | None, packing: Packing, patch_size: int) -> _Items:
        least = fewest_tokens(images, packing, patch_size)
        return cls(images.sample_sums(images.keep), None if least is None else images.sample_sums(least), counts)

    def take(self, which: np.ndarray) -> _Items:
        return _Items(*(None if column is None else column[which] for column in self))  # type: ignore[arg-type]


class Planner:
    """Plan samples as they arrive: `add` returns the packs that are ready, `finish` the rest.

    However the samples are split into calls, the packs are the same. The algorithm "auto" and the prices of "priced"
    are decided once, from the first 16,384 samples, unless `packing` holds both; `plan` decides from all samples. With
    `PatchSizes` each sample is measured at every size when it arrives, and a block is packed by the token counts at its
    own size.

    Args:
        packing: the configuration.
        seed, epoch: keys of the random draws.
        start: samples seen in training before the epoch's first one, for schedules.
        stream, num_streams: number of this stream, and of all streams, which take turns.
        share: consecutive packs of one patch size, with `PatchSizes`.
        images_per_pack: estimated samples per pack at each patch size, for a curriculum of patch sizes.
        decide_at: numbers of samples after which the algorithm and the prices are decided (again), from all so far.
    """

    def __init__(
        self,
        packing: Packing,
        *,
        seed: int = 0,
        epoch: int = 0,
        start: int = 0,
        stream: int = 0,
        num_streams: int = 1,
        share: int = 1,
        images_per_pack: Sequence[float] = (),
        decide_at: Sequence[int] = (SAMPLE,),
    ) -> None:
        self._packing, self._seed, self._epoch = packing, seed, epoch
        self._start, self._stream, self._num_streams, self._share = start, stream, num_streams, share
        self._images_per_pack = images_per_pack
        self._images_seen = float(start)  # including the packs of earlier blocks, in all streams
        self._emitted = False  # whether a pack has been returned
        self._decision = Decision(packing, decide_at) if is_undecided(packing.algorithm, packing.prices) else None
        self._arrived, self._packs = 0, 0
        self._waiting: list[Images] = []  # one entry per patch size

    def add(self, rows: Rows) -> Plan:
        """Add samples; returns the packs that no later sample can change."""
        plans = []
        while self._decision is not None and (missing := self._decision.missing(self._arrived)) <= len(rows):
            plans.append(self._add(rows.take(slice(missing))))
            rows = rows.take(slice(missing, None))
            self._packing = self._decision.decide(self._arrived)
        return Plan.concatenate([*plans, self._add(rows)])

    def _add(self, rows: Rows) -> Plan:
        images_seen = self._start + self._stream + self._num_streams * (self._arrived + np.arange(len(rows)))
        self._arrived += len(rows)
        packing = self._packing
        measured = [
            measure(rows, packing, seed=self._seed, epoch=self._epoch, images_seen=images_seen, patch_size=size)
            for size in packing.patch_sizes
        ]
        arrived, under, few = [at_size.images for at_size in measured], measured[0].undersize, measured[0].few
        over = reduce(np.logical_or, (at_size.oversize for at_size in measured))
        skipped = Measured(arrived[0], over, under, few).skipped(packing)
        if skipped.any():
            arrived = [images.take_samples(~skipped) for images in arrived]
        if self._decision is not None:
            self._decision.add([images.sample_sums(images.keep) for images in arrived], arrived[0].sample_counts())
        if self._waiting:
            arrived = [Images.concatenate(parts) for parts in zip(self._waiting, arrived, strict=True)]
        self._waiting = arrived
        row = rows.row[rows.first]
        few_rows = row[:0] if few is None else row[few]
        return self._plan(flush=False, skipped=row[skipped], oversize=row[over], undersize=row[under], few=few_rows)

    def finish(self) -> Plan:
        """Pack the samples that still wait."""
        none = np.empty(0, np.int64)
        if not self._waiting:
            self._add(Rows.of_sizes(none, none))
        if self._decision is not None and is_undecided(self._packing.algorithm, self._packing.prices):
            self._packing = self._decision.decide(None)
        return self._plan(flush=True, skipped=none, oversize=none, undersize=none, few=none)

    def _plan(
        self, *, flush: bool, skipped: np.ndarray, oversize: np.ndarray, undersize: np.ndarray, few: np.ndarray
    ) -> Plan:
        packing, waiting = self._packing, self._waiting
        counts = waiting[0].sample_counts()
        stays = np.ones(len(waiting[0]) if counts is None else len(counts), np.bool_)
        images, offsets, patch_size = [waiting[0].take(slice(0))], [np.zeros(1, np.int64)], [np.empty(0, np.int32)]
        for number, order, ends in self._packed(flush, counts):
            self._emitted |= len(order) > 0
            stays[order] = False
            packed = waiting[number].take_samples(order)
            if counts is not None:
                ends = np.concatenate([[0], np.cumsum(counts[order])])[ends]
            fill_packs(packed, ends, packing, packing.patch_sizes[number])
            images.append(packed)
            offsets.append(offsets[-1][-1] + ends[1:])
            patch_size.append(np.full(len(ends) - 1, packing.patch_sizes[number], np.int32))
        self._waiting = [images.take_samples(stays) for images in waiting]
        return Plan(
            offsets=np.concatenate(offsets),
            patch_size=np.concatenate(patch_size),
            images=images[1] if len(images) == 2 else Images.concatenate(images),
            skipped=skipped,
            oversize=oversize,
            undersize=undersize,
            algorithm=packing.algorithm,
            few=few,
            scope=packing.scope,
        )

    def _packed(self, flush: bool, counts: np.ndarray | None) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Pack waiting samples in runs of one patch size: its number, their order, and the packs' offsets in it.

        `counts` (n,) is the number of images of each sample; None where it is 1.
        """
        if is_undecided(self._packing.algorithm, self._packing.prices):
            return
        sizes = self._packing.patch_sizes
        items = [_Items.of(images, counts, self._packing, P) for images, P in zip(self._waiting, sizes, strict=True)]
        if not isinstance(self._packing.patch_size, PatchSizes):
            yield 0, *self._pack(0, items[0], flush)
            return
        left, entered = np.empty(0, np.int64), 0  # samples considered but not packed; number of samples considered
        while True:
            block, done = divmod(self._packs, self._share)
            size = self._packing.patch_size.draw(
                seed=self._seed, epoch=self._epoch, block=block, images_seen=self._images_seen
            )
            number, wanted = sizes.index(size), self._share - done
            left, entered, order, offsets = self._pack_some(number, items[number], left, entered, wanted, flush)
            if len(offsets) == 1:
                return
            self._packs += len(offsets) - 1
            if self._images_per_pack and self._packs % self._share == 0:
                self._images_seen += self._share * self._num_streams * self._images_per_pack[number]
            yield number, order, offsets

    def _pack_some(
        self, number: int, items: _Items, left: np.ndarray, entered: int, wanted: int, flush: bool
    ) -> tuple[np.ndarray, int, np.ndarray, np.ndarray]:
        """Make at most `wanted` packs of the samples `left` and those not yet entered.

        No more samples enter than needed.
        """
        packing, decreasing = self._packing, self._packing.algorithm in DECREASING
        reach = 4 * packing.lookahead if decreasing else packing.lookahead + 16 * wanted
        while True:
            upto = min(len(items.lengths), entered + max(0, reach - len(left)))
            considered = np.concatenate([left, np.arange(entered, upto)])
            last = flush and upto == len(items.lengths)
            order, offsets = self._pack(number, items.take(considered), last)
            if decreasing or len(offsets) > wanted or upto == len(items.lengths):
                break
            reach *= 2
        if len(offsets) > wanted + 1:
            offsets = offsets[: wanted + 1]
            order = order[: offsets[-1]]
        stays = np.ones(len(considered), np.bool_)
        stays[order] = False
        return considered[stays], upto, considered[order], offsets

    def _pack(self, number: int, items: _Items, flush: bool) -> tuple[np.ndarray, np.ndarray]:
        packing = self._packing
        if self._sees_all(flush, len(items.lengths)):
            return pack_by_patterns(items.lengths, packing.seq_len, packing.max_images, items.counts)
        return pack_ready(
            items.lengths,
            packing.seq_len,
            max_items=packing.max_images,
            algorithm=packing.algorithm,
            lookahead=packing.lookahead,
            flush=flush,
            least=items.least,
            counts=items.counts,
            prices=None if packing.prices is None else packing.prices[number],
        )

    def _sees_all(self, flush: bool, waiting: int) -> bool:
        """Whether "priced" has every sample in view, so that it can follow the patterns of the whole."""
        packing, first = self._packing, flush and not self._emitted
        return (
            packing.algorithm == "priced" and packing.can_follow_patterns and first and 0 < waiting <= packing.lookahead
        )


def plan(
    rows: Rows, packing: Packing, *, seed: int = 0, epoch: int = 0, start: int | None = None, block: int = 64
) -> Plan:
    """Plan all rows at once: a pure function of its arguments.

    Args:
        rows: the samples, in order of arrival.
        packing: the configuration.
        seed, epoch: keys of the random draws, together with each row's `row_id`.
        start: samples seen in training before these, for schedules; None means `epoch` times the number of samples.
        block: consecutive packs of one patch size; only `PatchSizes` uses it.

    Returns:
        The packs, in the order in which they are emitted. Each sample is in exactly one pack, or in `skipped`.

    Raises:
        ValueError: `measure` refuses a sample, such as an oversize one with `oversize="error"`.

    >>> rows = Rows.of_sizes([64, 32, 32, 64], [64, 64, 32, 32])
    >>> packs = plan(rows, Packing(seq_len=24, patch_size=16))
    >>> [packs.pack(i).row.tolist() for i in range(len(packs))], packs.tokens().tolist()
    ([[0, 1], [2, 3]], [24, 12])
    """
    check_whole("block", block)
    planner = Planner(
        packing,
        seed=seed,
        epoch=epoch,
        start=epoch * len(rows) if start is None else start,
        share=block,
        images_per_pack=images_per_pack(rows, packing, seed=seed),
        decide_at=(),  # after the last row, from all of them
    )
    return Plan.concatenate([planner.add(rows), planner.finish()])
