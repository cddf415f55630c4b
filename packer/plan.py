"""`plan`: which images go into which pack, with which size and how many tokens. No pixels yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike

from patchnpack.packer import _kernels
from patchnpack.packer.config import Algorithm, Packing
from patchnpack.packer.packing import SAMPLE, pack_ready, resolve_algorithm
from patchnpack.packer.random import Purpose, keys
from patchnpack.packer.resolution import shrink_above

# n rows, M images in the plan's packs, N packs


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """What a plan needs to know of n images, in order of arrival.

    Attributes:
        row: int64 (n,), the row in the index.
        ident: uint64 (n,), what the row's draws are keyed by: it names the image whatever else the source holds.
        width: int32 (n,), pixels, after EXIF orientation.
        height: int32 (n,), likewise.
    """

    row: np.ndarray
    ident: np.ndarray
    width: np.ndarray
    height: np.ndarray

    def __post_init__(self) -> None:
        # The kernels read the columns side by side, without a check of their own.
        lengths = {f.name: len(getattr(self, f.name)) for f in fields(self)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns have lengths {lengths}; they must be equal")

    def __len__(self) -> int:
        return len(self.row)

    @classmethod
    def of_sizes(cls, width: ArrayLike, height: ArrayLike) -> Rows:
        """Rows of images of which only the sizes are known, numbered from 0."""
        width, height = np.asarray(width, np.int32), np.asarray(height, np.int32)
        row = np.arange(len(width))
        return cls(row=row, ident=row.astype(np.uint64), width=width, height=height)


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """M images, each with the size it is given and the tokens it keeps.

    Attributes:
        row: int64 (M,), the row in the index.
        key: uint64 (M,), what the choice of kept tokens is drawn from.
        size: int32 (M, 2), (width, height) in pixels that the image is resized to.
        grid: int32 (M, 2), (gw, gh); the image is centre-cropped or zero-padded from `size` to this many patches.
        keep: int32 (M,), tokens kept, from 1 to gw * gh; in a plan, with those that `fill` gave back.
    """

    row: np.ndarray
    key: np.ndarray
    size: np.ndarray
    grid: np.ndarray
    keep: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def take(self, which: np.ndarray | slice) -> Images:
        """The images at `which`, in that order."""
        return Images(**{f.name: getattr(self, f.name)[which] for f in fields(self)})

    @classmethod
    def concatenate(cls, parts: Sequence[Images]) -> Images:
        """The images of all parts, in order."""
        return cls(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """N packs: pack i holds the images `offsets[i]` to `offsets[i + 1]` of `images`.

    Attributes:
        offsets: int64 (N + 1,).
        images: the images of all packs, pack by pack, in segment order.
        skipped: int64, the rows left out because they were oversize.
        oversize: int64, the rows of more than `seq_len` tokens, whatever became of them.
        algorithm: how they were packed; "auto" only where too few rows had arrived to decide.
    """

    offsets: np.ndarray
    images: Images
    skipped: np.ndarray
    oversize: np.ndarray
    algorithm: Algorithm

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def pack(self, i: int) -> Images:
        """The images of pack i."""
        return self.images.take(slice(self.offsets[i], self.offsets[i + 1]))

    def tokens(self) -> np.ndarray:
        """Tokens in each pack, int64 (N,)."""
        return self._sums(self.images.keep.astype(np.int64))

    def attention_cost(self) -> np.ndarray:
        """What attention costs in each pack, int64 (N,): the sum of its images' squared numbers of tokens."""
        return self._sums(self.images.keep.astype(np.int64) ** 2)

    def _sums(self, values: np.ndarray) -> np.ndarray:
        return np.diff(np.concatenate([[0], np.cumsum(values)])[self.offsets])


