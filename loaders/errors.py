"""What is done about bad images: skipped and told, up to a limit, or raised at once."""

from __future__ import annotations

import json
import os
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

MAX_PIXELS = 178_956_970  # where PIL, too, refuses to decode: 0.5 GB as RGB

_WINDOW = 10_000  # images that `max_rate` looks back on
_JUDGED_FROM = 1_000


class BadImage(Exception):
    """An image that cannot be used. A `decode` function raises it for a damaged image.

    Args:
        reason: why the image cannot be used.
        stage: what was being done: "read", "decode", "label", "limit" or "extras".
        truncated: whether it is a JPEG whose only fault is that it ends early.

    >>> str(BadImage("its window is empty"))
    'its window is empty'
    """

    def __init__(self, reason: str, stage: str = "decode", *, truncated: bool = False) -> None:
        super().__init__(reason)
        self.stage, self.truncated = stage, truncated


@dataclass(frozen=True, kw_only=True, slots=True)
class BadRow:
    """One image that could not be used: which, where (`offset` is -1 in a stream), at which stage, and why.

    `stage` is "header" (what the index says of it), "limit", "read", "decode", "label" (a .json
    member that is none) or "extras"; in a stream also "sample"
    (it has no image) and "size" (it is smaller than a patch).
    """

    row: int
    key: str
    shard: str
    offset: int
    stage: str
    reason: str

    def __str__(self) -> str:
        where = self.shard if self.offset < 0 else f"{self.shard} at byte {self.offset}"
        return f"{self.key!r} in {where} ({self.stage}): {self.reason}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorPolicy:
    """What a loader does about images that cannot be used.

    Only bad data are treated so. A shard that is missing, cut short or changed, and an exception in a transform or a
    label function, are always raised.

    Attributes:
        on_error: "skip" leaves a bad image's slots empty and counts it; "raise" raises `BadDataError`.
        max_rate: a larger share of bad ones among the last 10,000 images of this rank stops the run; judged from 1,000
            images on. 1 allows any.
        max_consecutive: so many in a row that turn out to be bad while they are read stop the run. Those that are bad
            by their headers are left out beforehand; of 1,000 rows or more, `max_rate` limits them, too.
        quarantine: a file to which each bad image of each epoch is added, as a line of JSON (epoch, row, key, shard,
            offset, stage, reason); all ranks may share it. None keeps none.
        max_pixels: an image of more, by its header, is a bad one; it is not decoded.
        max_bytes: an encoded image of more is a bad one; it is not read.
        truncated: "skip" treats a JPEG that ends early as bad, "keep" uses what there is of it, the rest grey.
        stall_s: seconds without any progress after which a batch that is waited for raises `StallError`.

    Raises:
        ValueError: a value out of range, or a quarantine file whose folder does not exist.

    >>> ErrorPolicy(max_rate=2)
    Traceback (most recent call last):
        ...
    ValueError: max_rate is 2; it must be from 0 to 1, the share of images that may be bad
    """

    on_error: Literal["skip", "raise"] = "skip"
    max_rate: float = 0.01
    max_consecutive: int = 100
    quarantine: str | os.PathLike[str] | None = None
    max_pixels: int = MAX_PIXELS
    max_bytes: int = 1 << 28
    truncated: Literal["skip", "keep"] = "skip"
    stall_s: float = 300.0

    def beyond(self, pixels: int, nbytes: int) -> str | None:
        """Why an image of so many pixels and bytes is too large, None if it is not."""
        if pixels <= self.max_pixels and nbytes <= self.max_bytes:
            return None
        return (
            f"it has {pixels} pixels in {nbytes} bytes; the limits are max_pixels {self.max_pixels} and max_bytes "
            f"{self.max_bytes}"
        )

    def __post_init__(self) -> None:
        for name, value, known in (
            ("on_error", self.on_error, ("skip", "raise")),
            ("truncated", self.truncated, ("skip", "keep")),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}; it must be {known[0]!r} or {known[1]!r}")
        if not 0 <= self.max_rate <= 1:
            raise ValueError(
                f"max_rate is {self.max_rate}; it must be from 0 to 1, the share of images that may be bad"
            )
        for name, least in (("max_consecutive", 1), ("max_pixels", 1), ("max_bytes", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.max_pixels > MAX_PIXELS:
            raise ValueError(f"max_pixels is {self.max_pixels}; PIL decodes {MAX_PIXELS} at most")
        if not self.stall_s > 0:
            raise ValueError(f"stall_s is {self.stall_s}; it must be above 0 seconds")
        if self.quarantine is not None and Path(self.quarantine).is_dir():
            raise ValueError(f"quarantine is {str(self.quarantine)!r}, a folder; name a file in it")
        if self.quarantine is not None and not Path(self.quarantine).resolve().parent.is_dir():
            raise ValueError(f"quarantine is {str(self.quarantine)!r}, whose folder does not exist; make it first")


class BadDataError(RuntimeError):
    """A bad image under `on_error="raise"`, or more of them than the policy allows."""


class StallError(TimeoutError):
    """A batch in which nothing has moved for `stall_s` seconds."""


class ErrorMonitor:
    """Sees every image of a rank in order, good or bad; writes the quarantine file, and stops the run at the limits."""

    def __init__(self, policy: ErrorPolicy) -> None:
        self._policy = policy
        self._seen = self._in_a_row = 0
        self._bad_at: deque[int] = deque()  # which of the images seen were bad, of the last 10,000

    def quarantine(self, bad: BadRow, epoch: int) -> None:
        """Adds a line to the file."""
        if self._policy.quarantine is None:
            return
        line = json.dumps({"epoch": epoch, **asdict(bad)}).encode() + b"\n"
        file = os.open(self._policy.quarantine, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.write(file, line)  # one write: lines of several ranks do not mix
        finally:
            os.close(file)

    def before_start(self, bad: int, images: int, first: BadRow | None) -> None:
        """Judges the rows that are bad by their headers: how many, of how many, and the first one."""
        if first is None:
            return
        if self._policy.on_error == "raise":
            raise BadDataError(f"bad image {first}; remove it, or skip such images with on_error='skip'")
        if images >= _JUDGED_FROM and bad > self._policy.max_rate * images:
            raise BadDataError(
                f"{bad} of {images} images are bad by their headers, more than max_rate {self._policy.max_rate} "
                f"allows; the first is {first}. Mend the shards, or raise max_rate"
            )

    def record(self, images: int, bad: list[tuple[int, BadRow]]) -> None:
        """Judges the next `images` images, of which those at the given places, ascending, were bad.

        Raises:
            BadDataError: a limit is passed.
        """
        policy, begin = self._policy, self._seen
        last = -1
        for place, row in bad:
            if policy.on_error == "raise":
                raise BadDataError(f"bad image {row}; remove it, or skip such images with on_error='skip'")
            self._in_a_row = self._in_a_row + 1 if place == last + 1 else 1
            last = place
            self._bad_at.append(begin + place)
            if self._in_a_row >= policy.max_consecutive:
                raise BadDataError(
                    f"{self._in_a_row} images in a row were bad, as many as max_consecutive allows; the last is {row}. "
                    "Mend the shards, or raise max_consecutive"
                )
        if last < images - 1:
            self._in_a_row = 0
        self._seen += images
        while self._bad_at and self._bad_at[0] < self._seen - _WINDOW:
            self._bad_at.popleft()
        judged = min(self._seen, _WINDOW)
        if self._seen >= _JUDGED_FROM and len(self._bad_at) > policy.max_rate * judged:
            raise BadDataError(
                f"{len(self._bad_at)} of the last {judged} images were bad, more than max_rate {policy.max_rate} "
                f"allows{f'; the last is {bad[-1][1]}' if bad else ''}. Mend the shards, or raise max_rate"
            )
