"""Packing the images of a sweep: measured once per patch size and sequence length, packed with many settings."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from patchnpack.packer.analysis.baselines import buckets
from patchnpack.packer.analysis.length_search import Trial
from patchnpack.packer.analysis.report import imbalance, pack_bytes
from patchnpack.packer.analysis.setting import Setting
from patchnpack.packer.binpacking import _fill
from patchnpack.packer.binpacking.algorithms import CHOICES, Algorithm
from patchnpack.packer.binpacking.pack_lengths import is_undecided, pack_ready, resolve_algorithm
from patchnpack.packer.binpacking.pricing.cutting_stock import GROUPS
from patchnpack.packer.binpacking.pricing.prices import Prices
from patchnpack.packer.config import Fill, Packing
from patchnpack.packer.planning.fill import fewest_tokens, fill_packs, most_tokens
from patchnpack.packer.planning.images import Images, Rows, sums_between
from patchnpack.packer.planning.measure import measure

# n rows, M images, N packs

_CHUNK = 1 << 16  # rows measured at a time
_SEARCH_GROUPS = 64  # distinct lengths that are priced in a search: a tenth of the time, and hardly fewer packs


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredImages:
    """n samples at one patch size and sequence length: tokens kept, tokens before dropping, and images of each.

    `least` and `images` are set only where `fill` needs them, `counts` where a sample may have several images.
    """

    keep: np.ndarray  # int64 (n,)
    before: np.ndarray  # int64 (n,)
    least: np.ndarray | None
    counts: np.ndarray | None
    images: Images | None
    oversize: int
    undersize: int
    skipped: int


def measure_rows(rows: Rows, packing: Packing, seed: int, images_seen: np.ndarray | None = None) -> MeasuredImages:
    """Measure the rows in chunks, since `measure` needs several times the memory of its result.

    `images_seen` (n,) is the number of images seen in training before each; by default the rows are the first.
    """
    seen = np.arange(len(rows)) if images_seen is None else images_seen
    (patch_size,) = packing.patch_sizes
    cuts = packing.fill in ("trim", "rescale")
    parts, over, under, skipped = [], 0, 0, 0
    keep, before = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
    end, is_held = 0, cuts
    for first in range(0, len(rows), _CHUNK):
        chunk = slice(first, first + _CHUNK)
        measured = measure(rows.take(chunk), packing, seed=seed, epoch=0, images_seen=seen[chunk])
        images, leaves = measured.images, measured.skipped(packing)
        over, under = over + int(measured.oversize.sum()), under + int(measured.undersize.sum())
        if leaves.any():
            skipped += int(leaves.sum())
            images = images.take_samples(~leaves)
        begin, end = end, end + images.num_samples
        keep[begin:end] = images.sample_sums(images.keep)
        before[begin:end] = images.sample_sums(images.grid.prod(1, dtype=np.int64))
        is_held = is_held or images.frame is not None
        if is_held:
            parts.append(images)
    held = Images.concatenate(parts) if is_held else None
    least = fewest_tokens(held, packing, patch_size) if cuts and held is not None else None
    return MeasuredImages(
        keep=keep[:end],
        before=before[:end],
        least=least if least is None or held is None else held.sample_sums(least),
        counts=None if held is None else held.sample_counts(),
        images=held,
        oversize=over,
        undersize=under,
        skipped=skipped,
    )


def try_packing(
    measured: MeasuredImages, packing: Packing, algorithms: Sequence[Algorithm], lookaheads: Sequence[int]
) -> Trial:
    """Pack with every algorithm and lookahead, and return the packs of the one that pads least."""
    packs, tokens = 0, 0
    prices = _prices(measured, packing, algorithms, _SEARCH_GROUPS)
    tried = _tried(measured, packing, algorithms, lookaheads, prices) if len(measured.keep) else ()
    for algorithm, lookahead in tried:
        tried_packs = _packed(measured, packing, algorithm, lookahead, prices)
        found = len(tried_packs.tokens), int(tried_packs.tokens.sum())
        if not packs or found[1] * packs > tokens * found[0]:
            packs, tokens = found
    most = int((measured.keep if packing.fill == "none" else np.maximum(measured.keep, measured.before)).sum())
    if packing.fill == "rescale":
        most = math.ceil(most * (1 + packing.max_scale) ** 2)
    return Trial(
        packs=packs,
        tokens=tokens,
        oversize=measured.oversize,
        samples=len(measured.keep),
        most_tokens=max(tokens, most),
    )


def settings_of(
    measured: MeasuredImages,
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
    prices = _prices(measured, packing, [*algorithms, packing.algorithm], GROUPS)
    tried = _tried(measured, packing, algorithms, lookaheads, prices)
    (current,) = _pairs([_resolved(measured, packing, packing.algorithm, prices)], [packing.lookahead])
    if own and current not in tried:
        names = [algorithm for algorithm, _ in tried]
        tried = sorted([*tried, current], key=lambda pair: (_rank(names, pair[0]), pair[1]))
    slots_bucketed = int(np.dot(*buckets(measured.keep)))
    next_fit = _packed(measured, packing, "next_fit", 1, None)
    images = len(measured.keep) if measured.counts is None else int(measured.counts.sum())
    found = []
    for algorithm, lookahead in tried:
        began = time.perf_counter()
        tokens, attention, counts = _packed(measured, packing, algorithm, lookahead, prices)
        seconds = time.perf_counter() - began
        patches = np.full(len(tokens), patch_size, np.int32)
        found.append(
            Setting(
                patch_size=patch_size,
                seq_len=packing.seq_len,
                algorithm=algorithm,
                lookahead=lookahead,
                fill=_fill_with(packing, algorithm),
                samples=len(measured.keep),
                images=images,
                oversize=measured.oversize,
                undersize=measured.undersize,
                skipped=measured.skipped,
                lost=max(0.0, 1 - int(measured.keep.sum()) / all_tokens),
                packs=len(tokens),
                tokens=int(tokens.sum()),
                packs_next_fit=len(next_fit.tokens),
                slots_longest=len(measured.keep) * int(measured.keep.max()),
                slots_bucketed=slots_bucketed,
                at_most_images=int(((counts == packing.max_images) & (tokens < packing.seq_len)).sum()),
                attention_cost=int(attention.sum()),
                model_imbalance=imbalance(attention, tokens + attention / (6 * width), patches, packing, seed, ranks)[
                    1
                ],
                pack_bytes=pack_bytes(packing),
                packing_seconds_per_million=seconds / len(measured.keep) * 1e6,
                current=own and (algorithm, lookahead) == current,
            )
        )
    return found


def _prices(measured: MeasuredImages, packing: Packing, algorithms: Sequence[Algorithm], groups: int) -> Prices | None:
    """Prices of the token counts, in so many groups; None if no algorithm uses them."""
    if not any(is_undecided(algorithm, None) for algorithm in algorithms):
        return None
    return Prices.of_counts(np.bincount(measured.keep), packing.seq_len, groups)


def _tried(
    measured: MeasuredImages,
    packing: Packing,
    algorithms: Sequence[Algorithm],
    lookaheads: Sequence[int],
    prices: Prices | None,
) -> list[tuple[Algorithm, int]]:
    """The distinct settings, with "auto" resolved."""
    resolved = [_resolved(measured, packing, algorithm, prices) for algorithm in algorithms]
    return list(dict.fromkeys(_pairs(resolved, lookaheads)))


def _pairs(algorithms: Sequence[Algorithm], lookaheads: Sequence[int]) -> list[tuple[Algorithm, int]]:
    pairs = itertools.product(algorithms, lookaheads)
    return [(algorithm, 1 if algorithm == "next_fit" else lookahead) for algorithm, lookahead in pairs]


def _rank(algorithms: Sequence[Algorithm], algorithm: Algorithm) -> int:
    return algorithms.index(algorithm) if algorithm in algorithms else len(algorithms)


def _resolved(measured: MeasuredImages, packing: Packing, algorithm: Algorithm, prices: Prices | None) -> Algorithm:
    limits = {"max_items": packing.max_images, "lookahead": packing.lookahead}
    return resolve_algorithm(
        algorithm, measured.keep, packing.seq_len, **limits, prices=prices, counts=measured.counts
    )[0]


def _fill_with(packing: Packing, algorithm: Algorithm) -> Fill:
    cuts = packing.fill in ("trim", "rescale")
    return "undrop" if cuts and algorithm not in CHOICES else packing.fill


class _Packs(NamedTuple):
    """Tokens, attention cost and images of each pack, int64 (N,)."""

    tokens: np.ndarray
    attention: np.ndarray
    counts: np.ndarray


def _packed(
    measured: MeasuredImages, packing: Packing, algorithm: Algorithm, lookahead: int, prices: Prices | None
) -> _Packs:
    """Pack the samples with one setting."""
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
        prices=prices,
        counts=measured.counts,
    )
    if measured.images is None or not (cut or measured.counts is not None):
        keep, counts = measured.keep[order], np.diff(offsets)
        if fill != "none":
            _fill.undrop(most_tokens(measured.before[order], keep, packing), keep, offsets, packing.seq_len)
        return _Packs(sums_between(keep, offsets), sums_between(keep**2, offsets), counts)
    images, ends = measured.images.take_samples(order), offsets
    if measured.counts is not None:
        ends = np.concatenate([[0], np.cumsum(measured.counts[order])])[offsets]
    fill_packs(images, ends, packing if cut else packing.replace(fill=fill), patch_size)
    keep = images.keep.astype(np.int64)
    by_scope = sums_between(keep**2, ends)
    if packing.scope == "sample":
        by_scope = sums_between(images.sample_sums(keep) ** 2, offsets)
    return _Packs(sums_between(keep, ends), by_scope, np.diff(ends))
