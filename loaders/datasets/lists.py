"""Data sets of plain objects whose items hold lists of images."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np

from patchnpack.loaders.datasets.adapter import Picture
from patchnpack.loaders.datasets.objects import IMAGE, PROBE, ObjectAdapter
from patchnpack.loaders.datasets.pictures import as_picture, holds_several, is_list_of_pictures, is_picture
from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.process import cpu_share

# n rows

_BLOCK = 64  # items that a thread counts before it takes others


class ListAdapter(ObjectAdapter):
    """Any object with `__len__` and `__getitem__` whose items may hold lists of images; see `Adapter`."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_read"}

    def _renew_lock(self) -> None:
        super()._renew_lock()
        self._read = threading.local()  # the row that each thread has read last, and its members

    @staticmethod
    def holds_image(value: Any) -> bool:
        """Return whether a member of an item is an image, or a list of images."""
        return is_picture(value) or is_list_of_pictures(value)

    @staticmethod
    def _is_pair(item: Any) -> bool:
        return ObjectAdapter._is_pair(item) and not ListAdapter._is_images(item)

    @staticmethod
    def _is_images(item: Any) -> bool:
        # A list of two images is no pair, a tuple such as (image, mask) is one.
        return isinstance(item, list) and (not item or is_list_of_pictures(item))

    def counts(self) -> np.ndarray | None:
        """Return the lengths of the lists of images, 1 for an item with an image of its own. Reads all items."""
        n = len(self)
        counts = np.ones(n, np.int64)

        def count(first: int) -> None:
            for row in range(first, min(first + _BLOCK, n)):
                with suppress(BadImage):  # reported when its size is read
                    images = self._images(row)
                    counts[row] = len(images) if holds_several(images) else 1

        with ThreadPoolExecutor(cpu_share(), "patchnpack-counts") as pool:
            list(pool.map(count, range(0, n, _BLOCK)))
        return counts if (counts != 1).any() else None

    def read(self, row: int, number: int) -> tuple[Picture, Mapping[str, Any]]:
        """Return image `number` of an item, and its members. A thread reads neighbouring images of an item once."""
        last = getattr(self._read, "item", None)
        members = last[1] if number and last is not None and last[0] == row else self.members_of(row)
        self._read.item = row, members
        images: Any = members.get(self.image or IMAGE)
        if not holds_several(images):
            return self.picture(row, members), members
        if number >= len(images):
            raise ValueError(
                f"row {row} of {self.name} has {len(images)} images, and had more when they were counted; a data set "
                "must return the same images each time"
            )
        return as_picture(images[number], f"image {number} of row {row} of {self.name}"), members

    def _first(self) -> Any:
        """Return the first item that has an image, or else the first that is not damaged: lists may be empty."""
        first = None
        for row in range(min(len(self), PROBE)):
            with suppress(BadImage):
                item = self._item(row)
                if not isinstance(item, Mapping) or any(map(self.holds_image, item.values())):
                    return item
                first = item if first is None else first
        return first

    def _images(self, row: int) -> Any:
        return self.members_of(row).get(self.image or IMAGE)
