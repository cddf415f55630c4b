"""Counting what a loader has done: nothing is left out in silence."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass, field
from typing import Any

from patchnpack.loaders.assemble import BadRow

LISTED = 1000  # bad images that `stats` lists; all of them are counted and logged

_log = logging.getLogger("patchnpack")


@dataclass(slots=True)
class Stats:
    """Running totals of one rank. Rows that no rank decodes are counted by the rank that row % world_size names.

    Summed over ranks, images + bad_images + the skipped ones are the rows of the epochs that were run to their end.
    """

    batches: int = 0
    packs: int = 0
    images: int = 0
    tokens: int = 0
    slots: int = 0
    without_label: int = 0
    oversize: int = 0
    skipped: dict[str, int] = field(default_factory=lambda: {"oversize": 0, "where": 0, "tail": 0})
    bad_images: int = 0
    bad: list[BadRow] = field(default_factory=list)
    wait_s: float = 0.0
    run_s: float = 0.0

    def add_bad(self, row: BadRow) -> None:
        """Counts, lists and logs a bad image."""
        self.bad_images += 1
        if len(self.bad) < LISTED:
            self.bad.append(row)
        _log.warning("bad image %r in %s at byte %d (%s): %s", row.key, row.shard, row.offset, row.stage, row.reason)

    def report(self) -> dict[str, Any]:
        """The totals as a plain dict, with the rates and shares that follow from them."""
        totals = dataclasses.asdict(self)
        totals["padding"] = 1 - self.tokens / self.slots if self.slots else 0.0
        totals["images_per_s"] = self.images / self.run_s if self.run_s else 0.0
        totals["tokens_per_s"] = self.tokens / self.run_s if self.run_s else 0.0
        return totals
