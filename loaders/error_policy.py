"""Bad images: the policy that skips, records or raises them, and the monitor that stops a run at its limits."""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from patchnpack.loaders.errors import MAX_PIXELS, BadDataError, BadRow
from patchnpack.packer.checks import check_choice, check_real, check_whole, shown

_WINDOW = 10_000  # images over which `max_rate` is measured
_JUDGED_FROM = 1_000  # images before `max_rate` is first checked

OnBad = Literal["sample", "image"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorPolicy:
    """What a loader does about images that cannot be used.

    The policy covers bad data only. A missing, truncated or changed shard and an exception in a transform or a label
    function are always raised.

    Attributes:
        on_error: "skip" leaves a bad image's slots empty and counts it; "raise" raises `BadDataError`.
        on_bad: of samples that hold several images, what a bad one leaves out: "sample" the whole sample, whose other
            images are counted as left out; "image" only itself, and the sample's others keep their numbers (`frames`).
            A file that cannot be read leaves out all its pages or frames, a label that cannot be read its sample.
        max_rate: the largest share of bad images among the last 10,000 images of this rank, with those that are left
            out with a bad one; a larger one stops the run. Checked from 1,000 images on; 1 allows any share.
        max_consecutive: this many bad images in a row, without a usable one between, stop the run. Images with bad
            headers do not count, since they are left out beforehand; `max_rate` limits them where there are 1,000 rows
            or more.
        quarantine: file to which each bad image of each epoch is appended as a line of JSON (epoch, row, key, shard,
            offset, page, stage, reason); all ranks may share it. None keeps no file.
        max_pixels: an image with more pixels, by its header, is bad and is not decoded.
        max_bytes: an encoded image with more bytes is bad and is not read.
        truncated: "skip" treats a JPEG that ends early as bad; "keep" uses the part that exists and fills the rest with
            grey.
        stall_s: seconds without progress after which waiting for a batch raises `StallError`.

    Raises:
        ValueError: a value is out of range, or the folder of the quarantine file does not exist.

    >>> ErrorPolicy(max_rate=2)
    Traceback (most recent call last):
        ...
    ValueError: max_rate is 2; it must be from 0 to 1, the share of images that may be bad
    """

    on_error: Literal["skip", "raise"] = "skip"
    on_bad: OnBad = "sample"
    max_rate: float = 0.01
    max_consecutive: int = 100
    quarantine: str | os.PathLike[str] | None = None
    max_pixels: int = MAX_PIXELS
    max_bytes: int = 1 << 28
    truncated: Literal["skip", "keep"] = "skip"
    stall_s: float = 300.0

    def beyond(self, pixels: int, nbytes: int) -> str | None:
        """Return why an image with this many pixels and bytes is too large; None if it is not."""
        if pixels <= self.max_pixels and nbytes <= self.max_bytes:
            return None
        return (
            f"it has {pixels} pixels in {nbytes} bytes; the limits are max_pixels {self.max_pixels} and max_bytes "
            f"{self.max_bytes}"
        )

    def __post_init__(self) -> None:
        check_choice("on_error", self.on_error, ("skip", "raise"))
        check_choice("on_bad", self.on_bad, get_args(OnBad))
        check_choice("truncated", self.truncated, ("skip", "keep"))
        share = "from 0 to 1, the share of images that may be bad"
        check_real("max_rate", self.max_rate, share)
        if not 0 <= self.max_rate <= 1:
            raise ValueError(f"max_rate is {self.max_rate}; it must be {share}")
        for name in ("max_consecutive", "max_pixels", "max_bytes"):
            if getattr(self, name) != math.inf:  # no limit
                check_whole(name, getattr(self, name))
        if self.max_pixels > MAX_PIXELS:
            raise ValueError(
                f"max_pixels is {self.max_pixels}; it must be at most {MAX_PIXELS}, the most that PIL decodes"
            )
        check_real("stall_s", self.stall_s, "a number of seconds above 0")
        if not self.stall_s > 0:
            raise ValueError(f"stall_s is {self.stall_s}; it must be above 0 seconds")
        if self.quarantine is not None and not isinstance(self.quarantine, str | os.PathLike):
            raise ValueError(f"quarantine is {shown(self.quarantine)}; give the path of a file, or None for no file")
        if self.quarantine is not None and Path(self.quarantine).is_dir():
            raise ValueError(f"quarantine is {str(self.quarantine)!r}, which is a folder; name a file in it")
        if self.quarantine is not None and not Path(self.quarantine).resolve().parent.is_dir():
            raise ValueError(f"quarantine is {str(self.quarantine)!r}, whose folder does not exist; create it first")


class ErrorMonitor:
    """Judges every image of a rank in order, writes the quarantine file, and stops the run at the limits.

    Loaders and streams use the same monitor.
    """

    def __init__(self, policy: ErrorPolicy) -> None:
        self._policy = policy
        self._judged = self._in_a_row = 0
        self._lost_at: deque[int] = deque()  # those lost among the last 10,000 images, by number
        self._lost = "bad"  # what became of them

    def quarantine(self, bad: BadRow, epoch: int) -> None:
        """Append a bad image to the quarantine file."""
        if self._policy.quarantine is None:
            return
        line = json.dumps({"epoch": epoch, **asdict(bad)}).encode() + b"\n"
        file = os.open(self._policy.quarantine, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.write(file, line)  # a single write, so that the lines of several ranks do not mix
        finally:
            os.close(file)

    def before_start(self, lost: int, images: int, first: BadRow | None, what: str = "have bad headers") -> None:
        """Judge the rows with bad headers before any image is read.

        Args:
            lost: rows with bad headers, and those left out with one of their sample.
            images: all rows that would be used, the lost ones included.
            first: the first bad row; None if there is none.
            what: what is wrong with the lost ones.

        Raises:
            BadDataError: any bad row under `on_error="raise"`, or more than `max_rate` of 1,000 or more rows.
        """
        if first is None:
            return
        if self._policy.on_error == "raise":
            raise BadDataError(f"bad image {first}; remove it, or skip such images with on_error='skip'")
        if images >= _JUDGED_FROM and lost > self._policy.max_rate * images:
            raise BadDataError(
                f"{lost} of {images} images {what}, more than max_rate {self._policy.max_rate} "
                f"allows; the first is {first}. Fix or replace the images, or raise max_rate"
            )

    def judge_all(self, images: int, bad: Sequence[BadRow], which: str) -> None:
        """Judge `images` images together, whatever their order; `which` names them: "of a part".

        Raises:
            BadDataError: a bad image under `on_error="raise"`, or more than `max_rate` of 1,000 or more images.
        """
        policy = self._policy
        if bad and policy.on_error == "raise":
            raise BadDataError(f"bad image {bad[0]}; remove it, or skip such images with on_error='skip'")
        if images >= _JUDGED_FROM and len(bad) > policy.max_rate * images:
            raise BadDataError(
                f"{len(bad)} of the {images} images {which} were bad, more than max_rate {policy.max_rate} allows; the "
                f"last is {bad[-1]}. Fix or replace the images, or raise max_rate"
            )

    def record(self, images: int, bad: list[tuple[int, BadRow]], lost: Sequence[int] | None = None) -> None:
        """Judge the next images in order.

        Args:
            images: how many images these are.
            bad: the bad ones, each with its number among them, ascending.
            lost: numbers of the bad ones and of those left out with them, ascending; None if only the bad ones are.

        Raises:
            BadDataError: any bad image under `on_error="raise"`, or a limit is reached.
        """
        policy, begin, records = self._policy, self._judged, dict(bad)
        lost = list(records) if lost is None else lost
        if len(lost) > len(bad):
            self._lost = "bad or left out with a bad one of their sample"
        last = -1
        for number in lost:
            if number != last + 1:
                self._in_a_row = 0
            last = number
            self._lost_at.append(begin + number)
            row = records.get(number)
            if row is None:
                continue
            if policy.on_error == "raise":
                raise BadDataError(f"bad image {row}; remove it, or skip such images with on_error='skip'")
            self._in_a_row += 1
            if self._in_a_row >= policy.max_consecutive:
                raise BadDataError(
                    f"{self._in_a_row} images in a row were bad, the limit that max_consecutive sets; the last is "
                    f"{row}. Fix or replace the images, or raise max_consecutive"
                )
        if last < images - 1:
            self._in_a_row = 0
        self._judged += images
        while self._lost_at and self._lost_at[0] < self._judged - _WINDOW:
            self._lost_at.popleft()
        window = min(self._judged, _WINDOW)
        if self._judged >= _JUDGED_FROM and len(self._lost_at) > policy.max_rate * window:
            raise BadDataError(
                f"{len(self._lost_at)} of the last {window} images were {self._lost}, more than max_rate "
                f"{policy.max_rate} allows{f'; the last is {bad[-1][1]}' if bad else ''}. Fix or replace the images, "
                "or raise max_rate"
            )