def measure(rows: Rows, packing: Packing, *, seed: int, epoch: int) -> tuple[Images, np.ndarray, np.ndarray]:
    """The size, grid and token count of each row; also which rows were skipped, and which were oversize.

    Each row is measured by itself: the result does not depend on which rows are asked for together.

    Raises:
        ValueError: an image smaller than a patch, or an oversize one under `oversize="error"`.
    """
    patch, multiple, limit = packing.patch_size, packing.grid_multiple, packing.seq_len
    sizes = packing.resolution.sizes(rows.width, rows.height, patch, multiple)
    tokens = sizes.grid.prod(1, dtype=np.int64)
    over = tokens > limit
    if over.any() and packing.oversize == "error":
        i = int(over.argmax())
        raise ValueError(
            f"row {rows.row[i]} of {rows.width[i]}x{rows.height[i]} pixels has {tokens[i]} tokens, more than seq_len "
            f"{limit} ({int(over.sum())} rows do); raise seq_len or patch_size, or choose oversize='shrink', "
            "'drop' or 'skip'"
        )
    if packing.oversize == "shrink":
        pad = getattr(packing.resolution, "edge", "resize") == "pad"
        shrink_above(sizes, rows.width, rows.height, patch, multiple, limit, pad=pad)
        tokens = sizes.grid.prod(1, dtype=np.int64)
    key = keys(Purpose.TOKEN_DROP, seed, epoch, rows.ident)
    rate_key = keys(Purpose.DROP_RATE, seed, epoch, rows.ident)
    keep = np.minimum(packing.token_drop.keep(tokens, rate_key, limit), limit).astype(np.int32)
    images = Images(row=rows.row, key=key, size=sizes.size, grid=sizes.grid, keep=keep)
    skipped = over if packing.oversize == "skip" else np.zeros_like(over)
    return images.take(~skipped), rows.row[skipped], rows.row[over]


class Planner:
    """Plans rows as they arrive: `add` gives the packs that are ready, `finish` the rest.

    However the rows are cut into calls, the packs are those of `plan` over all of them. The algorithm "auto" is decided
    once, by the first 4,096 images.
    """

    def __init__(self, packing: Packing, *, seed: int = 0, epoch: int = 0) -> None:
        self._packing, self._seed, self._epoch = packing, seed, epoch
        self._algorithm = packing.algorithm
        self._waiting: list[Images] = []

    def add(self, rows: Rows) -> Plan:
        """Takes rows in; returns the packs that no later row can change."""
        return self._pack(rows, flush=False)

    def finish(self) -> Plan:
        """Empties the waiting room."""
        none = np.empty(0, np.int32)
        return self._pack(Rows.of_sizes(none, none), flush=True)

    def _pack(self, rows: Rows, flush: bool) -> Plan:
        arrived, skipped, oversize = measure(rows, self._packing, seed=self._seed, epoch=self._epoch)
        images = Images.concatenate([*self._waiting, arrived])
        packing = self._packing
        limits = {"max_items": packing.max_images, "lookahead": packing.lookahead}
        if self._algorithm == "auto" and (flush or len(images) >= SAMPLE):
            self._algorithm = resolve_algorithm("auto", images.keep, packing.seq_len, **limits)
        if self._algorithm == "auto":
            order, offsets = np.empty(0, np.int64), np.zeros(1, np.int64)
        else:
            order, offsets = pack_ready(images.keep, packing.seq_len, algorithm=self._algorithm, flush=flush, **limits)
        stays = np.ones(len(images), np.bool_)
        stays[order] = False
        self._waiting = [images.take(np.flatnonzero(stays))]
        packed = images.take(order)
        if packing.fill == "undrop":
            tokens = packed.grid.prod(1, dtype=np.int64)
            _kernels.undrop(tokens, packed.keep, offsets, packing.seq_len)
        return Plan(
            offsets=offsets,
            images=packed,
            skipped=skipped,
            oversize=oversize,
            algorithm=self._algorithm,
        )


def plan(rows: Rows, packing: Packing, *, seed: int = 0, epoch: int = 0) -> Plan:
    """Plans all rows at once: a pure function of its arguments, the only way to a pack.

    Args:
        rows: the images in order of arrival.
        packing: what a sequence looks like.
        seed, epoch: what random draws are keyed by, together with each row's `ident`.

    Returns:
        The packs, in the order in which they are emitted. Each row is in exactly one, or in `skipped`.

    Raises:
        ValueError: an image smaller than a patch, or an oversize one under `oversize="error"`.

    >>> rows = Rows.of_sizes([64, 32, 32, 64], [64, 64, 32, 32])
    >>> packs = plan(rows, Packing(seq_len=24, patch_size=16))
    >>> [packs.pack(i).row.tolist() for i in range(len(packs))], packs.tokens().tolist()
    ([[0, 1], [2, 3]], [24, 12])
    """
    planner = Planner(packing, seed=seed, epoch=epoch)
    first, last = planner.add(rows), planner.finish()
    return Plan(
        offsets=np.concatenate([first.offsets, first.offsets[-1] + last.offsets[1:]]),
        images=Images.concatenate([first.images, last.images]),
        skipped=first.skipped,
        oversize=first.oversize,
        algorithm=last.algorithm,
    )
