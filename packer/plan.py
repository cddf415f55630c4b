"""`plan`: assign images to packs, with their sizes and token counts. No pixels are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from patchnpack.packer.binpacking.algorithms import DECREASING, Algorithm
from patchnpack.packer.binpacking.pack_lengths import SAMPLE, is_undecided, pack_ready
from patchnpack.packer.binpacking.patterns import pack_by_patterns
from patchnpack.packer.checks import check_whole
from patchnpack.packer.config import Packing
from patchnpack.packer.decision import Decision
from patchnpack.packer.fill import fewest_tokens, fill_packs
from patchnpack.packer.images import Images, Measured, Rows, measure
from patchnpack.packer.policies.patch_sizes import PatchSizes

# M images in the plan's packs, N packs


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """N packs: pack i holds the images `offsets[i]` to `offsets[i + 1]` of `images`.

    Attributes:
        offsets: int64 (N + 1,), offset of each pack's first image.
        patch_size: int32 (N,), P of each pack, in pixels.
        images: the images of all packs, pack by pack, in segment order.
        skipped: int64, rows left out because they were oversize or undersize.
        oversize: int64, rows of more than `seq_len` tokens (at any of the patch sizes), however they were treated.
        undersize: int64, rows smaller than a patch (of the largest size), however they were treated.
        algorithm: the packing algorithm; "auto" only where too few rows had arrived to decide.
    """

    offsets: np.ndarray
    patch_size: np.ndarray
    images: Images
    skipped: np.ndarray
    oversize: np.ndarray
    undersize: np.ndarray
    algorithm: Algorithm

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def pack(self, i: int) -> Images:
        """The images of pack i."""
        return self.images.take(slice(self.offsets[i], self.offsets[i + 1]))

    def take(self, low: int, high: int) -> Plan:
        """Return packs `low` to `high - 1`, without the rows that the plan left out."""
        offsets, none = self.offsets[low : high + 1], np.zeros(0, np.int64)
        return Plan(
            offsets=offsets - offsets[0],
            patch_size=self.patch_size[low:high],
            images=self.images.take(slice(offsets[0], offsets[-1])),
            skipped=none,
            oversize=none,
            undersize=none,
            algorithm=self.algorithm,
        )

    def skipped_by_reason(self) -> dict[str, np.ndarray]:
        """The skipped rows, int64, by reason: "oversize" and "undersize"."""
        over = np.isin(self.skipped, self.oversize)
        return {"oversize": self.skipped[over], "undersize": self.skipped[~over]}

    @classmethod
    def concatenate(cls, plans: Sequence[Plan]) -> Plan:
        """Return the packs of all plans, in order, with the rows that each left out; the last names the algorithm."""
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
        )

    def tokens(self) -> np.ndarray:
        """Tokens in each pack, int64 (N,)."""
        return self._sums(self.images.keep.astype(np.int64))

    def attention_cost(self) -> np.ndarray:
        """Attention cost of each pack, int64 (N,): the sum of its images' squared token counts."""
        return self._sums(self.images.keep.astype(np.int64) ** 2)

    def model_cost(self, width: int = 768) -> np.ndarray:
        """Cost of each pack in a transformer of `width` features, float64 (N,).

        The unit is the cost of one token in the matrices.

        In a block, a token costs 24 width**2 operations in the matrices (with an MLP four times as wide) and 4 width n
        in attention over the n tokens of its image.
        """
        return self.tokens() + self.attention_cost() / (6 * width)

    def _sums(self, values: np.ndarray) -> np.ndarray:
        return np.diff(np.concatenate([[0], np.cumsum(values)])[self.offsets])


def images_per_pack(rows: Rows, packing: Packing, *, seed: int) -> tuple[float, ...]:
    """Estimate the images per pack at each patch size from the first of `rows`.

    A curriculum counts the images of earlier blocks with this estimate: all streams then agree on a block's patch size
    without knowing what the others packed.
    """
    if not isinstance(packing.patch_size, PatchSizes) or not len(rows):
        return (0.0,) * len(packing.patch_sizes)
    first, free = rows.take(slice(SAMPLE)), packing.replace(oversize="drop")
    measured = [measure(first, free, seed=seed, epoch=0, patch_size=size) for size in packing.patch_sizes]
    return tuple(packing.seq_len / float(at_size.images.keep.mean()) for at_size in measured)


