"""`BatchBuilder`: the contract between the loop that runs batches and what builds them."""

from __future__ import annotations

from typing import Protocol

from patchnpack.loaders.assembly.stats import BatchCounts
from patchnpack.loaders.errors import BadRow
from patchnpack.packer import PackedBatch

# M images in the batch


class BatchBuilder(Protocol):
    """A batch that is being built. Threads `run` its parts in any order; `finish` waits for them.

    Attributes:
        num_parts: parts to run, at least 1.
        num_images: images that were planned for the batch, M.
        bad: the bad images, each with its number in the batch, ascending; complete once `finish` has returned.
        lost: numbers of the bad images and of those that are left out with them; set once `finish` has returned.
        bad_samples: samples of which no image is left; set once `finish` has returned.
        without_label: images without a label; set once `finish` has returned.
        truncated: JPEGs that end early and were kept; set once `finish` has returned.
        multi_page: images with further pages, which are left out; set once `finish` has returned.
        warnings: kind of each warning of a decoder; complete once `finish` has returned.
        counts: what the batch holds; set once `finish` has returned.
    """

    num_parts: int
    num_images: int
    bad: list[tuple[int, BadRow]]
    lost: list[int]
    bad_samples: int
    without_label: int
    truncated: int
    multi_page: int
    warnings: list[str]
    counts: BatchCounts

    def run(self, part: int) -> None:
        """Build one part, from 0 to `num_parts` - 1. Never raises: `finish` raises instead."""
        ...

    @property
    def is_done(self) -> bool:
        """Whether `finish` returns without waiting."""
        ...

    def finish(self) -> PackedBatch:
        """Wait for all parts and return the batch.

        Re-raises what a part raised, except BadImage.

        Raises:
            StallError: no part has finished for as long as the error policy allows.
        """
        ...
