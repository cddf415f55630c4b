"""`search_lengths`: find the sequence lengths that pad least, without trying them all."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

# A, B are tried lengths with none tried between them, and L is a length between them

# Padding within this share of the slots of the best counts as equal: the shorter sequence is then preferred.
EQUAL_PADDING = 0.003
# The search ends where no length between two tried ones can pad less than the best by more than this share.
TOLERANCE = 0.001
# Work after which the search ends anyway. A unit is about 0.4 microseconds; see `_work`.
_MOST_WORK = 8_000_000
# A packer may do better at a length than at a longer one, by this share of the packs.
_LUCK = 0.01
# Work on each of the two refinements, which go on to search where the tolerance is already met.
_REFINING = 1_000_000


@dataclass(frozen=True, slots=True)
class Trial:
    """The packs of one sequence length.

    Attributes:
        packs: number of packs.
        tokens: slots that hold a token.
        oversize: samples that are too large for a sequence.
        samples: samples in packs.
        most_tokens: bound on the tokens of these samples however their packs are filled, at least `tokens`.
    """

    packs: int
    tokens: int
    oversize: int
    samples: int
    most_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthSearch:
    """The sequence lengths that a search tried at one patch size.

    Attributes:
        patch_size: P, in pixels.
        shortest, longest: the range of the search.
        multiple: every length is a multiple of this.
        samples: samples that were packed at each length: all, or some of many.
        padding: each length, in ascending order, with the least padding of the swept algorithms and lookaheads.
        best: the length that pads least.
        advised: the shortest of the lengths that pad as little as the best, to within `EQUAL_PADDING`.
        gap: bound on how much less than `best` a length in the range that was not tried can pad, as a share of the
            slots. It assumes that the algorithms pack no worse at a longer length than at a shorter one.
    """

    patch_size: int
    shortest: int
    longest: int
    multiple: int
    samples: int
    padding: tuple[tuple[int, float], ...]
    best: int
    advised: int
    gap: float


def search_lengths(
    pack: Callable[[int], Trial],
    shortest: int,
    longest: int,
    *,
    patch_size: int,
    starts: Iterable[int] = (),
    multiple: int = 1,
) -> LengthSearch:
    """Find the length in a range that pads least, by branch and bound.

    A packing into A slots is also a packing into L > A slots. So L needs at least as many packs as any B > L, and
    tokens that take n packs of B slots fill at most tokens / (n * L) of the packs of L slots. The gap between two tried
    lengths is halved until this bound says that it cannot hold a better length.

    ```
    500 images of 690 tokens
    tried     1,536: 250 packs                    2,560: 167 packs
    between   2,070 could hold 3 images, so tokens / (167 * 2,070) is 99.8 %: worth trying
              2,560 cannot be beaten by 2,500: tokens / (167 * 2,500) is 82.6 %
    ```

    Two refinements follow, while they take little time: one allows for a packer that by luck needs one pack less than
    at a longer length; the other looks for shorter lengths that pad as little.

    Args:
        pack: packs the images at a length.
        shortest, longest: the range, rounded up and down to multiples of `multiple`.
        patch_size: the patch size that the images are measured at.
        starts: lengths to try first.
        multiple: try only multiples of this.

    >>> def pack(length):
    ...     return Trial(-(-500 // (length // 690)), 500 * 690, 0, 500, 500 * 690)
    >>> found = search_lengths(pack, 700, 2500, patch_size=32)
    >>> found.best, found.advised, len(found.padding) < 100
    (1380, 1380, True)
    """
    first = -(-shortest // multiple) * multiple
    last = max(first, longest // multiple * multiple)
    search = _Search(pack, multiple)
    inside = {-(-length // multiple) * multiple for length in starts}
    for length in sorted({first, last, *(length for length in inside if first <= length <= last)}):
        search.try_length(length)
    search.refine(most_work=_MOST_WORK)
    search.refine(most_work=search.work + _REFINING, luck=_LUCK)
    search.shorten(most_work=search.work + _REFINING)
    lengths = sorted(search.tried)
    best = max(lengths, key=lambda length: (search.filled(length), -length))
    return LengthSearch(
        patch_size=patch_size,
        shortest=first,
        longest=last,
        multiple=multiple,
        samples=search.tried[best].samples,
        padding=tuple((length, 1 - search.filled(length)) for length in lengths),
        best=best,
        advised=search.advised(),
        gap=search.gap(),
    )


class _Search:
    """The tried lengths, and the work that trying them took."""

    def __init__(self, pack: Callable[[int], Trial], multiple: int) -> None:
        self.pack = pack
        self.multiple = multiple
        self.tried: dict[int, Trial] = {}
        self.most_filled = 0.0
        self.work = 0.0

    def try_length(self, length: int) -> None:
        trial = self.tried[length] = self.pack(length)
        self.most_filled = max(self.most_filled, self.filled(length))
        self.work += _work(trial.samples, length)

    def filled(self, length: int) -> float:
        """Share of the slots of a tried length that hold tokens."""
        trial = self.tried[length]
        return trial.tokens / (trial.packs * length) if trial.packs else 0.0

    def advised(self) -> int:
        return min(length for length in self.tried if self.filled(length) >= self.most_filled - EQUAL_PADDING)

    def refine(self, *, most_work: float, luck: float = 0.0) -> None:
        """Halve the gaps that could hold a better length, the most promising first.

        `luck` is the share of the packs, rounded up, that a length may need less than a longer one.
        """
        gaps = [(-self._bound(a, b, luck), a, b) for a, b in self._gaps()]
        heapq.heapify(gaps)
        while gaps and self.work < most_work:
            _, a, b = heapq.heappop(gaps)
            if min(1.0, self._bound(a, b, luck)) > self.most_filled + TOLERANCE:
                for low, high in self._halve(a, b):
                    heapq.heappush(gaps, (-self._bound(low, high, luck), low, high))

    def shorten(self, *, most_work: float) -> None:
        """Halve the gaps that could hold a shorter length that counts as equal, the shortest first."""
        gaps = self._gaps()  # sorted, which is a heap
        advised = self.advised()
        while gaps and gaps[0][0] < advised and self.work < most_work:
            a, b = heapq.heappop(gaps)
            if self._bound(a, b) >= self.most_filled - EQUAL_PADDING:
                for gap in self._halve(a, b):
                    heapq.heappush(gaps, gap)
                advised = self.advised()

    def gap(self) -> float:
        """Bound on how much more than the best a length between two tried ones can fill."""
        bounds = [min(1.0, self._bound(a, b)) for a, b in self._gaps()]
        return max(0.0, max(bounds, default=0.0) - self.most_filled)

    def _gaps(self) -> list[tuple[int, int]]:
        lengths = sorted(self.tried)
        return [(a, b) for a, b in itertools.pairwise(lengths) if b - a > self.multiple]

    def _halve(self, a: int, b: int) -> list[tuple[int, int]]:
        middle = math.isqrt(a * b) // self.multiple * self.multiple
        middle = min(max(middle, a + self.multiple), b - self.multiple)
        self.try_length(middle)
        return [(low, high) for low, high in ((a, middle), (middle, b)) if high - low > self.multiple]

    def _bound(self, a: int, b: int, luck: float = 0.0) -> float:
        """Bound on the share of the slots that a length between A and B fills; above 1 where nothing is known."""
        shorter, longer = self.tried[a], self.tried[b]
        # An image that exceeds L but not B may take one more pack at B.
        packs = min(shorter.packs, longer.packs) - (shorter.oversize - longer.oversize)
        packs -= math.ceil(luck * packs)
        return max(shorter.most_tokens, longer.most_tokens) / (max(1, packs) * (a + self.multiple))


def _work(images: int, length: int) -> float:
    """Work of packing once with the default algorithms and lookaheads; their bitmaps of lengths grow with L."""
    return (images + 2000) * (1 + length / 8192)
