"""`PackedObjects`: the boxes, points and labels of objects in the images of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate, compress, pairwise
from typing import Any

import numpy as np
import torch

from patchnpack.packer.text import counted

# B packs, K maximum images per pack, N images; n objects, m points of all images

_OF_OBJECTS = ("boxes", "lengths", "labels", "index")


@dataclass(eq=False, kw_only=True, slots=True, repr=False)
class PackedObjects:
    """The objects of all images of a batch, image by image, in pixels of the packed images.

    In a packed image, (0, 0) is the upper left corner of its first patch; pixel i covers [i, i + 1).

    ```
    counts  2 0 1     objects of the three images of a pack
    labels  5 7 3     n = 3: two of the first image, one of the third
    ```

    Attributes:
        boxes: float32 (n, 4), (left, top, right, bottom); None for objects without boxes.
        points: float32 (m, 2), the points of all objects, object by object; None for objects without points.
        visible: bool (m,), points inside the packed image; None without points.
        lengths: int64 (n,), number of points of each object; None without points.
        labels: int64 (n,), class of each object; -100 without one.
        index: int64 (n,), place of each object in its file: those that a crop left out are missing.
        counts: int32 (B, K), objects of each image; 0 where there is no image.
        counts_list: objects of each of the N images, as Python ints.
        points_list: points of each of the N images, as Python ints; None without points.
        outlines: whether the points of an object are its outline, in order, as those of `Polygons`.
    """

    labels: torch.Tensor
    index: torch.Tensor
    counts: torch.Tensor
    counts_list: list[int]
    boxes: torch.Tensor | None = None
    points: torch.Tensor | None = None
    visible: torch.Tensor | None = None
    lengths: torch.Tensor | None = None
    points_list: list[int] | None = field(default=None)  # counted if None
    outlines: bool = False

    def __post_init__(self) -> None:
        n = sum(self.counts_list)
        sizes = {name: len(value) for name in _OF_OBJECTS if (value := getattr(self, name)) is not None}
        assert set(sizes.values()) == {n}, f"{n} objects in counts_list, and {sizes}"
        assert (self.points is None) == (self.visible is None) == (self.lengths is None)
        if self.lengths is not None and self.points_list is None:
            ends = np.cumsum([0, *self.lengths.tolist()])
            self.points_list = np.diff(ends[np.cumsum([0, *self.counts_list])]).tolist()

    def __len__(self) -> int:
        """Number of objects in the batch; a host int."""
        return len(self.labels)

    def __repr__(self) -> str:
        has = [name for name in ("boxes", "points") if getattr(self, name) is not None]
        return f"PackedObjects({counted(len(self), 'object')} in {counted(len(self.counts_list), 'image')}: {has})"

    def of(self, image: int) -> PackedObjects:
        """The objects of one image, by its number in the flat order of images, as those of a batch of one image.

        >>> objects = PackedObjects(
        ...     boxes=torch.arange(12.0).view(3, 4),
        ...     labels=torch.tensor([5, 7, 3]),
        ...     index=torch.tensor([0, 2, 0]),
        ...     counts=torch.tensor([[2, 0, 1]], dtype=torch.int32),
        ...     counts_list=[2, 0, 1],
        ... )
        >>> objects.of(0).labels.tolist(), objects.of(2).boxes.tolist()
        ([5, 7], [[8.0, 9.0, 10.0, 11.0]])
        """
        image = range(len(self.counts_list))[image]
        kept = np.arange(len(self.counts_list)) == image
        counts = torch.full((1, 1), self.counts_list[image], dtype=torch.int32, device=self.counts.device)
        return self.select(kept, counts)

    def map(self, move: Callable[[torch.Tensor], torch.Tensor]) -> PackedObjects:
        """The same objects with each tensor as `move` returns it."""
        tensors = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), torch.Tensor)}
        moved: dict[str, Any] = {name: move(tensor) for name, tensor in tensors.items()}
        return replace(self, **moved)

    def select(self, kept: np.ndarray, counts: torch.Tensor) -> PackedObjects:
        """The objects of the images where `kept`, bool (N,), is True; `counts` is the new field of this name."""
        values: dict[str, Any] = {}
        for names, per_image in ((_OF_OBJECTS, self.counts_list), (("points", "visible"), self.points_list)):
            for name in names:
                if (value := getattr(self, name)) is not None:
                    values[name] = _taken(value, per_image or [], kept)
        return PackedObjects(
            **values,
            counts=counts,
            counts_list=list(compress(self.counts_list, kept)),
            points_list=None if self.points_list is None else list(compress(self.points_list, kept)),
            outlines=self.outlines,
        )


def _taken(values: torch.Tensor, per_image: Sequence[int], kept: np.ndarray) -> torch.Tensor:
    """The rows of `values` of the images where `kept`; without a copy if these follow each other."""
    ranges = list(pairwise(accumulate(per_image, initial=0)))
    images = np.flatnonzero(kept)
    if len(images) and images[-1] - images[0] + 1 == len(images):
        return values[ranges[images[0]][0] : ranges[images[-1]][1]]
    rows = np.concatenate([np.zeros(0, np.int64), *(np.arange(*ranges[i]) for i in images)])
    return values[torch.from_numpy(rows).to(values.device)]
