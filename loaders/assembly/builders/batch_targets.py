"""`BatchTargets`: the targets of one batch, from the members of its samples to the fields of `PackedBatch`."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from patchnpack.loaders.assembly.context import BatchContext, Samples
from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.targets.objects import Objects, ObjectTarget
from patchnpack.loaders.targets.target import Source, bad_target
from patchnpack.packer import Images
from patchnpack.packer.batch.objects import PackedObjects
from patchnpack.packer.geometry import Geometry

# B packs in the batch, K images in a pack at most, M images in the batch, P patch size

Decoded = dict[str, Any]  # by name of the target


class BatchTargets:
    """Holds the targets of a batch while threads write them, each to the slots of its own image.

    Args:
        context: names the targets and the packing.
        images: the M images of the batch.
        width, height: int32 (M,), upright size of their sources in pixels.
        patch_size: P, in pixels.
    """

    def __init__(
        self, context: BatchContext, images: Images, width: np.ndarray, height: np.ndarray, patch_size: int
    ) -> None:
        targets, self._packing, self._patch_size = context.targets, context.packing, patch_size
        self._targets = targets
        flips = [0] * len(images) if images.flip is None else images.flip.tolist()
        columns = (width, height, *images.box.T, *images.size.T, *images.grid.T)
        rows = zip(*(column.tolist() for column in columns), flips, strict=True)
        self._geometry = [
            Geometry((w, h), (left, top, bw, bh), (sw, sh), (bool(flip & 1), bool(flip & 2)), (gw, gh), patch_size)
            for w, h, left, top, bw, bh, sw, sh, gw, gh, flip in rows
        ]
        self._objects: dict[str, list[Objects | None]] = {
            name: [None] * len(images) for name, target in targets.items() if isinstance(target, ObjectTarget)
        }
        self._dense: dict[str, Any] = {name: target for name, target in targets.items() if name not in self._objects}
        self._arrays: dict[str, np.ndarray] = {}
        self._values: list[Decoded] = [{}] * len(images)

    def lay_out(self, slots: int) -> None:
        """Make the memory of the dense targets, for this many slots, with nothing but padding."""
        for name, target in self._dense.items():
            self._arrays[name] = np.full((slots, *target.shape(self._patch_size)), target.fill, target.dtype)

    def decoded(self, i: int, samples: Samples, orientation: int) -> Decoded:
        """Return the targets of the file of image i. Raises BadImage."""
        source = self._source(i, orientation)
        member = functools.cache(functools.partial(samples.member, i))

        def member_or_file(name: str) -> Any:
            value = member(name)
            return _read_file(samples, i, value) if isinstance(value, str) else value

        decoded = {}
        for name, target in self._targets.items():
            try:
                decoded[name] = target.decoded(member_or_file if name in self._dense else member, source)
            except BadImage as error:
                raise bad_target(f"target {name!r}: {error}") from error
        return decoded

    def place(self, i: int, decoded: Decoded, orientation: int) -> Decoded:
        """Return the targets of image i as it is sized and mirrored; `write` uses them."""
        source, filter = self._source(i, orientation), self._packing.interpolation
        self._values[i] = {
            name: target.placed(decoded[name], source, self._geometry[i], filter)
            for name, target in self._targets.items()
        }
        return self._values[i]

    def values(self, i: int) -> Decoded:
        """Return what `place` returned for image i."""
        return self._values[i]

    def change(self, i: int, returned: object) -> Any:
        """Take the targets that a transform returned with image i, and return the image.

        Raises:
            ValueError: it returned no (image, targets), or a target is missing, or of another shape or type.
        """
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise ValueError(
                f"transform takes (image, rng, targets) and returned a {type(returned).__name__}; it must return "
                "(image, targets)"
            )
        (image, values), before = returned, self._values[i]
        if not isinstance(values, Mapping) or set(values) != set(before):
            found = sorted(values) if isinstance(values, Mapping) else type(values).__name__
            raise ValueError(f"transform returned the targets {found}; it must return the dict it was given")
        for name, value in values.items():
            old = before[name]
            if isinstance(old, Objects):
                if not isinstance(value, Objects):
                    raise ValueError(f"transform returned a {type(value).__name__} for target {name!r}, not Objects")
            elif not isinstance(value, np.ndarray) or (value.shape, value.dtype) != (old.shape, old.dtype):
                found = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
                raise ValueError(
                    f"transform returned {found} for target {name!r}, which is {old.dtype} {old.shape}; it must keep "
                    "type and shape"
                )
        self._values[i] = dict(values)
        return image

    def write(self, i: int, coords: np.ndarray, first: int, keep: int) -> None:
        """Write the targets of image i to its slots, whose positions in the grid are in `coords` (n, 2)."""
        geometry, values = self._geometry[i], self._values[i]
        for name, target in self._dense.items():
            target.write(values[name], geometry, coords, self._arrays[name], first, keep)
        for name, objects in self._objects.items():
            finish: Any = self._targets[name]
            objects[i] = finish.finished(values[name], geometry)
        self._values[i] = {}

    def clear(self, slots: slice) -> None:
        """Turn the slots of a failed image into padding."""
        for name, array in self._arrays.items():
            array[slots] = self._dense[name].fill

    def fields(self, kept: Sequence[int], counts: Sequence[int]) -> dict[str, Any]:
        """Return the fields of the batch.

        Args:
            kept: the images of the batch that are used, pack by pack.
            counts: how many these are in each of the B packs.
        """
        shape = len(counts), self._packing.max_images
        return {
            "targets": {
                name: self._packed(self._objects[name], target, kept, counts, shape)
                if isinstance(target, ObjectTarget)
                else torch.from_numpy(self._arrays[name].reshape(shape[0], -1, *self._arrays[name].shape[1:]))
                for name, target in self._targets.items()
            },
            "target_fill": {name: target.fill for name, target in self._dense.items()},
        }

    def _packed(
        self,
        objects: list[Objects | None],
        target: ObjectTarget,
        kept: Sequence[int],
        counts: Sequence[int],
        shape: tuple[int, int],
    ) -> PackedObjects:
        each = [found for i in kept if (found := objects[i]) is not None]
        assert len(each) == len(kept), "an image without its objects"
        counts_list, column = list(map(len, each)), np.zeros(shape, np.int32)
        for b, (begin, count) in enumerate(zip(accumulate(counts, initial=0), counts, strict=False)):
            column[b, :count] = counts_list[begin : begin + count]

        def joined(name: str, dtype: Any, *sides: int) -> torch.Tensor:
            return torch.from_numpy(
                np.concatenate([np.empty((0, *sides), dtype), *(getattr(one, name) for one in each)]).astype(dtype)
            )

        places: dict[str, Any] = (
            {"boxes": joined("boxes", np.float32, 4)}
            if target.has_boxes
            else {
                "points": joined("points", np.float32, 2),
                "visible": joined("visible", np.bool_),
                "lengths": joined("lengths", np.int64),
            }
        )
        return PackedObjects(
            labels=joined("labels", np.int64),
            index=joined("index", np.int64),
            counts=torch.from_numpy(column),
            counts_list=counts_list,
            outlines=target.has_outlines,
            **places,
        )

    def _source(self, i: int, orientation: int) -> Source:
        return Source(*self._geometry[i].source, orientation)


def _read_file(samples: Samples, i: int, path: str) -> Any:
    """Return the file that a mask or a map names, or the text itself, which is no file where none are named."""
    try:
        data = samples.file(i, path)
    except OSError as error:
        raise bad_target(f"its file cannot be read: {error}") from error
    return path if data is None else data
