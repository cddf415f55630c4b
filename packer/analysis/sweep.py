"""`sweep`: compare sequence lengths, patch sizes, algorithms and lookaheads on one data set."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np

from patchnpack.packer.analysis.length_search import LengthSearch, Trial, search_lengths
from patchnpack.packer.analysis.setting import MAX_OVERSIZE, Setting, Sweep
from patchnpack.packer.analysis.trial import measure_rows, settings_of, try_packing
from patchnpack.packer.binpacking.algorithms import CHOICES, Algorithm
from patchnpack.packer.binpacking.pack_lengths import check_algorithm
from patchnpack.packer.checks import check_whole
from patchnpack.packer.config import Packing
from patchnpack.packer.planning.images import Rows

# n rows

ALGORITHMS: tuple[Algorithm, ...] = ("next_fit", *CHOICES)
LOOKAHEADS = (64, 256, 1024)
# Multiples that attention kernels and tensor shapes often prefer. The sweep tries the next ones above the best length.
ROUND_MULTIPLES = (64, 128)
_NO_LIMIT = 1 << 30
_SAMPLE = 1 << 15  # images that the search packs at each length: 20 ms or so, and 1 pack is below 0.2 % of the packs
_LONGEST = 4  # longest length of the search, in multiples of the power of two that nearly all images fit into


def sweep(
    rows: Rows,
    packing: Packing,
    *,
    seq_lens: Sequence[int] | None = None,
    multiple: int = 1,
    patch_sizes: Sequence[int] | None = None,
    algorithms: Sequence[Algorithm] = ALGORITHMS,
    lookaheads: Sequence[int] = LOOKAHEADS,
    seed: int = 0,
    ranks: int = 8,
    width: int = 768,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Sweep:
    """Pack the rows with each combination of settings, and with the packing's own.

    Each result equals that of `plan`, but rows are measured once for all settings of a patch size and a length. The
    search for lengths packs at most 32,768 of the rows at each length that it tries. Memory is about 100 bytes per row
    (210 with trim or rescale), whatever the number of settings.

    Args:
        rows: the samples, in order of arrival.
        packing: the configuration that all settings share.
        seq_lens: sequence lengths; by default those that `search_lengths` finds at each patch size, from the shortest
            length that at most 1 % of the images exceed to 4 times the power of two that so many fit into, and for
            comparison that power of two, its double and its quadruple.
        multiple: search only multiples of this length. 1 also tries the next multiples of 64 and 128 above the best.
        patch_sizes: patch sizes in pixels; by default the packing's.
        algorithms: algorithms; by default next_fit, subset_sum, largest_fit and priced.
        lookaheads: lookaheads of the algorithms that look ahead; by default 64, 256 and 1,024.
        seed: key of the random draws.
        ranks: number of ranks that train together.
        width: features of the model that is trained.
        progress: called with the number of finished measurements and their total.

    Raises:
        ValueError: `Packing` refuses a setting, or cannot take an image.

    >>> sides = np.random.default_rng(0).integers(48, 385, (2, 1000))
    >>> found = sweep(Rows.of_sizes(*sides), Packing(), seq_lens=[2048], algorithms=["largest_fit"], lookaheads=[64])
    >>> [(s.seq_len, s.lookahead, s.packs, s.current) for s in found.settings]
    [(1024, 64, 198, False), (1024, 256, 197, True), (2048, 64, 99, False)]
    """
    began = time.perf_counter()
    if not len(rows):
        raise ValueError("there are no images to sweep over; give at least one")
    for name, numbers in (("lookaheads", lookaheads), ("seq_lens", seq_lens), ("patch_sizes", patch_sizes)):
        if numbers is not None and not len(numbers):
            raise ValueError(f"{name} is empty; give at least one")
        for number in numbers or ():
            check_whole(name, number)
    check_whole("multiple", multiple)
    if seq_lens is not None and multiple > 1:
        raise ValueError(f"multiple is {multiple}, but seq_lens names the lengths; give only one of them")
    check_whole("ranks", ranks)
    check_whole("width", width)
    if not algorithms:
        raise ValueError("algorithms is empty; give at least one")
    for algorithm in algorithms:
        check_algorithm(algorithm)
    alone = isinstance(packing.patch_size, int)
    packings: list[tuple[Packing, int]] = []  # with the tokens kept if no length removed any
    searches: list[LengthSearch] = []
    for size in sorted({*(patch_sizes or packing.patch_sizes), *packing.patch_sizes}):
        sized = packing.replace(patch_size=size)
        for length in seq_lens or ():  # raises on a length that `Packing` refuses
            sized.replace(seq_len=length)
        free = measure_rows(rows, sized.replace(seq_len=_NO_LIMIT, fill="none"), seed).keep
        lengths = set(seq_lens or ())
        if not seq_lens:
            found, lengths = _search(rows, free, sized, algorithms, lookaheads, multiple, seed)
            searches.append(found)
        if size in packing.patch_sizes:
            lengths.add(packing.seq_len)
        all_tokens = int(free.sum())
        packings += [(sized.replace(seq_len=length), all_tokens) for length in sorted(lengths)]
    settings: list[Setting] = []
    for done, (swept, all_tokens) in enumerate(packings):
        measured = measure_rows(rows, swept, seed)
        if len(measured.keep):
            own = alone and (swept.patch_size, swept.seq_len) == (packing.patch_size, packing.seq_len)
            settings += settings_of(measured, swept, algorithms, lookaheads, own, all_tokens, seed, ranks, width)
        progress(done + 1, len(packings))
    if not settings:
        raise ValueError(f"none of the {len(rows)} images is left to pack at any sequence length; give longer seq_lens")
    return Sweep(
        packing=packing,
        samples=len(rows),
        ranks=ranks,
        width=width,
        settings=tuple(settings),
        searches=tuple(searches),
        seconds=time.perf_counter() - began,
    )


def _search(
    rows: Rows,
    keep: np.ndarray,
    packing: Packing,
    algorithms: Sequence[Algorithm],
    lookaheads: Sequence[int],
    multiple: int,
    seed: int,
) -> tuple[LengthSearch, set[int]]:
    """Search for the lengths of one patch size.

    Returns the search, and the lengths to sweep: the best, the advised, the next round ones, the one that pads least of
    those at most half as long, and powers of two.
    """
    (patch_size,) = packing.patch_sizes
    seen = np.arange(len(rows))
    if len(rows) > _SAMPLE:
        seen = np.sort(np.random.default_rng(seed).choice(len(rows), _SAMPLE, replace=False))
        rows = rows.take(seen)

    def pack(length: int) -> Trial:
        tried = packing.replace(seq_len=length)
        return try_packing(measure_rows(rows, tried, seed, seen), tried, algorithms, lookaheads)

    shortest, power = length_range(keep, packing)
    powers = [power * times for times in (1, 2, _LONGEST)]
    found = search_lengths(
        pack,
        shortest,
        powers[-1],
        patch_size=patch_size,
        starts=[*powers, power * 3 // 2, power * 3, packing.seq_len],
        multiple=multiple,
    )
    lengths = {found.best, found.advised}
    if multiple == 1:
        lengths |= {-(-found.advised // each) * each for each in ROUND_MULTIPLES}
    half = [(padding, length) for length, padding in found.padding if 2 * length <= found.advised]
    if half:
        lengths.add(min(half)[1])
    return found, lengths | {length for length in powers if length % multiple == 0}


def length_range(keep: np.ndarray, packing: Packing) -> tuple[int, int]:
    """The shortest length that at most 1 % of the images exceed (none under `oversize="error"`), and a power of two.

    The power of two is the smallest that is at least as long, and at least 16.

    >>> length_range(np.array([700, 768, 900]), Packing())
    (900, 1024)
    """
    longer = 0 if packing.oversize == "error" else int(MAX_OVERSIZE * len(keep))
    shortest = max(packing.grid_multiple**2, int(np.partition(keep, len(keep) - 1 - longer)[len(keep) - 1 - longer]))
    return shortest, 1 << max(4, math.ceil(math.log2(shortest)))
