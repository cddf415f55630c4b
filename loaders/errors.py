"""What goes wrong with an image or a batch: the exceptions of the loaders, and the record of a bad image."""

from __future__ import annotations

from dataclasses import dataclass

MAX_PIXELS = 178_956_970  # PIL refuses larger images, too: 0.5 GB as RGB
MAX_BYTES = 4 * MAX_PIXELS  # of the values of an image: as many as those of the largest RGBA image


class BadImage(Exception):
    """An image that cannot be used. A `decode` function raises it for a damaged image.

    Args:
        reason: why the image cannot be used.
        stage: what was being done: "read", "decode", "label", "limit", "extras" or "targets".
        truncated: whether it is a JPEG whose only fault is that it ends early.

    >>> str(BadImage("its window is empty"))
    'its window is empty'
    """

    def __init__(self, reason: str, stage: str = "decode", *, truncated: bool = False) -> None:
        super().__init__(reason)
        self.stage, self.truncated = stage, truncated


@dataclass(frozen=True, kw_only=True, slots=True)
class BadRow:
    """The record of an image that could not be used.

    Attributes:
        row: its row in the index; in a stream, its number in order of arrival.
        key: the key of its sample.
        shard: the shard that holds it, without credentials.
        offset: its first byte in the shard; -1 in a stream.
        page: its position among the pages or frames of its file, from 0.
        stage: "header" (found when the index was made), "limit", "read", "decode", "label" (a .json member that is not
            JSON), "extras" or "targets" (a mask, map, box or point that is missing or does not fit its image).
        reason: why it could not be used.
    """

    row: int
    key: str
    shard: str
    offset: int
    page: int = 0
    stage: str
    reason: str

    def __str__(self) -> str:
        where = self.shard if self.offset < 0 else f"{self.shard} at byte {self.offset}"
        if self.page:
            where += f", page {self.page + 1}"
        return f"{self.key!r} in {where} ({self.stage}): {self.reason}"


class BadDataError(RuntimeError):
    """A bad image under `on_error="raise"`, or more bad images than the policy allows."""


class StallError(TimeoutError):
    """A batch made no progress for `stall_s` seconds."""
