"""Mixtures: an epoch drawn from several sources by weight, each of which goes on where the last epoch left it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import count, pairwise

import numpy as np

from patchnpack.loaders.index.table import Index
from patchnpack.loaders.order.shard_shuffle import ShardShuffle
from patchnpack.loaders.shards.patterns import Source
from patchnpack.packer import Rows
from patchnpack.packer.policies.random import Purpose, counter_hash

# k sources, N images in an epoch

_WINDOW = 1 << 16  # images that are mixed at a time
_AGAIN = 52  # the bit of `row_id` from which on it counts how often a row has come in an epoch


@dataclass(frozen=True, slots=True)
class Mixture:
    """Several sources, to be given to `PackedImageLoader` in place of one.

    Of N images in an epoch, round(w N) come from a source whose share of all weights is w. A source gives its images in
    passes, each of which holds every one once; the next epoch goes on where the last one left it. Inside an epoch the
    sources are mixed evenly.

    Attributes:
        sources: for each name, (source, weight): shards or an index as `PackedImageLoader` takes them, and a number
            above 0, of which only the ratio to the others counts.
        images_per_epoch: N; None is as many as the sources hold together.

    Raises:
        ValueError: no source, a weight that is not above 0, or N below 1.

    >>> Mixture({"web": ("web-{000..099}.tar", 3), "books": ("books-{000..009}.tar", -1)})
    Traceback (most recent call last):
        ...
    ValueError: the weight of 'books' is -1; it must be above 0, or leave the source out
    """

    sources: Mapping[str, tuple[Source | Index, float]]
    images_per_epoch: int | None = None

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("the mixture has no source; give {name: (shards, weight)}")
        for name, pair in self.sources.items():
            if len(pair) != 2:
                raise ValueError(f"source {name!r} is {pair!r}; give (shards, weight)")
            if not 0 < pair[1] < float("inf"):
                raise ValueError(f"the weight of {name!r} is {pair[1]}; it must be above 0, or leave the source out")
        if self.images_per_epoch is not None and self.images_per_epoch < 1:
            raise ValueError(f"images_per_epoch is {self.images_per_epoch}; it must be at least 1, or None")


@dataclass(frozen=True, slots=True)
class Mixed:
    """A mixture over one index, in which the shards of each source stand together.

    Attributes:
        names: the k sources' names.
        shards: the first shard of each, and behind the last, k + 1 numbers.
        images: how many images each gives an epoch.
    """

    names: tuple[str, ...]
    shards: tuple[int, ...]
    images: tuple[int, ...]

    @classmethod
    def of(cls, mixture: Mixture, parts: list[Index], usable: np.ndarray) -> Mixed:
        """The mixture of these parts, one a source, of whose joined rows these are usable.

        Raises:
            ValueError: a source of which no row can be used, or whose weight gives it no image.
        """
        shards = np.concatenate([[0], np.cumsum([len(part.shards) for part in parts])]).tolist()
        ends = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).tolist()
        held = [int(usable[low:high].sum()) for low, high in pairwise(ends)]
        total, weights = mixture.images_per_epoch or sum(held), [weight for _, weight in mixture.sources.values()]
        images = [round(weight / sum(weights) * total) for weight in weights]
        for name, has, gives in zip(mixture.sources, held, images, strict=True):
            if not has:
                raise ValueError(f"none of the images of source {name!r} can be used; leave it out of the mixture")
            if not gives:
                raise ValueError(
                    f"source {name!r} gives 0 of {total} images an epoch; raise its weight, or images_per_epoch"
                )
        return cls(tuple(mixture.sources), tuple(shards), tuple(images))

    def rows(self, passes: ShardShuffle, epoch: int, stream: int, num_streams: int) -> Iterator[Rows]:
        """The rows of one of the streams that an epoch is cut into, a window at a time."""
        windows = num_streams * -(-sum(self.images) // (_WINDOW * num_streams))
        first, last = windows * stream // num_streams, windows * (stream + 1) // num_streams
        sources = [
            _Sequence(passes, low, high, epoch * n, epoch * n + n * first // windows)
            for low, high, n in zip(self.shards[:-1], self.shards[1:], self.images, strict=True)
        ]
        for window in range(first, last):
            cuts = [(n * window // windows, n * (window + 1) // windows) for n in self.images]
            parts = [source.take(high - low) for source, (low, high) in zip(sources, cuts, strict=True)]
            # Each source's images stand at even distances, shifted by chance inside their own.
            places = []
            for i, (low, high) in enumerate(cuts):
                number = np.arange(low, high, dtype=np.uint64) | np.uint64(i << 40)
                shift = counter_hash(Purpose.MIXTURE, passes.seed, epoch, number) / 2.0**64 if passes.shuffle else 0.5
                places.append((np.arange(high - low) + shift) / max(1, high - low))
            order = np.argsort(np.concatenate(places), kind="stable")
            yield _joined(parts).take(order)

    def shards_in_order(self, passes: ShardShuffle, epoch: int) -> Iterator[int]:
        """The shards of an epoch about as they are come to; one that is come to again comes again."""
        come: list[tuple[float, int]] = []
        for low, high, n in zip(self.shards[:-1], self.shards[1:], self.images, strict=True):
            come += [(at / n, shard) for at, shard in _shards(passes, low, high, epoch * n, n)]
        yield from (shard for _, shard in sorted(come))

    def count(self, index: Index, rows: np.ndarray) -> dict[str, int]:
        """How many of the rows (int64) each source gave."""
        source = np.searchsorted(index.starts[list(self.shards)], rows, side="right") - 1
        return dict(zip(self.names, np.bincount(source, minlength=len(self.names)).tolist(), strict=True))


def _shards(passes: ShardShuffle, low: int, high: int, begin: int, images: int) -> Iterator[tuple[int, int]]:
    """The shards that a source comes to in `images` images from the one numbered `begin` on, and after how many."""
    held = passes.num_usable(low, high)
    at = -(begin % held)
    for number in count(begin // held):
        for window in passes.source_windows(number, low, high):
            size = passes.count(window)
            if at + size > 0:
                yield from ((max(0, at), int(passes.index.shard_of(first))) for first, end in window if first < end)
            at += size
            if at >= images:
                return


class _Sequence:
    """A source's endless sequence of rows from image `begin` on; `epoch_begin` is where the epoch began."""

    def __init__(self, passes: ShardShuffle, low: int, high: int, epoch_begin: int, begin: int) -> None:
        held = passes.num_usable(low, high)
        self._first, self._skip = epoch_begin // held, begin % held
        self._passes, self._low, self._high = passes, low, high
        self._windows = self._from(begin // held)
        self._rest = Rows.of_sizes([], [])

    def _from(self, number: int) -> Iterator[Rows]:
        skip = self._skip
        for i in count(number):
            for window in self._passes.source_windows(i, self._low, self._high):
                size = self._passes.count(window)
                if skip >= size:
                    skip -= size
                    continue
                rows = self._passes.rows(i, window).take(slice(skip, None))
                skip = 0
                # A row that comes again in an epoch has other draws than before.
                again = np.uint64(i - self._first << _AGAIN)
                yield Rows(row=rows.row, row_id=rows.row_id ^ again, width=rows.width, height=rows.height)

    def take(self, wanted: int) -> Rows:
        """The next rows."""
        parts: list[Rows] = []
        while wanted:
            if not len(self._rest):
                self._rest = next(self._windows)
            part = self._rest.take(slice(wanted))
            self._rest = self._rest.take(slice(wanted, None))
            parts.append(part)
            wanted -= len(part)
        return _joined(parts)


def _joined(parts: Sequence[Rows]) -> Rows:
    parts = [part for part in parts if len(part)] or [Rows.of_sizes([], [])]
    return Rows(**{field.name: np.concatenate([getattr(p, field.name) for p in parts]) for field in fields(Rows)})