class Planner:
    """Plan rows as they arrive: `add` returns the packs that are ready, `finish` the rest.

    However the rows are split into calls, the packs are the same. The algorithm "auto" and the prices of "priced" are
    decided once, from the first 16,384 rows, unless `packing` holds both; `plan` decides from all rows. With
    `PatchSizes` each row is measured at every size when it arrives, and a block is packed by the token counts at its
    own size.

    Args:
        packing: the configuration.
        seed, epoch: keys of the random draws.
        start: images seen in training before the epoch's first row, for schedules.
        stream, num_streams: number of this stream, and of all streams, which take turns.
        share: consecutive packs of one patch size, with `PatchSizes`.
        images_per_pack: estimated images per pack at each patch size, for a curriculum of patch sizes.
        decide_at: numbers of rows after which the algorithm and the prices are decided (again), from all rows so far.
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
        """Add rows; returns the packs that no later row can change."""
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
        arrived, under = [at_size.images for at_size in measured], measured[0].undersize
        over = np.any([at_size.oversize for at_size in measured], axis=0)
        skipped = Measured(arrived[0], over, under).skipped(packing)
        if skipped.any():
            arrived = [images.take(~skipped) for images in arrived]
        if self._decision is not None:
            self._decision.add([images.keep for images in arrived])
        if self._waiting:
            arrived = [Images.concatenate(parts) for parts in zip(self._waiting, arrived, strict=True)]
        self._waiting = arrived
        return self._plan(flush=False, skipped=rows.row[skipped], oversize=rows.row[over], undersize=rows.row[under])

    def finish(self) -> Plan:
        """Pack the images that still wait."""
        none = np.empty(0, np.int64)
        if not self._waiting:
            self._add(Rows.of_sizes(none, none))
        if self._decision is not None and is_undecided(self._packing.algorithm, self._packing.prices):
            self._packing = self._decision.decide(None)
        return self._plan(flush=True, skipped=none, oversize=none, undersize=none)

    def _plan(self, *, flush: bool, skipped: np.ndarray, oversize: np.ndarray, undersize: np.ndarray) -> Plan:
        packing, waiting = self._packing, self._waiting
        stays = np.ones(len(waiting[0]), np.bool_)
        images, offsets, patch_size = [waiting[0].take(slice(0))], [np.zeros(1, np.int64)], [np.empty(0, np.int32)]
        for number, order, ends in self._packed(flush):
            self._emitted |= len(order) > 0
            stays[order] = False
            packed = waiting[number].take(order)
            fill_packs(packed, ends, packing, packing.patch_sizes[number])
            images.append(packed)
            offsets.append(offsets[-1][-1] + ends[1:])
            patch_size.append(np.full(len(ends) - 1, packing.patch_sizes[number], np.int32))
        self._waiting = [images.take(stays) for images in waiting]
        return Plan(
            offsets=np.concatenate(offsets),
            patch_size=np.concatenate(patch_size),
            images=images[1] if len(images) == 2 else Images.concatenate(images),
            skipped=skipped,
            oversize=oversize,
            undersize=undersize,
            algorithm=packing.algorithm,
        )

    def _packed(self, flush: bool) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Pack waiting images in runs of one patch size: its number, order and offsets."""
        if is_undecided(self._packing.algorithm, self._packing.prices):
            return
        sizes = self._packing.patch_sizes
        least = [fewest_tokens(images, self._packing, P) for images, P in zip(self._waiting, sizes, strict=True)]
        if not isinstance(self._packing.patch_size, PatchSizes):
            yield 0, *self._pack(0, self._waiting[0].keep, least[0], flush)
            return
        left, entered = np.empty(0, np.int64), 0  # images considered but not packed; number of images considered
        while True:
            block, done = divmod(self._packs, self._share)
            size = self._packing.patch_size.draw(
                seed=self._seed, epoch=self._epoch, block=block, images_seen=self._images_seen
            )
            number, wanted = sizes.index(size), self._share - done
            keep = self._waiting[number].keep
            left, entered, order, offsets = self._pack_some(number, keep, least[number], left, entered, wanted, flush)
            if len(offsets) == 1:
                return
            self._packs += len(offsets) - 1
            if self._images_per_pack and self._packs % self._share == 0:
                self._images_seen += self._share * self._num_streams * self._images_per_pack[number]
            yield number, order, offsets

    def _pack_some(
        self,
        number: int,
        lengths: np.ndarray,
        least: np.ndarray | None,
        left: np.ndarray,
        entered: int,
        wanted: int,
        flush: bool,
    ) -> tuple[np.ndarray, int, np.ndarray, np.ndarray]:
        """Make at most `wanted` packs of the images `left` and those not yet entered.

        No more images enter than needed.
        """
        packing, decreasing = self._packing, self._packing.algorithm in DECREASING
        reach = 4 * packing.lookahead if decreasing else packing.lookahead + 16 * wanted
        while True:
            upto = min(len(lengths), entered + max(0, reach - len(left)))
            considered = np.concatenate([left, np.arange(entered, upto)])
            last = flush and upto == len(lengths)
            cuts = None if least is None else least[considered]
            order, offsets = self._pack(number, lengths[considered], cuts, last)
            if decreasing or len(offsets) > wanted or upto == len(lengths):
                break
            reach *= 2
        if len(offsets) > wanted + 1:
            offsets = offsets[: wanted + 1]
            order = order[: offsets[-1]]
        stays = np.ones(len(considered), np.bool_)
        stays[order] = False
        return considered[stays], upto, considered[order], offsets

    def _pack(
        self, number: int, lengths: np.ndarray, least: np.ndarray | None, flush: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        packing = self._packing
        if self._sees_all(flush, len(lengths)):
            return pack_by_patterns(lengths, packing.seq_len, packing.max_images)
        return pack_ready(
            lengths,
            packing.seq_len,
            max_items=packing.max_images,
            algorithm=packing.algorithm,
            lookahead=packing.lookahead,
            flush=flush,
            least=least,
            prices=None if packing.prices is None else packing.prices[number],
        )

    def _sees_all(self, flush: bool, waiting: int) -> bool:
        """Whether "priced" has every image in view, so that it can follow the patterns of the whole."""
        packing, first = self._packing, flush and not self._emitted
        return (
            packing.algorithm == "priced" and packing.can_follow_patterns and first and 0 < waiting <= packing.lookahead
        )


def plan(
    rows: Rows, packing: Packing, *, seed: int = 0, epoch: int = 0, start: int | None = None, block: int = 64
) -> Plan:
    """Plan all rows at once: a pure function of its arguments.

    Args:
        rows: the images, in order of arrival.
        packing: the configuration.
        seed, epoch: keys of the random draws, together with each row's `row_id`.
        start: images seen in training before these, for schedules; None means `epoch` times the number of rows.
        block: consecutive packs of one patch size; only `PatchSizes` uses it.

    Returns:
        The packs, in the order in which they are emitted. Each row is in exactly one pack, or in `skipped`.

    Raises:
        ValueError: an image is oversize with `oversize="error"`, or undersize with `undersize="error"`.

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
