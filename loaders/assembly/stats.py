"""Totals of what a loader or stream has done, with every row counted."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from patchnpack.loaders.errors import BadRow
from patchnpack.loaders.imaging.warnings import WARNINGS
from patchnpack.packer import PackedBatch, _kernels
from patchnpack.packer.config import Scope

LISTED = 1000  # bad images that `stats` lists at most; all are counted and logged

_SUMS = (
    "batches",
    "packs",
    "empty_packs",
    "images",
    "samples",
    "tokens_native",
    "tokens_before_drop",
    "tokens",
    "slots",
    "attention_cost",
    "without_label",
    "truncated",
    "multi_page",
    "oversize",
    "undersize",
    "bad_images",
    "bad_samples",
    "left_out",
    "cache_hits",
    "cache_misses",
)

_SKIPPED = ("oversize", "undersize", "frames", "where", "tail")

# Sums that `report` needs for means and spreads only.
_MOMENTS = ("drop_rates", "attention_squares")

_log = logging.getLogger("patchnpack")


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchCounts:
    """What a batch holds, as the fields of `Stats` of the same names count it."""

    packs: int
    empty_packs: int
    images: int
    samples: int
    tokens_native: int
    tokens_before_drop: int
    tokens: int
    slots: int
    attention_cost: int
    drop_rates: float
    attention_squares: float

    @classmethod
    def of(cls, batch: PackedBatch, scope: Scope = "image") -> BatchCounts:
        """Count a batch that is built; `scope` is what a token attends to."""
        return cls.of_columns(
            batch.image_mask.numpy(),
            batch.grids.numpy(),
            batch.image_sizes.numpy(),
            batch.cu_seqlens.numpy(),
            batch.patch_size,
            batch.segment_ids.numel(),
            batch.samples.numpy(),
            scope,
        )

    @classmethod
    def of_columns(
        cls,
        image_mask: np.ndarray,
        grids: np.ndarray,
        image_sizes: np.ndarray,
        starts: np.ndarray,
        patch_size: int,
        slots: int,
        samples: np.ndarray | None = None,
        scope: Scope = "image",
    ) -> BatchCounts:
        """Count a batch of `slots` token slots by the columns of `PackedBatch`; `starts` are its `cu_seqlens`.

        Without `samples`, each image is a sample. `scope` is what a token attends to.
        """
        packs, native, before, drop_rates, attention, squares = _kernels.count_tokens(
            image_mask, grids, image_sizes, starts, patch_size
        )
        if samples is not None and scope == "sample":
            cost = _tokens_of_samples(samples, np.diff(starts)) ** 2
            attention, squares = int(cost.sum()), float((cost.sum(1) ** 2).sum())
        return cls(
            packs=packs,
            empty_packs=len(image_mask) - packs,
            images=len(starts) - 1,
            samples=len(starts) - 1 if samples is None else int(samples.max(1, initial=0).sum()),
            tokens_native=native,
            tokens_before_drop=before,
            tokens=int(starts[-1]),
            slots=slots,
            attention_cost=attention,
            drop_rates=drop_rates,
            attention_squares=squares,
        )


def _tokens_of_samples(samples: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the tokens of each pack's samples, float64 (B, K + 1).

    Args:
        samples: int32 (B, K), as of `PackedBatch`.
        lengths: tokens of each image, int (N,).
    """
    B, K = samples.shape
    pack, column = np.nonzero(samples)
    number = pack * (K + 1) + samples[pack, column]
    return np.bincount(number, lengths, minlength=B * (K + 1)).reshape(B, K + 1)


_COUNTED = tuple(field.name for field in dataclasses.fields(BatchCounts))


