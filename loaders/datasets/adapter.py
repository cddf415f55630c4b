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

    name: str
    image: str
    members: Sequence[str]
    default_label: str | None

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

    def distinct(self, member: str, rows: np.ndarray) -> list[Any] | None:
        """Return the distinct values of a member in `rows`, int64 (m,); None where only reading the rows shows them."""
        ...

    def fingerprint(self) -> str | None:
        """Return a text that changes with the data; None where the data set has none."""
        ...
