"""Mixtures: an epoch drawn from several sources by weight; each source continues where the last epoch left it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count, pairwise
from typing import Any

import numpy as np

from patchnpack.loaders.index.table import Index
from patchnpack.loaders.order.shard_shuffle import ShardShuffle
from patchnpack.loaders.shards.patterns import ShardNames
from patchnpack.packer import Rows
from patchnpack.packer.checks import check_real, check_whole, shown
from patchnpack.packer.policies.random import Purpose, counter_hash

# k sources, N samples in an epoch

_WINDOW = 1 << 16  # samples that are mixed at a time
_REPEAT_BIT = 52  # from this bit on, `row_id` counts how often a row has repeated in an epoch


@dataclass(frozen=True, slots=True)
class Mixture:
    """Several sources for `PackedImageLoader` to read in place of one.

    Of N images per epoch, round(w N) come from a source whose share of all weights is w. A source yields its images in
    passes; each pass holds every image once, and the next epoch continues where the last one stopped. Within an epoch
    the sources are mixed evenly. Where `sample=` joins images, samples are counted, not images: a document of nine
    pages counts as one.

    Attributes:
        sources: for each name, (source, weight): shards, an index, a folder of images, a table of paths or a data set,
            as for `PackedImageLoader`, and a number above 0. Only the ratios of the weights matter.
        images_per_epoch: N, samples where `sample=` joins images; None is the number that all sources have.

    Raises:
        ValueError: there is no source, a source is not a pair, a weight is not above 0, or N is below 1.

    >>> Mixture({"web": ("web-{000..099}.tar", 3), "books": ("books-{000..009}.tar", -1)})
    Traceback (most recent call last):
        ...
    ValueError: the weight of 'books' is -1; it must be above 0, or leave the source out
    """

    sources: Mapping[str, tuple[ShardNames | Index | Any, float]]
    images_per_epoch: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.sources, Mapping):
            raise ValueError(f"sources is {shown(self.sources)}; give a dict {{name: (shards, weight)}}")
        if not self.sources:
            raise ValueError("the mixture has no source; give {name: (shards, weight)}")
        given: Mapping[str, Any] = self.sources
        for name, pair in given.items():
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise ValueError(f"source {name!r} is {shown(pair)}; give (shards, weight)")
            shards, weight = pair
            if isinstance(shards, Mixture):
                raise ValueError(
                    f"source {name!r} is a Mixture; name the sources inside it, with weights, in one Mixture"
                )
            check_real(f"the weight of {name!r}", weight, "a number above 0, in (shards, weight)")
            if not 0 < weight < float("inf"):
                raise ValueError(f"the weight of {name!r} is {weight}; it must be above 0, or leave the source out")
        if self.images_per_epoch is not None:
            check_whole("images_per_epoch", self.images_per_epoch)


@dataclass(frozen=True, slots=True)
class Mixed:
    """A mixture over one index, in which the shards of each source are consecutive.

    Attributes:
        names: names of the k sources.
        shards: k + 1 numbers: source i has the shards `shards[i]` to `shards[i + 1] - 1`.
        images: images per epoch of each source; samples, where these may hold several.
    """

    names: tuple[str, ...]
    shards: tuple[int, ...]
    images: tuple[int, ...]

    @classmethod
    def of(cls, mixture: Mixture, parts: list[Index], usable: np.ndarray) -> Mixed:
        """Return the mixture over the joined index of `parts`.

        Args:
            mixture: the sources and their weights.
            parts: the index of each source.
            usable: bool, over the rows of all parts: the first rows of the samples that are used.

        Raises:
            ValueError: no row of a source can be used, or the weight of a source amounts to no image.
        """
        shards = np.concatenate([[0], np.cumsum([len(part.shards) for part in parts])]).tolist()
        ends = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).tolist()
        held = [int(usable[low:high].sum()) for low, high in pairwise(ends)]
        total, weights = mixture.images_per_epoch or sum(held), [weight for _, weight in mixture.sources.values()]
        images = [round(weight / sum(weights) * total) for weight in weights]
        for name, part, num_usable, num_images in zip(mixture.sources, parts, held, images, strict=True):
            if not num_usable:
                first = next((f": the first is bad, {part.keys[row]!r}: {why}" for row, why in part.bad.items()), "")
                raise ValueError(
                    f"none of the images of source {name!r} can be used{first}; leave it out of the mixture"
                )
            if not num_images:
                raise ValueError(
                    f"source {name!r} gets 0 of {total} images per epoch; raise its weight, or images_per_epoch"
                )
        return cls(tuple(mixture.sources), tuple(shards), tuple(images))

    def rows(self, shuffle: ShardShuffle, epoch: int, stream: int, num_streams: int) -> Iterator[Rows]:
        """Yield the rows of one stream of an epoch, a window at a time."""
        windows = num_streams * -(-sum(self.images) // (_WINDOW * num_streams))
        first, last = windows * stream // num_streams, windows * (stream + 1) // num_streams
        sources = [
            _Sequence(shuffle, low, high, epoch * n, epoch * n + n * first // windows)
            for low, high, n in zip(self.shards[:-1], self.shards[1:], self.images, strict=True)
        ]
        for window in range(first, last):
            cuts = [(n * window // windows, n * (window + 1) // windows) for n in self.images]
            parts = [source.take(high - low) for source, (low, high) in zip(sources, cuts, strict=True)]
            # The images of each source are spaced evenly; each is shifted at random within its own interval.
            places = []
            for i, (low, high) in enumerate(cuts):
                number = np.arange(low, high, dtype=np.uint64) | np.uint64(i << 40)
                shift = counter_hash(Purpose.MIXTURE, shuffle.seed, epoch, number) / 2.0**64 if shuffle.shuffle else 0.5
                places.append((np.arange(high - low) + shift) / max(1, high - low))
            order = np.argsort(np.concatenate(places), kind="stable")
            yield Rows.concatenate(parts).take(order)

    def shards_in_order(self, shuffle: ShardShuffle, epoch: int) -> Iterator[int]:
        """Yield the shards of an epoch in approximate access order; revisited shards repeat."""
        visits: list[tuple[float, int]] = []
        for low, high, n in zip(self.shards[:-1], self.shards[1:], self.images, strict=True):
            visits += [(at / n, shard) for at, shard in _shards(shuffle, low, high, epoch * n, n)]
        yield from (shard for _, shard in sorted(visits))

    def frequency(self, index: Index, usable: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Return a function from rows to how often each comes in 1,000 epochs, int64, at least 1.

        `usable` is bool over the rows of the index: the first rows of the samples that are used.
        """
        starts = index.starts[list(self.shards)]
        held = [int(usable[low:high].sum()) for low, high in pairwise(starts.tolist())]
        times = np.array([max(1, 1000 * n // usable) for n, usable in zip(self.images, held, strict=True)])
        return lambda rows: times[np.searchsorted(starts, rows, side="right") - 1]

    def count(self, index: Index, rows: np.ndarray) -> dict[str, int]:
        """Return how many of the rows (int64) come from each source."""
        source = np.searchsorted(index.starts[list(self.shards)], rows, side="right") - 1
        return dict(zip(self.names, np.bincount(source, minlength=len(self.names)).tolist(), strict=True))


def _shards(shuffle: ShardShuffle, low: int, high: int, begin: int, images: int) -> Iterator[tuple[int, int]]:
    """Yield (images before it, shard) for each shard that a source reads in `images` images from image `begin` on."""
    held = shuffle.num_usable(low, high)
    at = -(begin % held)
    for number in count(begin // held):
        for window in shuffle.source_windows(number, low, high):
            size = shuffle.count(window)
            if at + size > 0:
                yield from ((max(0, at), int(shuffle.index.shard_of(first))) for first, end in window if first < end)
            at += size
            if at >= images:
                return


class _Sequence:
    """The endless sequence of a source's rows from image `begin` on; the epoch began at image `epoch_begin`."""

    def __init__(self, shuffle: ShardShuffle, low: int, high: int, epoch_begin: int, begin: int) -> None:
        held = shuffle.num_usable(low, high)
        self._first, self._skip = epoch_begin // held, begin % held
        self._shuffle, self._low, self._high = shuffle, low, high
        self._windows = self._from(begin // held)
        self._rest = shuffle.index.rows(np.zeros(0, np.int64))

    def _from(self, number: int) -> Iterator[Rows]:
        skip = self._skip
        for i in count(number):
            for window in self._shuffle.source_windows(i, self._low, self._high):
                size = self._shuffle.count(window)
                if skip >= size:
                    skip -= size
                    continue
                rows = self._shuffle.rows(i, window).take(slice(skip, None))
                skip = 0
                # A row that repeats within an epoch gets new draws.
                repeat = np.uint64(i - self._first << _REPEAT_BIT)
                yield replace(rows, row_id=rows.row_id ^ repeat)

    def take(self, wanted: int) -> Rows:
        """Return the next `wanted` rows."""
        parts: list[Rows] = []
        while wanted:
            if not len(self._rest):
                self._rest = next(self._windows)
            part = self._rest.take(slice(wanted))
            self._rest = self._rest.take(slice(wanted, None))
            parts.append(part)
            wanted -= len(part)
        return Rows.concatenate(parts or [self._rest.take(slice(0))])
