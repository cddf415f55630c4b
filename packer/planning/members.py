"""`Members`: the images that samples consist of, once frames are chosen and views are made."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from patchnpack.packer.config import Packing
from patchnpack.packer.planning.images import Rows, ranges_of, sums_between
from patchnpack.packer.policies.frames import Frames
from patchnpack.packer.policies.random import Purpose, counter_hash, image_ids

# n samples in m rows, M images; a picture is an image of the source, of which V views are made


class Members(NamedTuple):
    """The images of n samples, M in all.

    Where each row is a sample of one image, the positions are slices and the columns None.

    Attributes:
        row: int64 (M,), position of each image's row in the rows.
        sample: int64 (M,), position of each image's sample.
        offsets: int64 (n + 1,), offset of each sample's first image.
        page: int32 (M,), position of the image among the pages or frames of its file.
        frame: int32 (M,), place of the image in its sample.
        view: int64 (M,), which view of its picture; None without views.
        few: bool (n,), samples with too few images, which `Frames(short="skip")` skips; None without them.
        crowded: bool (n,), samples of more images than a pack holds. Under `oversize="drop"` and "skip", their images
            are as many as a pack holds, evenly spaced. None where each row is a sample of one image.
    """

    row: np.ndarray | slice
    sample: np.ndarray | slice
    offsets: np.ndarray | None
    page: np.ndarray | None
    frame: np.ndarray | None
    view: np.ndarray | None
    few: np.ndarray | None
    crowded: np.ndarray | None

    def of(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the images of `samples`, int64, and the offset of each sample's first one."""
        if self.offsets is None:
            return samples, np.arange(len(samples) + 1)
        return ranges_of(self.offsets, samples)

    def count(self, sample: int | np.integer) -> int:
        """Number of images of a sample."""
        return 1 if self.offsets is None else int(self.offsets[sample + 1] - self.offsets[sample])

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum of `values` (M,) over each sample, (n,); `values` itself where each image is a sample."""
        if self.offsets is None:
            return values
        return sums_between(values, self.offsets)

    def any(self, flags: np.ndarray) -> np.ndarray:
        """Which samples have an image with its flag (M,) set, bool (n,)."""
        return flags if self.offsets is None else self.sums(flags) > 0

    def image_ids(self, rows: Rows) -> np.ndarray:
        """What identifies each image in random draws, uint64 (M,)."""
        ids = rows.row_id[self.row]
        return ids if self.page is None else image_ids(ids, self.page, 0 if self.view is None else self.view)

    def crop_ids(self, rows: Rows) -> np.ndarray:
        """What identifies each image in the draw of its size: its sample and its view, uint64 (M,)."""
        ids = rows.row_id[rows.first][self.sample]
        return ids if self.view is None else image_ids(ids, np.zeros(len(ids), np.int64), self.view)


_SINGLE = Members(slice(None), slice(None), None, None, None, None, None, None)  # each row is a sample of one image


def members_of(rows: Rows, packing: Packing, *, seed: int, epoch: int) -> Members:
    """Choose the frames of each sample and make the views of each picture; each depends on its own sample alone.

    Args:
        rows: the samples.
        packing: the configuration.
        seed, epoch: keys of the random draws, together with the `row_id` of each sample's first row.
    """
    n, frames, views = len(rows), packing.frames, packing.views
    if rows.offsets is None and views is None and (frames is None or frames.count == 1 or frames.short == "keep"):
        return _SINGLE
    own = np.ones(n, np.int64) if rows.frames is None else rows.frames.astype(np.int64)
    ends = np.concatenate([[0], np.cumsum(own)])  # first picture of each row
    first = ends if rows.offsets is None else ends[rows.offsets]
    chosen, offsets, few = _choose(np.diff(first), rows, packing, seed, epoch)
    per_picture = 1 if views is None else views.count
    most = packing.most_images // per_picture
    crowded = np.diff(offsets) > most
    if packing.oversize in ("drop", "skip") and crowded.any():
        spread, spread_offsets, _ = Frames(most).choose(np.diff(offsets))
        chosen = chosen[np.repeat(offsets[:-1], np.diff(spread_offsets)) + spread]
        offsets = spread_offsets
    sample = np.repeat(np.arange(n), np.diff(offsets))
    picture = first[:-1][sample] + chosen
    row = picture if len(picture) == 0 or ends[-1] == len(own) else np.searchsorted(ends, picture, side="right") - 1
    page = picture - ends[row] + (0 if rows.page is None else rows.page[row])
    view = None
    if views is not None:
        row, sample, page = (np.repeat(column, per_picture) for column in (row, sample, page))
        offsets, view = offsets * per_picture, np.tile(np.arange(per_picture), len(picture))
    frame = np.arange(len(row)) - offsets[:-1][sample]
    return Members(row, sample, offsets, page.astype(np.int32), frame.astype(np.int32), view, few, crowded)


def _choose(
    pictures: np.ndarray, rows: Rows, packing: Packing, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The numbers of the chosen pictures within their samples, their offsets, and which samples to skip, if any.

    `pictures` (n,) is how many each sample has.
    """
    if packing.frames is None:
        offsets = np.concatenate([[0], np.cumsum(pictures)])
        chosen = np.arange(offsets[-1]) - np.repeat(offsets[:-1], pictures)
        return chosen, offsets, None
    keys = counter_hash(Purpose.FRAMES, seed, epoch, rows.row_id[rows.first]) if packing.frames.draws else None
    chosen, offsets, few = packing.frames.choose(pictures, keys)
    return chosen, offsets, few if packing.frames.short == "skip" else None
