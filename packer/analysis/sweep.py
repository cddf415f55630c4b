"""`sweep`: compare sequence lengths, patch sizes, algorithms and lookaheads on one data set."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from patchnpack.packer.analysis.baselines import buckets
from patchnpack.packer.analysis.report import imbalance, pack_bytes
from patchnpack.packer.binpacking import _fill
from patchnpack.packer.binpacking.algorithms import Algorithm
from patchnpack.packer.binpacking.pack_lengths import pack_ready, resolve_algorithm
from patchnpack.packer.checks import check_whole
from patchnpack.packer.config import Fill, Packing
from patchnpack.packer.fill import fewest_tokens, fill_packs
from patchnpack.packer.images import Images, Rows, measure

# n rows, M images, N packs

ALGORITHMS: tuple[Algorithm, ...] = ("next_fit", "largest_fit", "subset_sum")
LOOKAHEADS = (64, 256, 1024)
_CHUNK = 1 << 16  # rows measured at a time
_NO_LIMIT = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One configuration of a sweep, and its result.

    Attributes:
        patch_size: P, in pixels.
        seq_len: L, token slots in a pack.
        algorithm: packing algorithm.
        lookahead: R, number of images that it chooses from; 1 for next_fit.
        fill: use of leftover slots: the packing's own, or "undrop" where the algorithm cannot trim or rescale.
        images: images in packs.
        oversize: images of more than L tokens.
        skipped: oversize images that were skipped.
        lost: share of the tokens that the limit L removes, by shrinking, dropping or skipping, compared with no limit.
        packs: number of packs of L slots.
        tokens: slots that hold a token.
        packs_next_fit: packs that next-fit needs for the same images.
        slots_longest: slots of the same images padded to the longest.
        slots_bucketed: slots of the same images padded to the longest of their bucket, with 8 buckets of similar
            length.
        at_most_images: packs that hold `max_images` images and are not full.
        attention_cost: sum of the images' squared token counts.
        model_imbalance: cost of the costliest of the packs that run in parallel over their mean, after balancing.
        pack_bytes: bytes of one pack in a batch.
        packing_seconds_per_million: seconds on one core to pack a million such images, once measured.
        current: whether this is the swept packing's own configuration.
    """

    patch_size: int
    seq_len: int
    algorithm: Algorithm
    lookahead: int
    fill: Fill
    images: int
    oversize: int
    skipped: int
    lost: float
    packs: int
    tokens: int
    packs_next_fit: int
    slots_longest: int
    slots_bucketed: int
    at_most_images: int
    attention_cost: int
    model_imbalance: float
    pack_bytes: int
    packing_seconds_per_million: float
    current: bool = False

    @property
    def slots(self) -> int:
        """Total token slots."""
        return self.packs * self.seq_len

    @property
    def padding(self) -> float:
        """Share of the slots that hold no token."""
        return 1 - self.tokens / self.slots

    @property
    def images_per_pack(self) -> float:
        """Mean number of images in a pack."""
        return self.images / self.packs

    @property
    def saved_next_fit(self) -> float:
        """Share of next-fit's slots that this setting saves; negative where next-fit needs fewer."""
        return 1 - self.packs / self.packs_next_fit

    @property
    def saved_longest(self) -> float:
        """Share of the slots of padding to the longest that this setting saves."""
        return 1 - self.slots / self.slots_longest

    @property
    def saved_bucketed(self) -> float:
        """Share of the slots of bucketing by length that is saved; negative where it needs fewer."""
        return 1 - self.slots / self.slots_bucketed


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """The result of a sweep on n images.

    Attributes:
        packing: the configuration that all settings share.
        images: n.
        ranks, width: ranks and model width that `Setting.model_imbalance` is for.
        settings: the settings, by patch size, sequence length, algorithm and lookahead.
        seconds: duration of the sweep.
    """

    packing: Packing
    images: int
    ranks: int
    width: int
    settings: tuple[Setting, ...]
    seconds: float

    @property
    def current(self) -> Setting | None:
        """The setting of the packing itself; None where it has several patch sizes."""
        return next((setting for setting in self.settings if setting.current), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Measured:
    """The images at one patch size and sequence length.

    `least` and `images` are set only where `fill` needs them.
    """

    keep: np.ndarray  # int64 (M,)
    before: np.ndarray  # int64 (M,)
    least: np.ndarray | None
    images: Images | None
    oversize: int
    skipped: int


def default_seq_lens(keep: np.ndarray) -> tuple[int, ...]:
    """Sequence lengths to try for images of the given token counts.

    The first is a power of two that 99 % of the images fit into; the others are 1.5, 2, 3 and 4 times that, since the
    length that fills best is often not a power of two.

    >>> default_seq_lens(np.array([700, 768, 900]))
    (1024, 1536, 2048, 3072, 4096)
    """
    first = 1 << max(4, math.ceil(math.log2(max(1.0, float(np.quantile(keep, 0.99))))))
    return tuple(first * times // 2 for times in (2, 3, 4, 6, 8))


def sweep(
    rows: Rows,
    packing: Packing,
    *,
    seq_lens: Sequence[int] | None = None,
    patch_sizes: Sequence[int] | None = None,
    algorithms: Sequence[Algorithm] = ALGORITHMS,
    lookaheads: Sequence[int] = LOOKAHEADS,
    seed: int = 0,
    ranks: int = 8,
    width: int = 768,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Sweep:
    """Pack the rows with each combination of settings, and with the packing's own.

    Each result equals that of `plan`, but rows are measured once for all settings of a patch size and a length. Memory
    is about 100 bytes per row (210 with trim or rescale), whatever the number of settings.

    Args:
        rows: the images, in order of arrival.
        packing: the configuration that all settings share.
        seq_lens: sequence lengths; by default `default_seq_lens` of the images at each patch size.
        patch_sizes: patch sizes in pixels; by default the packing's.
        algorithms: algorithms; by default next_fit, largest_fit and subset_sum.
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
    check_whole("ranks", ranks)
    check_whole("width", width)
    if not algorithms:
        raise ValueError("algorithms is empty; give at least one")
    for algorithm in algorithms:  # raises on an unknown name
        resolve_algorithm(algorithm, np.ones(1, np.int64), 1, max_items=1, lookahead=1)
    alone = isinstance(packing.patch_size, int)
    packings: list[tuple[Packing, int]] = []  # with the tokens kept if no length removed any
    for size in sorted({*(patch_sizes or packing.patch_sizes), *packing.patch_sizes}):
        for length in seq_lens or ():  # raises on a length that `Packing` refuses
            packing.replace(patch_size=size, seq_len=length)
        free = _measure(rows, packing.replace(patch_size=size, seq_len=_NO_LIMIT, fill="none"), seed).keep
        lengths, all_tokens = _lengths(free, seq_lens, packing, size), int(free.sum())
        packings += [(packing.replace(patch_size=size, seq_len=length), all_tokens) for length in lengths]
    settings: list[Setting] = []
    for done, (swept, all_tokens) in enumerate(packings):
        measured = _measure(rows, swept, seed)
        if len(measured.keep):
            own = alone and (swept.patch_size, swept.seq_len) == (packing.patch_size, packing.seq_len)
            settings += _settings(measured, swept, algorithms, lookaheads, own, all_tokens, seed, ranks, width)
        progress(done + 1, len(packings))
    if not settings:
        raise ValueError(f"none of the {len(rows)} images is left to pack at any sequence length; give longer seq_lens")
    return Sweep(
        packing=packing,
        images=len(rows),
        ranks=ranks,
        width=width,
        settings=tuple(settings),
        seconds=time.perf_counter() - began,
    )


def _lengths(keep: np.ndarray, given: Sequence[int] | None, packing: Packing, patch_size: int) -> list[int]:
    if given:
        chosen = set(given)
    elif packing.oversize == "error":  # a length that some image exceeds would raise
        chosen = set(default_seq_lens(keep[[int(keep.argmax())]]))
    else:
        chosen = set(default_seq_lens(keep))
    return sorted(chosen | ({packing.seq_len} if patch_size in packing.patch_sizes else set()))


def _measure(rows: Rows, packing: Packing, seed: int) -> _Measured:
    """Measure the rows in chunks, since `measure` needs several times the memory of its result."""
    (patch_size,) = packing.patch_sizes
    cuts = packing.fill in ("trim", "rescale")
    parts, over, skipped = [], 0, 0
    keep, before = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
    end = 0
    for first in range(0, len(rows), _CHUNK):
        images_seen = np.arange(first, min(first + _CHUNK, len(rows)))
        images, large = measure(
            rows.take(slice(first, first + _CHUNK)), packing, seed=seed, epoch=0, images_seen=images_seen
        )
        over += int(large.sum())
        if packing.oversize == "skip" and large.any():
            skipped += int(large.sum())
            images = images.take(~large)
        begin, end = end, end + len(images)
        keep[begin:end], before[begin:end] = images.keep, images.grid.prod(1, dtype=np.int64)
        if cuts:
            parts.append(images)
    held = Images.concatenate(parts) if cuts else None
    least = None if held is None else fewest_tokens(held, packing, patch_size)
    return _Measured(keep=keep[:end], before=before[:end], least=least, images=held, oversize=over, skipped=skipped)


def _settings(
    measured: _Measured,
    packing: Packing,
    algorithms: Sequence[Algorithm],
    lookaheads: Sequence[int],
    own: bool,
    all_tokens: int,
    seed: int,
    ranks: int,
    width: int,
) -> list[Setting]:
    """Pack with every setting of one patch size and sequence length.

    `own` adds the packing's own setting.
    """
    (patch_size,) = packing.patch_sizes
    resolved: list[Algorithm] = [_resolved(measured, packing, algorithm) for algorithm in algorithms]
    tried = list(dict.fromkeys(_pairs(resolved, lookaheads)))
    (current,) = _pairs([_resolved(measured, packing, packing.algorithm)], [packing.lookahead])
    if own and current not in tried:
        tried = sorted([*tried, current], key=lambda pair: (_rank(resolved, pair[0]), pair[1]))
    slots_bucketed = int(np.dot(*buckets(measured.keep)))
    next_fit, _ = _packed(measured, packing, "next_fit", 1)
    found = []
    for algorithm, lookahead in tried:
        began = time.perf_counter()
        offsets, keep = _packed(measured, packing, algorithm, lookahead)
        seconds = time.perf_counter() - began
        sums = np.zeros((2, len(keep) + 1), np.int64)
        np.cumsum(keep, out=sums[0, 1:])
        np.cumsum(keep**2, out=sums[1, 1:])
        tokens, attention = np.diff(sums[:, offsets])
        counts = np.diff(offsets)
        patches = np.full(len(tokens), patch_size, np.int32)
        found.append(
            Setting(
                patch_size=patch_size,
                seq_len=packing.seq_len,
                algorithm=algorithm,
                lookahead=lookahead,
                fill=_fill_with(packing, algorithm),
                images=len(keep),
                oversize=measured.oversize,
                skipped=measured.skipped,
                lost=max(0.0, 1 - int(measured.keep.sum()) / all_tokens),
                packs=len(tokens),
                tokens=int(tokens.sum()),
                packs_next_fit=len(next_fit) - 1,
                slots_longest=len(keep) * int(measured.keep.max()),
                slots_bucketed=slots_bucketed,
                at_most_images=int(((counts == packing.max_images) & (tokens < packing.seq_len)).sum()),
                attention_cost=int(attention.sum()),
                model_imbalance=imbalance(attention, tokens + attention / (6 * width), patches, packing, seed, ranks)[
                    1
                ],
                pack_bytes=pack_bytes(packing),
                packing_seconds_per_million=seconds / len(keep) * 1e6,
                current=own and (algorithm, lookahead) == current,
            )
        )
    return found


def _pairs(algorithms: Sequence[Algorithm], lookaheads: Sequence[int]) -> list[tuple[Algorithm, int]]:
    pairs = itertools.product(algorithms, lookaheads)
    return [(algorithm, 1 if algorithm == "next_fit" else lookahead) for algorithm, lookahead in pairs]


def _rank(algorithms: Sequence[Algorithm], algorithm: Algorithm) -> int:
    return algorithms.index(algorithm) if algorithm in algorithms else len(algorithms)


def _resolved(measured: _Measured, packing: Packing, algorithm: Algorithm) -> Algorithm:
    return resolve_algorithm(
        algorithm, measured.keep, packing.seq_len, max_items=packing.max_images, lookahead=packing.lookahead
    )


def _fill_with(packing: Packing, algorithm: Algorithm) -> Fill:
    cuts = packing.fill in ("trim", "rescale")
    return "undrop" if cuts and algorithm not in ("largest_fit", "subset_sum") else packing.fill


def _packed(
    measured: _Measured, packing: Packing, algorithm: Algorithm, lookahead: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pack the images with one setting.

    Returns the offset of each pack, int64 (N + 1,), and the images' tokens in pack order, int64 (M,).
    """
    (patch_size,) = packing.patch_sizes
    fill = _fill_with(packing, algorithm)
    cut = fill in ("trim", "rescale")
    order, offsets = pack_ready(
        measured.keep,
        packing.seq_len,
        max_items=packing.max_images,
        algorithm=algorithm,
        lookahead=lookahead,
        flush=True,
        least=measured.least if cut else None,
    )
    if cut and measured.images is not None:
        images = measured.images.take(order)
        fill_packs(images, offsets, packing, patch_size)
        return offsets, images.keep.astype(np.int64)
    keep = measured.keep[order]
    if fill != "none":
        _fill.undrop(measured.before[order], keep, offsets, packing.seq_len)
    return offsets, keep
