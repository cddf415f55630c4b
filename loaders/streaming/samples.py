"""Samples of a stream: size, label and other members as a sample arrives, its pixels once its pack is planned."""

from __future__ import annotations

import itertools
import logging
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from patchnpack.loaders.assembly.samples import extra
from patchnpack.loaders.error_policy import ErrorPolicy
from patchnpack.loaders.errors import BadImage, BadRow
from patchnpack.loaders.imaging.pages import Pages
from patchnpack.loaders.imaging.user_decode import UserFormats, find_format, named
from patchnpack.loaders.imaging.values.bands import BandRequest
from patchnpack.loaders.index.samples.grouping import UNREAD_PAGES
from patchnpack.loaders.index.scanner import extensions_of
from patchnpack.loaders.labels.label_rule import Classes, Label, LabelRule
from patchnpack.loaders.labels.labels import LabelKind
from patchnpack.loaders.remote.addresses import redact
from patchnpack.loaders.shards.sample_rule import SampleRule, is_by_members
from patchnpack.loaders.streaming.pictures import (
    Picture,
    PictureReader,
    Run,
    image_members,
    in_picture,
    pictures_in,
    stage_of,
)

_log = logging.getLogger("patchnpack")

PROBE = 1000  # samples among which each member that was asked for must occur
_STREAM = "the stream"  # the shard of a sample that names none


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample that waits for its pack: everything but its pixels is known.

    Attributes:
        row: the number of the sample in order of arrival, from 0.
        key: its key, or the row as text where it has none.
        shard: the shard that the sample names, or "the stream".
        pictures: its files and decoded pictures: encoded bytes, PIL images or arrays.
        runs: sizes of its images, in order.
        label: an int, an array, or None.
        extras: its other members, in the order of `extras`.
        bad: the pictures that are left out of it.
    """

    row: int
    key: str
    shard: str
    pictures: Sequence[Picture]
    runs: Sequence[Run]
    label: int | np.ndarray | None
    extras: tuple[Any, ...]
    bad: Sequence[BadRow] = ()

    @property
    def num_images(self) -> int:
        """The number of its images."""
        return sum(run.frames for run in self.runs)

    def run_of(self, number: int) -> Run:
        """Return the run that holds image `number` of the sample."""
        runs = self.runs
        return runs[0] if len(runs) == 1 else runs[bisect_right(runs, number, key=attrgetter("number")) - 1]

    def bad_row(self, stage: str, reason: str, number: int) -> BadRow:
        """Return the record of image `number` of this sample, which could not be used."""
        run = self.run_of(number)
        if len(self.pictures) > 1:
            reason = in_picture(run.file, reason)
        return bad_row(self.row, self.key, self.shard, stage, reason, run.page + number - run.number)


@dataclass(frozen=True, slots=True)
class BadSample:
    """A sample of which no image is used, since images of it are bad.

    Attributes:
        row, key: as of `Sample`.
        bad: the bad images, at least one.
        left_out: its other images.
    """

    row: int
    key: str
    bad: Sequence[BadRow]
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class NoImage:
    """A sample without an image; `row` is its number in order of arrival."""

    row: int


class SampleReader:
    """Reads samples as they arrive: dicts of members or (image, label) pairs.

    Args:
        image, label, classes, extras, errors, pages: those of `pack_stream`.
        any_kind: accept encoded images of every kind, since a `decode` function will get them.
        rule: which images are one sample; None for one image each.
        bands: what the packing asks for beyond 8-bit colours.
        formats: the user's formats.
    """

    def __init__(
        self,
        image: str,
        label: Label,
        classes: Classes,
        extras: Sequence[str],
        errors: ErrorPolicy,
        any_kind: bool = False,
        pages: Pages = "first",
        rule: SampleRule | None = None,
        bands: BandRequest | None = None,
        formats: UserFormats = (),
    ) -> None:
        self.all_pages = is_by_members(rule)
        self._keeps_others = errors.on_bad == "image"
        self._pictures = PictureReader(errors, any_kind, pages, all_pages=self.all_pages, bands=bands, formats=formats)
        self._formats = formats
        self._asked = [name.lstrip(".") for name in extras]
        self.extras = [name.lower() for name in self._asked]
        extensions_of(image)  # refuses an image without extensions
        self._images = [name for each in image.split(";") if (name := each.strip().lstrip("."))]
        self._label, self._rule = label, LabelRule(label, classes)
        self._kind: LabelKind | None = None  # known from the first label on
        self._arrived, self._members, self._warned = 0, "", False
        self._warned_of_pages = False
        self._unseen = {"image", *self._asked} | ({"label"} if label is not None else set())

    def read(self, sample: Any) -> Sample | BadSample | NoImage:
        """Read the next sample; return it, or why none of its images is used.

        Raises:
            ValueError: the sample is neither a dict nor a pair, its image has an unsupported type, or its label is
                neither a whole number nor a known class. Also if none of the first 1,000 samples has an image, a label
                or a member that was asked for.
        """
        row = self._arrived
        self._arrived += 1
        if isinstance(sample, Mapping):
            read = self._read_dict(row, sample)
        elif isinstance(sample, tuple | list) and len(sample) == 2:
            read = self._read_pair(row, *sample)
        else:
            size = f" of {len(sample)}" if isinstance(sample, tuple | list) else ""
            raise ValueError(
                f"sample {row} of the stream is a {type(sample).__name__}{size}; each must be a dict of members, as "
                "webdataset yields them, or a pair (image, label)"
            )
        if self._unseen and self._arrived == PROBE:
            self._refuse()
        return read

    def begin(self, row: int) -> None:
        """Set the row of the next sample, for a stream that resumes."""
        self._arrived = row

    def end(self) -> None:
        """Mark the end of the stream. Raises ValueError if no sample had a member that was asked for."""
        if self._unseen and self._arrived:
            self._refuse()

    def labels(self) -> LabelKind:
        """Return the kind of label, fixed from here on: classes unless a target has arrived."""
        if self._kind is None:
            self._kind = LabelKind(())
        return self._kind

    def _refuse(self) -> None:
        if "image" in self._unseen:
            self._unseen = {"image"}  # samples without an image are not searched for other members
        asked = {"image": f"image={';'.join(self._images)!r}", "label": f"label={self._label!r}"}
        wanted = ", ".join(asked.get(name, f"extras={name!r}") for name in sorted(self._unseen))
        raise ValueError(
            f"none of the first {self._arrived} samples has what {wanted} asks for; the members of the first are "
            f"{self._members}: name one of them, or leave the option out"
        )

    def _read_dict(self, row: int, sample: Mapping[str, Any]) -> Sample | BadSample | NoImage:
        key, shard = str(sample.get("__key__", row)), str(sample.get("__url__", _STREAM))
        if not self._members:
            self._members = _listed(sample)
        if self.all_pages:
            images = [
                self._named(each, name)
                for name in image_members(sample, self._images)
                for each in pictures_in(sample[name])
            ]
        else:
            found = ((name, image) for name in self._images if (image := _member(sample, name)) is not None)
            images = [self._named(image, name) for name, image in itertools.islice(found, 1)]
        if not images:
            return self._no_image(row, key, shard, f"its members are {_listed(sample) or 'all None'}, and image=")
        self._unseen.discard("image")
        return self._sample(
            row,
            key,
            shard,
            images,
            lambda: tuple(self._extra(sample, name) for name in self._asked),
            lambda name: _member(sample, name),
            lambda: dict(sample),
        )

    def _named(self, image: Any, member: str) -> Any:
        """The image, with the name of its member where a user's reader reads it."""
        is_own = isinstance(image, bytes | bytearray | memoryview) and find_format(self._formats, member) is not None
        return named(bytes(image), member) if is_own else image

    def _no_image(self, row: int, key: str, shard: str, why: str) -> NoImage:
        """Log the first sample without an image."""
        if not self._warned:
            self._warned = True
            _log.warning(
                "sample %r in %s has no image (%s%r) and is left out; stats()['without_image'] counts such samples",
                *(key, redact(shard), why, ";".join(self._images)),
            )
        return NoImage(row)

    def _read_pair(self, row: int, image: Any, label: Any) -> Sample | BadSample | NoImage:
        if self._label is not None or self.extras:
            raise ValueError(
                f"sample {row} of the stream is a pair, whose second item is its label; label={self._label!r} and "
                f"extras={self.extras!r} name members of a dict: leave them out, or pass dicts"
            )
        images = [] if image is None else list(pictures_in(image)) if self.all_pages else [image]
        if not row:
            self._members = "" if images else "those of a pair whose image is None"
        if not images:
            return self._no_image(row, str(row), _STREAM, "the first item of its pair is None, and image=")
        self._unseen.clear()
        return self._sample(row, str(row), _STREAM, images, lambda: (), lambda _: label, dict)

    def _sample(
        self,
        row: int,
        key: str,
        shard: str,
        images: Sequence[Any],
        read_extras: Callable[[], tuple[Any, ...]],
        read: Callable[[str], Any],
        read_all: Callable[[], dict[str, Any]],
    ) -> Sample | BadSample:
        """Return the sample of some images, whose label `LabelRule.of_sample` gets from `read` and `read_all`."""
        pictures: Sequence[Picture] = ()
        runs: Sequence[Run] = ()
        bad: Sequence[BadRow] = ()
        try:
            if self.all_pages:
                pictures, runs, reasons = self._pictures.all(images, key)
                bad = [bad_row(row, key, shard, *why) for why in reasons]
                if bad and not (runs and self._keeps_others):
                    return BadSample(row, key, bad, sum(run.frames for run in runs))
                if not self._warned_of_pages and any(run.header.pages != 1 for run in runs):
                    self._warned_of_pages = True
                    _log.warning(UNREAD_PAGES, "files of the stream have", key, redact(shard))
            else:
                pictures, runs = self._pictures.one(images[0], key)
            extras = read_extras()
            label = self._rule.of_sample(read, read_all, lambda: f"the sample with key {key!r}")
        except BadImage as error:
            lost = max(0, sum(run.frames for run in runs) - 1)
            return BadSample(row, key, [*bad, bad_row(row, key, shard, stage_of(error), str(error))], lost)
        if label is not None:
            self._unseen.discard("label")
            if self._kind is None:
                self._kind = LabelKind(np.shape(label))
            self._kind.check(label, key)
        return Sample(row, key, shard, pictures, runs, label, extras, bad)

    def _extra(self, sample: Mapping[str, Any], name: str) -> Any:
        data = _member(sample, name)
        if data is not None:
            self._unseen.discard(name)
        return extra(name, name.lower(), data) if isinstance(data, bytes) else data


def bad_row(row: int, key: str, shard: str, stage: str, reason: str, page: int = 0) -> BadRow:
    """Return the record of an image of a sample, which could not be used."""
    return BadRow(row=row, key=key, shard=shard, offset=-1, stage=stage, reason=reason, page=page)


def _member(sample: Mapping[str, Any], name: str) -> Any:
    """Return a member of a sample: of this name, else of this name in another case. None if it is absent or None.

    Raises:
        ValueError: several members have this name in other cases.
    """
    if (value := sample.get(name)) is not None:
        return value
    lower = name.lower()
    found = [other for other in sample if str(other).lower() == lower]
    found = [other for other in found if sample[other] is not None]
    if len(found) > 1:
        raise ValueError(
            f"the sample with key {sample.get('__key__')!r} has no {name!r} but {' and '.join(map(repr, found))}; name "
            "one of them"
        )
    return sample[found[0]] if found else None


def _listed(sample: Mapping[str, Any], limit: int = 10) -> str:
    names = [str(name) for name, value in sample.items() if value is not None and not str(name).startswith("__")]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
