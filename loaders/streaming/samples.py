"""Samples of a stream: size, label and other members as a sample arrives, its pixels once its pack is planned."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from patchnpack.loaders.assembly.context import BatchContext
from patchnpack.loaders.assembly.samples import extra, repeats
from patchnpack.loaders.datasets.pictures import is_stored, stored_bytes
from patchnpack.loaders.error_policy import ErrorPolicy
from patchnpack.loaders.errors import BadImage, BadRow
from patchnpack.loaders.imaging.bands import BandRequest
from patchnpack.loaders.imaging.decode_pages import Wanted
from patchnpack.loaders.imaging.header import Header, UnsupportedImage, image_header, read_header
from patchnpack.loaders.imaging.pages import Pages, refusal_of_pages
from patchnpack.loaders.imaging.warnings import Warn
from patchnpack.loaders.index.scanner import extensions_of
from patchnpack.loaders.labels.label_rule import Classes, Label, LabelRule
from patchnpack.loaders.labels.labels import LabelKind
from patchnpack.loaders.remote.addresses import redact
from patchnpack.packer import Rows

# M images

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
        image: encoded bytes, a PIL image or an array.
        header: size and orientation of the image.
        label: an int, an array, or None.
        extras: its other members, in the order of `extras`.
    """

    row: int
    key: str
    shard: str
    image: bytes | Image.Image | np.ndarray
    header: Header
    label: int | np.ndarray | None
    extras: tuple[Any, ...]

    def bad_row(self, stage: str, reason: str) -> BadRow:
        """Return the record of this sample, which could not be used."""
        return _bad_row(self.row, self.key, self.shard, stage, reason)


@dataclass(frozen=True, slots=True)
class NoImage:
    """A sample without an image; `row` is its number in order of arrival."""

    row: int


class SampleReader:
    """Reads samples as they arrive: dicts of members or (image, label) pairs.

    Args:
        image, label, classes, extras, errors, pages: those of `pack_stream`.
        any_kind: accept encoded images of every kind, since a `decode` function will get them.
        bands: what the packing asks for beyond 8-bit colours.
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
        bands: BandRequest | None = None,
    ) -> None:
        self._errors, self._any_kind, self._pages, self._bands = errors, any_kind, pages, bands
        self._asked = [name.lstrip(".") for name in extras]
        self.extras = [name.lower() for name in self._asked]
        extensions_of(image)  # refuses an image without extensions
        self._images = [name for each in image.split(";") if (name := each.strip().lstrip("."))]
        self._label, self._rule = label, LabelRule(label, classes)
        self._kind: LabelKind | None = None  # known from the first label on
        self._arrived, self._members, self._warned = 0, "", False
        self._unseen = {"image", *self._asked} | ({"label"} if label is not None else set())

    def read(self, sample: Any) -> Sample | BadRow | NoImage:
        """Read the next sample; return it, or the record of an image that cannot be used or that it does not have.

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

    def _read_dict(self, row: int, sample: Mapping[str, Any]) -> Sample | BadRow | NoImage:
        key, shard = str(sample.get("__key__", row)), str(sample.get("__url__", _STREAM))
        if not self._members:
            self._members = _listed(sample)
        image = next((image for name in self._images if (image := _member(sample, name)) is not None), None)
        if image is None:
            return self._no_image(row, key, shard, f"its members are {_listed(sample) or 'all None'}, and image=")
        self._unseen.discard("image")
        return self._sample(
            row,
            key,
            shard,
            image,
            lambda: tuple(self._extra(sample, name) for name in self._asked),
            lambda name: _member(sample, name),
            lambda: dict(sample),
        )

    def _no_image(self, row: int, key: str, shard: str, why: str) -> NoImage:
        """Log the first sample without an image."""
        if not self._warned:
            self._warned = True
            _log.warning(
                "sample %r in %s has no image (%s%r) and is left out; stats()['without_image'] counts such samples",
                *(key, redact(shard), why, ";".join(self._images)),
            )
        return NoImage(row)

    def _read_pair(self, row: int, image: Any, label: Any) -> Sample | BadRow | NoImage:
        if self._label is not None or self.extras:
            raise ValueError(
                f"sample {row} of the stream is a pair, whose second item is its label; label={self._label!r} and "
                f"extras={self.extras!r} name members of a dict: leave them out, or pass dicts"
            )
        if not row:
            self._members = "those of a pair whose image is None" if image is None else ""
        if image is None:
            return self._no_image(row, str(row), _STREAM, "the first item of its pair is None, and image=")
        self._unseen.clear()
        return self._sample(row, str(row), _STREAM, image, lambda: (), lambda _: label, dict)

    def _sample(
        self,
        row: int,
        key: str,
        shard: str,
        image: Any,
        read_extras: Callable[[], tuple[Any, ...]],
        read: Callable[[str], Any],
        read_all: Callable[[], dict[str, Any]],
    ) -> Sample | BadRow:
        """Return the sample of an image, whose label `LabelRule.of_sample` gets from `read` and `read_all`."""
        try:
            image, header = self._checked_image(image, key)
            extras = read_extras()
            label = self._rule.of_sample(read, read_all, lambda: f"the sample with key {key!r}")
        except BadImage as error:
            stage = "header" if error.stage == "decode" else error.stage
            return _bad_row(row, key, shard, stage, str(error))
        if label is not None:
            self._unseen.discard("label")
            if self._kind is None:
                self._kind = LabelKind(np.shape(label))
            self._kind.check(label, key)
        return Sample(row, key, shard, image, header, label, extras)

    def _checked_image(self, image: Any, key: str) -> tuple[bytes | Image.Image | np.ndarray, Header]:
        if is_stored(image):  # as Hugging Face's Image(decode=False) gives it
            image = stored_bytes(image["bytes"], image["path"], f"sample {key!r}")
        image, header = _header_of(image, key, self._any_kind, self._bands)
        nbytes = len(image) if isinstance(image, bytes) else 0
        if (reason := self._errors.beyond(header.width * header.height, nbytes)) is not None:
            raise BadImage(reason, "limit")
        if self._pages == "error" and header.pages != 1:
            raise BadImage(refusal_of_pages(header.pages))
        return image, header

    def _extra(self, sample: Mapping[str, Any], name: str) -> Any:
        data = _member(sample, name)
        if data is not None:
            self._unseen.discard(name)
        return extra(name, name.lower(), data) if isinstance(data, bytes) else data


