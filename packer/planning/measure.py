"""`measure`: the images of each sample at one patch size, with their sizes and token counts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from patchnpack.packer.binpacking import _fill
from patchnpack.packer.config import Packing
from patchnpack.packer.planning.images import Images, Rows, sums_between
from patchnpack.packer.planning.members import Members, members_of
from patchnpack.packer.policies.random import Purpose, counter_hash
from patchnpack.packer.policies.resolution import Resolution, Sizes

# n samples, M images


class Measured(NamedTuple):
    """n samples measured at one patch size.

    Attributes:
        images: the images of each sample, whether it is skipped or not.
        oversize: bool (n,), samples of more than `seq_len` tokens or more images than a pack holds, except those
            skipped for another reason.
        undersize: bool (n,), samples with an image smaller than a patch of the packing's largest size.
        few: bool (n,), samples with too few images for `Frames(short="skip")`; None where there are none.
    """

    images: Images
    oversize: np.ndarray
    undersize: np.ndarray
    few: np.ndarray | None = None

    def skipped(self, packing: Packing) -> np.ndarray:
        """Which samples the packing skips, bool (n,)."""
        skipped = np.zeros(len(self.undersize), np.bool_) if self.few is None else self.few.copy()
        if packing.oversize == "skip":
            skipped |= self.oversize
        if packing.undersize == "skip":
            skipped |= self.undersize
        return skipped


def measure(
    rows: Rows,
    packing: Packing,
    *,
    seed: int,
    epoch: int,
    images_seen: np.ndarray | None = None,
    patch_size: int | None = None,
) -> Measured:
    """Measure each sample at one patch size: its images, and whether it is too large or too small.

    Each sample's result depends on that sample alone. Samples that are skipped are included, an oversize one with all
    its tokens. All images of a sample draw the same crop and drop rate, but each view draws its own crop.

    Args:
        rows: the samples.
        packing: the configuration.
        seed, epoch: keys of the random draws, together with each row's `row_id`.
        images_seen: int64 (n,), samples seen in training before each, for schedules; 0 by default.
        patch_size: P, one of the packing's sizes; None takes the only one.

    Raises:
        ValueError: an oversize sample under `oversize="error"`, an undersize image under `undersize="error"`, or a
            sample that no scale fits into a pack under `oversize="shrink"`.
    """
    if patch_size is None:
        (patch_size,) = packing.patch_sizes
    limit = packing.seq_len
    members = members_of(rows, packing, seed=seed, epoch=epoch)
    if packing.fill == "rescale" and members.offsets is not None and (np.diff(members.offsets) > 1).any():
        raise ValueError(
            "fill is 'rescale', which changes sizes image by image, and samples have several images; use fill='trim'"
        )
    undersize = _undersize(rows, members, packing)
    passed_over = _either(members.few, undersize if packing.undersize == "skip" else None)
    crowded = None if members.crowded is None else _without(members.crowded, passed_over)
    if crowded is not None and packing.oversize in ("shrink", "error") and crowded.any():
        _refuse_crowded(rows, members, crowded, packing)
    sizer = _Sizer(rows, members, packing, seed, epoch, images_seen, patch_size)
    sizes, keep = sizer.sized(slice(None), None)
    lengths = members.sums(keep)
    over = _without(lengths > limit, passed_over)
    is_over = bool(over.any())
    if is_over and packing.oversize == "error":
        _refuse_oversize(rows, members, over, lengths, packing)
    if is_over and packing.oversize == "shrink":
        _shrink(rows, members, packing, sizer, sizes, keep, lengths, np.flatnonzero(over))
    keep = keep.astype(np.int32)
    if is_over and packing.oversize == "drop":
        which, ends = members.of(np.flatnonzero(over))
        dropped = keep[which]
        _fill.trim(np.ones(len(which), np.int64), dropped, ends, limit)
        keep[which] = dropped
    box = sizes.box
    if box is None:
        box = np.zeros((len(keep), 4), np.int32)
        box[:, 2], box[:, 3] = rows.width[members.row], rows.height[members.row]
    images = Images(
        row=rows.row[members.row],
        key=counter_hash(Purpose.TOKEN_DROP, seed, epoch, members.image_ids(rows)),
        box=box,
        size=sizes.size,
        grid=sizes.grid,
        keep=keep,
        page=members.page,
        frame=members.frame,
    )
    return Measured(images, over if crowded is None else over | crowded, undersize, members.few)


# Most samples are single images, of which none are too few or too many: None stands for flags that are never set.


def _either(flags: np.ndarray | None, others: np.ndarray | None) -> np.ndarray | None:
    return others if flags is None else flags if others is None else flags | others


def _without(flags: np.ndarray, others: np.ndarray | None) -> np.ndarray:
    return flags if others is None else flags & ~others


class _Sizer:
    """Sizes images, and counts the tokens that they keep."""

    def __init__(
        self,
        rows: Rows,
        members: Members,
        packing: Packing,
        seed: int,
        epoch: int,
        images_seen: np.ndarray | None,
        patch_size: int,
    ) -> None:
        self._packing, self._patch_size, self._view = packing, patch_size, members.view
        self._width, self._height = rows.width[members.row], rows.height[members.row]
        self._images_seen = None if images_seen is None else images_seen[members.sample]
        drawn = any(policy.draws for policy in packing.size_policies)
        self._draws = counter_hash(Purpose.RESOLUTION, seed, epoch, members.crop_ids(rows)) if drawn else None
        self._bytes = _known_complexity(rows, packing)[members.sample] if packing.token_drop.needs_bytes else None
        self._rate_key = counter_hash(Purpose.DROP_RATE, seed, epoch, rows.row_id[rows.first])[members.sample]

    def sized(self, which: np.ndarray | slice, max_tokens: np.ndarray | None) -> tuple[Sizes, np.ndarray]:
        """The sizes of the images at `which`, of at most `max_tokens` each, and the tokens that they keep, int64."""
        views = self._packing.views
        if views is None:
            sizes = self._sizes(self._packing.resolution, which, max_tokens)
        else:
            assert self._view is not None
            at = np.arange(len(self._view))[which]
            sizes = Sizes(*(np.empty((len(at), columns), np.int32) for columns in (2, 2, 4)))
            for first, last, policy in views.ranges():
                here = np.flatnonzero((self._view[at] >= first) & (self._view[at] < last))
                of_views = self._sizes(policy, at[here], None if max_tokens is None else max_tokens[here])
                sizes.size[here], sizes.grid[here] = of_views.size, of_views.grid
                assert sizes.box is not None
                sizes.box[here] = of_views.box if of_views.box is not None else self._whole(at[here])
        seen = None if self._images_seen is None else self._images_seen[which]
        tokens = sizes.grid.prod(1, dtype=np.int64)
        drop, encoded = self._packing.token_drop, None if self._bytes is None else self._bytes[which]
        return sizes, drop.keep(tokens, self._rate_key[which], self._packing.seq_len, seen, encoded)

    def _sizes(self, policy: Resolution, which: np.ndarray | slice, max_tokens: np.ndarray | None) -> Sizes:
        return policy.sizes(
            self._width[which],
            self._height[which],
            self._patch_size,
            self._packing.grid_multiple,
            keys=None if self._draws is None else self._draws[which],
            images_seen=None if self._images_seen is None else self._images_seen[which],
            limit=max_tokens,
        )

    def _whole(self, which: np.ndarray) -> np.ndarray:
        """The boxes of whole images, int32 (., 4)."""
        none = np.zeros(len(which), np.int32)
        return np.stack([none, none, self._width[which], self._height[which]], 1).astype(np.int32)


def _known_complexity(rows: Rows, packing: Packing) -> np.ndarray:
    """The encoded bytes per pixel of each sample; ValueError if one is not known."""
    complexity = rows.complexity()
    unknown = complexity <= 0
    if unknown.any():
        raise ValueError(
            f"token_drop is {packing.token_drop}, which follows the encoded bytes of an image, and those of row "
            f"{rows.row[rows.first][unknown.argmax()]} are not known ({int(unknown.sum())} of {len(rows)} rows): sizes "
            "alone, PIL images and arrays have none. Use encoded images, such as the bytes of a JPEG, or another drop"
        )
    return complexity


def _undersize(rows: Rows, members: Members, packing: Packing) -> np.ndarray:
    """Which samples have an image smaller than a patch, bool (n,); raises under `undersize="error"`."""
    unit, width, height = max(packing.patch_sizes) * packing.grid_multiple, rows.width, rows.height
    by_policy = [policy.undersize(width, height, unit) for policy in packing.size_policies]
    small = by_policy[0] if len(by_policy) == 1 else np.logical_or.reduce(by_policy)
    if packing.undersize == "error" and small.any():
        # Only rows that are used count.
        used = np.zeros(len(small), np.bool_)
        used[members.row] = True
        if (small & used).any():
            _refuse_undersize(rows, small & used, packing)
    return members.any(small[members.row])


def _shrink(
    rows: Rows,
    members: Members,
    packing: Packing,
    sizer: _Sizer,
    sizes: Sizes,
    keep: np.ndarray,
    lengths: np.ndarray,
    left: np.ndarray,
) -> None:
    """Shrink the samples `left` until each fits; changes `sizes`, `keep` and `lengths` in place.

    All images of a sample get the same share of their tokens as their limit, so equal images stay equal.
    """
    least, max_tokens = packing.grid_multiple**2, sizes.grid.prod(1, dtype=np.int64)
    is_single = members.offsets is None  # which needs neither sums nor repeats
    while len(left):  # one pass, except for drops that keep a larger share of a smaller image, and for tiny images
        which, ends = members.of(left)
        length = lengths[left] if is_single else np.repeat(lengths[left], np.diff(ends))
        before = max_tokens[which]
        smaller = np.maximum(least, before * packing.seq_len // length)
        max_tokens[which] = smaller
        shrunk, keep[which] = sizer.sized(which, smaller)
        sizes.size[which], sizes.grid[which] = shrunk.size, shrunk.grid
        lengths[left] = after = keep[which] if is_single else sums_between(keep[which], ends)
        still = after > packing.seq_len
        if not still.any():
            return
        stuck = smaller == before
        none_moved = still & (stuck if is_single else np.logical_and.reduceat(stuck, ends[:-1]))
        if none_moved.any():
            sample = left[none_moved.argmax()]
            raise ValueError(
                f"the sample of row {rows.row[rows.first][sample]} has {members.count(sample)} images of at least "
                f"{least} tokens each, {lengths[sample]} in all, more than seq_len {packing.seq_len}; raise seq_len, "
                "choose fewer images with Packing(frames=Frames(...)), or choose oversize='drop' or 'skip'"
            )
        left = left[still]


def _refuse_crowded(rows: Rows, members: Members, crowded: np.ndarray, packing: Packing) -> None:
    """Raise ValueError for the first sample of too many images."""
    i, views = int(crowded.argmax()), 1 if packing.views is None else packing.views.count
    name = "max_images" if packing.max_images <= packing.seq_len else "seq_len"
    raise ValueError(
        f"the sample of row {rows.row[rows.first][i]} has {members.count(i)} images, more than {name} "
        f"{packing.most_images} ({int(crowded.sum())} of {len(rows)} samples do), and a sample stays in one pack; "
        f"choose some with Packing(frames=Frames({packing.most_images // views})), raise {name}, or choose "
        "oversize='drop' or 'skip'"
    )


def _refuse_oversize(rows: Rows, members: Members, over: np.ndarray, lengths: np.ndarray, packing: Packing) -> None:
    """Raise ValueError for the first sample of too many tokens."""
    i, number = int(over.argmax()), int(over.sum())
    remedy = "raise seq_len or patch_size, or choose oversize='shrink', 'drop' or 'skip'"
    row = rows.row[rows.first][i]
    if members.count(i) == 1:
        (at,) = members.of(np.array([i]))[0] if members.offsets is not None else (i,)
        source = at if isinstance(members.row, slice) else members.row[at]
        raise ValueError(
            f"row {row} of {rows.width[source]}x{rows.height[source]} pixels has {lengths[i]} tokens, more than "
            f"seq_len {packing.seq_len} ({number} rows do); {remedy}"
        )
    raise ValueError(
        f"the sample of row {row} has {lengths[i]} tokens in {members.count(i)} images, more than seq_len "
        f"{packing.seq_len} ({number} samples do); use fewer with Packing(frames=Frames(...)), {remedy}"
    )


def _refuse_undersize(rows: Rows, undersize: np.ndarray, packing: Packing) -> None:
    """Raise ValueError for the first undersize row."""
    i, multiple = int(undersize.argmax()), packing.grid_multiple
    unit = max(packing.patch_sizes) * multiple
    what = "a patch" if multiple == 1 else f"grid_multiple {multiple} x {multiple} patches"
    raise ValueError(
        f"row {rows.row[i]} of {rows.width[i]}x{rows.height[i]} pixels is smaller than {what} of "
        f"{unit}x{unit} ({int(undersize.sum())} of {len(rows.row)} rows are); use a smaller patch_size, or choose "
        "undersize='pad' or 'skip'"
    )
