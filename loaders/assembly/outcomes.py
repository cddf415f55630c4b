"""Outcomes: every row is counted once, as an image of a batch, a bad image or a row that was left out.

So is every sample: as a sample of a batch, as one lost to bad images, or as one that was left out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from patchnpack.loaders.assembly.builders.batch_builder import BatchBuilder
from patchnpack.loaders.assembly.stats import Stats
from patchnpack.loaders.error_policy import ErrorMonitor
from patchnpack.loaders.errors import BadRow
from patchnpack.packer import PackedBatch


@dataclass(slots=True)
class LeftOut:
    """Samples that are in no batch. They wait here until the next batch is handed out and are counted with it.

    Attributes:
        oversize: samples of more tokens than a pack has slots, however they were treated.
        undersize: samples with an image smaller than a patch, however they were treated.
        without_image: samples of a stream without an image.
        bad_samples: samples of which no image can be used, since images of theirs are bad.
        images: images left out with a bad image of their sample.
        skipped: samples left out, by reason: "oversize", "undersize", "frames", "where" or "tail".
        bad: rows that cannot be used, each with the epoch.
    """

    oversize: int = 0
    undersize: int = 0
    without_image: int = 0
    bad_samples: int = 0
    images: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    bad: list[tuple[int, BadRow]] = field(default_factory=list)

    def take(self) -> LeftOut:
        """Return the samples so far and start again from nothing."""
        taken = replace(self)
        self.oversize = self.undersize = self.without_image = self.bad_samples = self.images = 0
        self.skipped, self.bad = Counter(), []
        return taken


class Outcomes:
    """Counts what becomes of the rows of one iterator, quarantines bad images, and stops the run at the limits.

    Attributes:
        stats: the totals of the loader or stream.
        monitor: judges the images in order and writes the quarantine file.
        left_out: rows that the plan left out since the last batch was started.
    """

    def __init__(self, stats: Stats, monitor: ErrorMonitor) -> None:
        self.stats, self.monitor, self.left_out = stats, monitor, LeftOut()

    def count_batch(self, batch: PackedBatch, builder: BatchBuilder, *, waited: float, ran: float) -> None:
        """Count a batch that is about to be handed out.

        Args:
            batch: what `builder.finish` returned.
            builder: knows the bad images.
            waited: seconds that the training loop waited for the batch.
            ran: seconds since the batch before it.

        Raises:
            BadDataError: a limit of the error policy is reached.
        """
        self.stats.add_batch(
            builder.counts,
            without_label=builder.without_label,
            truncated=builder.truncated,
            multi_page=builder.multi_page,
            warnings=builder.warnings,
            waited=waited,
            ran=ran,
        )
        self.judge(batch, builder)

    def judge(self, batch: PackedBatch, builder: BatchBuilder) -> None:
        """Record the bad images of a batch and let the monitor judge all its images, in the order of the batch."""
        for _, bad in builder.bad:
            self.add_bad(bad, batch.epoch)
        self.stats.bad_samples += builder.bad_samples
        self.stats.left_out += len(builder.lost) - len(builder.bad)
        self.monitor.record(builder.num_images, builder.bad, builder.lost)

    def add_bad(self, bad: BadRow, epoch: int) -> None:
        """Count, log and quarantine a bad image."""
        self.stats.add_bad(bad)
        self.monitor.quarantine(bad, epoch)

    def count_left_out(self, left_out: LeftOut) -> None:
        """Count samples that are in no batch."""
        self.stats.oversize += left_out.oversize
        self.stats.undersize += left_out.undersize
        self.stats.without_image += left_out.without_image
        self.stats.bad_samples += left_out.bad_samples
        self.stats.left_out += left_out.images
        for reason, count in left_out.skipped.items():
            self.stats.skipped[reason] += count
        for epoch, bad in left_out.bad:
            self.add_bad(bad, epoch)