@dataclass(slots=True)
class Stats:
    """Running totals of one rank. Rank row % world_size counts a row that no rank decodes.

    Summed over ranks, samples + bad_samples + skipped equals the samples of all completed epochs, and images +
    bad_images + left_out the images that were planned and those that were bad beforehand, with their samples' others.
    One image per sample, images + bad_images + skipped equals the rows. `without_image` counts samples that have no
    row: of a loader's source, once for all epochs, and of those that arrived in a stream.
    """

    batches: int = 0
    packs: int = 0
    empty_packs: int = 0
    images: int = 0
    samples: int = 0
    tokens_native: int = 0
    tokens_before_drop: int = 0
    tokens: int = 0
    slots: int = 0
    attention_cost: int = 0
    drop_rates: float = 0.0
    attention_squares: float = 0.0
    without_label: int = 0
    truncated: int = 0
    multi_page: int = 0
    oversize: int = 0
    undersize: int = 0
    without_image: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    skipped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_SKIPPED, 0))
    sources: dict[str, int] = field(default_factory=dict)
    warnings: dict[str, int] = field(default_factory=dict)
    bad_images: int = 0
    bad_samples: int = 0
    left_out: int = 0
    bad_by_stage: dict[str, int] = field(default_factory=dict)
    bad: list[BadRow] = field(default_factory=list)
    wait_s: float = 0.0
    run_s: float = 0.0

    def add_batch(
        self,
        counts: BatchCounts,
        *,
        without_label: int = 0,
        truncated: int = 0,
        multi_page: int = 0,
        warnings: Sequence[str] = (),
        waited: float = 0.0,
        ran: float = 0.0,
    ) -> None:
        """Count a batch, the seconds that the loop waited for it, and the seconds since the batch before it."""
        for name in _COUNTED:
            setattr(self, name, getattr(self, name) + getattr(counts, name))
        self.batches += 1
        self.wait_s += waited
        self.run_s += ran
        self.without_label += without_label
        self.truncated += truncated
        self.multi_page += multi_page
        for kind in warnings:
            self.warnings[kind] = self.warnings.get(kind, 0) + 1

    NUMBERS: ClassVar[int] = len(_SUMS) + len(_SKIPPED) + len(WARNINGS) + len(_MOMENTS) + 1  # the length of `numbers`

    def numbers(self) -> torch.Tensor:
        """Return every total that processes can add up, float64 (NUMBERS,)."""
        sums, moments = ([getattr(self, name) for name in names] for names in (_SUMS, _MOMENTS))
        warnings = [self.warnings.get(kind, 0) for kind in WARNINGS]
        return torch.tensor([*sums, *self.skipped.values(), *warnings, *moments, self.run_s], dtype=torch.float64)

    def plus(self, others: torch.Tensor) -> Stats:
        """Return these totals plus those of processes that ran in parallel, float64 (n, NUMBERS)."""
        both = dataclasses.replace(self, skipped=dict(self.skipped), warnings=dict(self.warnings))
        *sums, _ = others.sum(0).tolist() if len(others) else [0] * self.NUMBERS
        for name, more in zip(_SUMS, sums, strict=False):
            setattr(both, name, getattr(both, name) + int(more))
        for reason, more in zip(both.skipped, sums[len(_SUMS) :], strict=False):
            both.skipped[reason] += int(more)
        for kind, more in zip(WARNINGS, sums[len(_SUMS) + len(self.skipped) :], strict=False):
            if more:
                both.warnings[kind] = both.warnings.get(kind, 0) + int(more)
        for name, more in zip(_MOMENTS, sums[-len(_MOMENTS) :], strict=True):
            setattr(both, name, getattr(both, name) + more)
        if len(others):
            both.run_s += float(others[:, -1].max())
        return both

    def add_bad(self, row: BadRow) -> None:
        """Count, list and log a bad image."""
        self.bad_images += 1
        self.bad_by_stage[row.stage] = self.bad_by_stage.get(row.stage, 0) + 1
        if len(self.bad) < LISTED:
            self.bad.append(row)
        _log.warning("bad image %s", row)

    def oddities(self) -> str:
        """Describe, for a log line, the images that are used although something is odd; empty if there are none."""
        pages = f", {self.multi_page} with further pages" if self.multi_page else ""
        return f"{pages}, {sum(self.warnings.values())} warnings of decoders" if self.warnings else pages

    def report(self) -> dict[str, Any]:
        """Return the totals as a plain dict, with the rates and shares that follow from them."""
        totals = dataclasses.asdict(self)
        for name in _MOMENTS:
            del totals[name]
        filled = self.slots * self.packs / (self.packs + self.empty_packs) if self.packs else 0.0
        mean = self.attention_cost / self.packs if self.packs else 0.0
        spread = max(0.0, self.attention_squares / self.packs - mean**2) ** 0.5 if self.packs else 0.0
        totals["padding"] = 1 - self.tokens / self.slots if self.slots else 0.0
        totals["padding_in_packs"] = 1 - self.tokens / filled if filled else 0.0
        totals["images_per_pack"] = self.images / self.packs if self.packs else 0.0
        totals["images_per_sample"] = self.images / self.samples if self.samples else 0.0
        totals["drop_rate"] = self.drop_rates / self.images if self.images else 0.0
        totals["attention_spread"] = spread / mean if mean else 0.0
        totals["images_per_s"] = self.images / self.run_s if self.run_s else 0.0
        totals["tokens_per_s"] = self.tokens / self.run_s if self.run_s else 0.0
        return totals


class Ticker:
    """Logs a line about every `every` seconds on what happened since the line before."""

    def __init__(self, stats: Stats, every: float = 60.0) -> None:
        self._stats, self._every = stats, every
        self._began, self._then = time.perf_counter(), dataclasses.replace(stats)

    def tick(self, ready: int, ahead: int) -> None:
        """Log a line if it is time; `ready` of the `ahead` batches in flight are built."""
        now = time.perf_counter()
        seconds = now - self._began
        if seconds < self._every:
            return
        new, old = self._stats, self._then
        images, tokens, slots = new.images - old.images, new.tokens - old.tokens, new.slots - old.slots
        bad = ", ".join(f"{count} {stage}" for stage, count in sorted(new.bad_by_stage.items()))
        opened = new.cache_hits + new.cache_misses
        _log.info(
            "%.0f images/s, %.0f tokens/s, %.1f%% padding, %d of %d batches ready, the loop waited %.1f%% of the time, "
            "%d bad images in total%s%s%s",
            images / seconds,
            tokens / seconds,
            100 * (1 - tokens / slots) if slots else 0.0,
            ready,
            ahead,
            100 * (new.wait_s - old.wait_s) / seconds,
            new.bad_images,
            f" ({bad})" if bad else "",
            new.oddities(),
            f", {new.cache_hits} of {opened} shards were cached" if opened else "",
        )
        self._began, self._then = now, dataclasses.replace(new)
