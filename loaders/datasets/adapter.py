"""`Adapter`: the contract between the loader and one kind of data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

# n rows

Picture = bytes | Image.Image | np.ndarray  # encoded bytes, a PIL image, or uint8 (height, width, C)


class Adapter(Protocol):
    """A data set seen as n numbered rows, each with images and other members.

    Attributes:
        name: what errors call the data set.
        image: the column or member that holds the image; "" where items are images, pairs or files.
        members: names of the members of a row, as far as they are known before rows are read.
        default_label: the member that is the label without `label=`; None where the label must be named.
    """

    @property
    def name(self) -> str: ...
    @property
    def image(self) -> str: ...
    @property
    def members(self) -> Sequence[str]: ...
    @property
    def default_label(self) -> str | None: ...

    def __len__(self) -> int: ...

    def counts(self) -> np.ndarray | None:
        """Return the number of images per row, int64 (n,); None where each row is one image."""
        ...

    def read(self, row: int, number: int) -> tuple[Picture, Mapping[str, Any]]:
        """Return image `number` of a row, and the row's members. Any thread calls this.

        Raises:
            BadImage: the image is missing or damaged.
            OSError: the file of the image cannot be read.
            RuntimeError: the data set raised an error, which is the cause of this one.
            ValueError: the row is not an item that the loader can use.
        """
        ...

    def members_of(self, row: int) -> Mapping[str, Any]:
        """Return the members of a row, without its image where this saves time."""
        ...

    def classes_of(self, member: str) -> Mapping[str, int] | None:
        """Return the index of each class name of a member; None where the data set names no classes."""
        ...

    def coded(self, member: str, rows: np.ndarray) -> tuple[np.ndarray, list[Any]] | None:
        """Return a member of `rows`, int64 (m,), as codes and the values that they stand for.

        Returns:
            codes, int64 (m,): positions in the list of distinct values, -1 where a row has no value. None where only
            reading the rows shows the values, or where they are neither texts nor whole numbers.
        """
        ...

    def fingerprint(self) -> str | None:
        """Return a text that changes with the data; None where the data set has none."""
        ...