def rows_of(samples: Sequence[Sample], stream: int) -> Rows:
    """Return the rows that a plan needs. `stream` is the number of this stream among those that train together."""
    row = np.array([sample.row for sample in samples], np.int64)
    return Rows(
        row=row,
        row_id=row.astype(np.uint64) | np.uint64(stream << 32),
        width=np.array([sample.header.width for sample in samples], np.int32),
        height=np.array([sample.header.height for sample in samples], np.int32),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamBatchContext(BatchContext):
    """The batch context of one batch of a stream.

    Attributes:
        batch_samples: the samples of the batch, in the order of its images.
    """

    batch_samples: Sequence[Sample]

    def samples(self, rows: np.ndarray, page: np.ndarray | None = None) -> StreamBatch:
        """Return the samples of the batch; `rows` must be theirs, in order."""
        assert [sample.row for sample in self.batch_samples] == rows.tolist(), (
            "the samples are not those that were planned"
        )
        return StreamBatch(self)


class StreamBatch:
    """The samples of one batch; see `Samples`."""

    def __init__(self, context: StreamBatchContext) -> None:
        rows = rows_of(context.batch_samples, 0)
        self._rows, self.width, self.height = rows.row, rows.width, rows.height
        self.keys = [sample.key for sample in context.batch_samples]
        self.labels: np.ndarray | None = None
        self.pages = np.array([sample.header.pages for sample in context.batch_samples], np.int32)
        self._batch_samples, self._context = context.batch_samples, context

    def shard(self, i: int) -> str:
        """Return the shard of image i, without credentials."""
        return redact(self._batch_samples[i].shard)

    def continued(self) -> np.ndarray:
        """Return whether each image is made of the same image of the stream as the one before it, bool (M,)."""
        return repeats(self._rows)

    def shares(self, extension: str) -> np.ndarray:
        """Return whether each image is of the same sample as the one before it, bool (M,)."""
        return repeats(self._rows)

    def read(self, i: int) -> bytes | Image.Image | np.ndarray:
        """Return image i as it arrived."""
        return self._batch_samples[i].image

    def decode(
        self, i: int, data: Any, size: tuple[int, int], box: tuple[int, ...] | None, strict: bool, warn: Warn
    ) -> np.ndarray:
        """Decode image i upright and resize its `box` to `size`; `warn` gets what is odd. Raises BadImage."""
        return self._context.pixels(self.keys[i], data, self._batch_samples[i].header, size, box, strict, warn)

    def decode_run(
        self,
        which: range,
        data: Any,
        sizes: Sequence[tuple[int, int]],
        boxes: Sequence[tuple[int, ...] | None],
        strict: bool,
        warn: Warn,
    ) -> Iterator[np.ndarray | BadImage]:
        """Yield images that are made of the same image, in order, or why one is bad; see `Samples`."""
        header = self._batch_samples[which.start].header
        wanted = [Wanted(0, header, size, box) for size, box in zip(sizes, boxes, strict=True)]
        yield from self._context.pixels_of_pages(self.keys[which.start], data, wanted, strict, warn)

    def label(self, i: int) -> Any:
        """Return the label of image i, `absent` where it has none."""
        label = self._batch_samples[i].label
        return self._context.labels.absent if label is None else label

    def extra(self, i: int, extension: str) -> Any:
        """Return the value of another member of the sample."""
        return self._batch_samples[i].extras[self._context.extras.index(extension)]

    def bad_row(self, i: int, stage: str, reason: str) -> BadRow:
        """Return the record of image i, which could not be used."""
        return self._batch_samples[i].bad_row(stage, reason)


def _header_of(
    image: Any, key: str, any_kind: bool, bands: BandRequest | None
) -> tuple[bytes | Image.Image | np.ndarray, Header]:
    if isinstance(image, bytes | bytearray | memoryview):
        data = bytes(image)
        try:
            header = read_header(data)
        except UnsupportedImage as error:
            if not any_kind and bands is None:
                raise
            header = error.header
        if not any_kind and bands is not None:
            bands.check(header)
        return data, header
    if not isinstance(image, Image.Image | np.ndarray):
        raise ValueError(
            f"the image of sample {key!r} is a {type(image).__module__}.{type(image).__qualname__}; it must be encoded "
            "bytes, a PIL image or a uint8 array (height, width, C)"
        )
    try:
        header = image_header(image, values=bands is not None)
        if bands is not None:
            bands.check(header)
        return image, header
    except ValueError as error:
        error.add_note(f"raised for the sample with key {key!r}")
        raise


def _bad_row(row: int, key: str, shard: str, stage: str, reason: str) -> BadRow:
    return BadRow(row=row, key=key, shard=shard, offset=-1, stage=stage, reason=reason)


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
