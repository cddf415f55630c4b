"""The samples of a stream: what is known of each as it arrives, and its pixels once its pack is out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from patchnpack.loaders.assembly.samples import BatchContext, extra
from patchnpack.loaders.errors import BadImage, BadRow, ErrorPolicy
from patchnpack.loaders.imaging.header import Header, UnsupportedImage, image_header, read_header
from patchnpack.loaders.index.labels import NO_LABEL, Classes, Label, LabelRule, as_label
from patchnpack.loaders.remote.addresses import redact
from patchnpack.packer import Rows

# M images

PROBE = 1000  # samples by which a member that was asked for must have come up
_NOWHERE = "the stream"


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample that waits: all but its pixels is known.

    Attributes:
        row: how many samples arrived before it.
        key: its key, or its row as a text where it has none.
        shard: the shard that it came from, where the sample says so.
        image: the encoded bytes, PIL's image, or an array.
        header: the image's size and orientation.
        label: an int, an array, or None.
        extras: its other members, in the order in which they were asked for.
    """

    row: int
    key: str
    shard: str
    image: bytes | Image.Image | np.ndarray
    header: Header
    label: int | np.ndarray | None
    extras: tuple[Any, ...]

    def bad_row(self, stage: str, reason: str) -> BadRow:
        """The record of it, if it cannot be used."""
        return BadRow(row=self.row, key=self.key, shard=self.shard, offset=-1, stage=stage, reason=reason)


@dataclass(slots=True)
class StreamLabels:
    """What the labels of a batch are; see `LabelKind`."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    absent: Any


class SampleReader:
    """Reads samples as they arrive: dicts of members, or (image, label) pairs.

    `image`, `label`, `classes`, `extras` and `errors` are those of `pack_stream`; with `any_kind` encoded images of a
    kind that is not read here are handed on, too, since a `decode` function will be given them.
    """

    def __init__(
        self,
        image: str,
        label: Label,
        classes: Classes,
        extras: Sequence[str],
        errors: ErrorPolicy,
        any_kind: bool = False,
    ) -> None:
        self._errors, self._any_kind = errors, any_kind
        self.extras = [name.lstrip(".") for name in extras]
        self._images = [name.strip().lstrip(".") for name in image.split(";")]
        self._label, self._rule = label, LabelRule(label, classes)
        self._shape: tuple[int, ...] | None = None  # of labels, once it is known
        self._arrived, self._members = 0, ""
        self._unseen = {"image", *self.extras} | ({"label"} if label is not None else set())

    def read(self, sample: Any) -> Sample | BadRow:
        """What the next sample holds, or why its image cannot be used.

        Raises:
            ValueError: it is neither a dict nor a pair, its image is of no kind that is read, its label is neither a
                whole number nor a known class; or it is the 1,000th, and none so far had an image, a label or a member
                that was asked for.
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
                "webdataset gives them, or a pair (image, label)"
            )
        if self._unseen and self._arrived == PROBE:
            self._refuse()
        return read

    def end(self) -> None:
        """Says that no sample is left. Raises ValueError where none had a member that was asked for."""
        if self._unseen and self._arrived:
            self._refuse()

    def labels(self) -> StreamLabels:
        """What labels are, from here on: class indices unless targets have come."""
        if self._shape is None:
            self._shape = ()
        if self._shape:
            return StreamLabels(self._shape, np.dtype(np.float32), np.float32("nan"))
        return StreamLabels((), np.dtype(np.int64), np.int64(NO_LABEL))

    @property
    def has_seen_image(self) -> bool:
        """Whether a sample has had an image."""
        return "image" not in self._unseen

    def _refuse(self) -> None:
        if "image" in self._unseen:
            self._unseen = {"image"}  # of samples without one nothing else was looked at
        asked = {"image": f"image={';'.join(self._images)!r}", "label": f"label={self._label!r}"}
        wanted = ", ".join(asked.get(name, f"extras={name!r}") for name in sorted(self._unseen))
        raise ValueError(
            f"none of the first {self._arrived} samples has what {wanted} asks for; the members of the first are "
            f"{self._members}: name one of them, or leave it out"
        )

    def _read_dict(self, row: int, sample: Mapping[str, Any]) -> Sample | BadRow:
        key, shard = str(sample.get("__key__", row)), str(sample.get("__url__", _NOWHERE))
        if not row:
            self._members = _listed(sample)
        name = next((name for name in self._images if name in sample), None)
        if name is None:
            reason = f"none of its members ({_listed(sample)}) is an image ({', '.join(self._images)})"
            return BadRow(row=row, key=key, shard=shard, offset=-1, stage="sample", reason=reason)
        self._unseen.discard("image")
        try:
            image, header = self._header_of(sample[name], key)
            extras = tuple(self._extra(sample, name) for name in self.extras)
            with _naming(key):
                if callable(self._label):
                    label = as_label(self._label(dict(sample)))
                else:
                    label = self._rule.value(sample.get(self._rule.member))
        except BadImage as error:
            stage = "header" if error.stage == "decode" else error.stage
            return BadRow(row=row, key=key, shard=shard, offset=-1, stage=stage, reason=str(error))
        return Sample(row, key, shard, image, header, self._checked(label, key), extras)

    def _read_pair(self, row: int, image: Any, label: Any) -> Sample | BadRow:
        if self._label is not None or self.extras:
            raise ValueError(
                f"sample {row} of the stream is a pair, whose second part is its label; label={self._label!r} and "
                f"extras={self.extras!r} name members of a dict: leave them out, or hand on dicts"
            )
        self._unseen.clear()
        key = str(row)
        try:
            image, header = self._header_of(image, key)
        except BadImage as error:
            stage = "header" if error.stage == "decode" else error.stage
            return BadRow(row=row, key=key, shard=_NOWHERE, offset=-1, stage=stage, reason=str(error))
        with _naming(key):
            value = self._rule.value(label)
        return Sample(row, key, _NOWHERE, image, header, self._checked(value, key), ())

    def _header_of(self, image: Any, key: str) -> tuple[bytes | Image.Image | np.ndarray, Header]:
        image, header = _header_of(image, key, self._any_kind)
        nbytes = len(image) if isinstance(image, bytes) else 0
        if (reason := self._errors.beyond(header.width * header.height, nbytes)) is not None:
            raise BadImage(reason, "limit")
        return image, header

    def _extra(self, sample: Mapping[str, Any], name: str) -> Any:
        data = sample.get(name)
        if data is not None:
            self._unseen.discard(name)
        return extra(name, name, data) if isinstance(data, bytes) else data

    def _checked(self, label: int | np.ndarray | None, key: str) -> int | np.ndarray | None:
        if label is not None:
            self._unseen.discard("label")
            if self._shape is None:
                self._shape = np.shape(label)
            if np.shape(label) != self._shape:
                raise ValueError(
                    f"label of {key!r} has shape {np.shape(label)}, those before it {self._shape}; all must agree"
                )
        return label


def rows_of(samples: Sequence[Sample], stream: int) -> Rows:
    """What a plan needs of samples. `stream` says which of the streams that train together this is."""
    row = np.array([sample.row for sample in samples], np.int64)
    return Rows(
        row=row,
        row_id=row.astype(np.uint64) | np.uint64(stream << 32),
        width=np.array([sample.header.width for sample in samples], np.int32),
        height=np.array([sample.header.height for sample in samples], np.int32),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamBatchContext(BatchContext):
    """What the images of one batch are made with: `taken` are its samples, in the order of its images."""

    taken: Sequence[Sample]

    def samples(self, rows: np.ndarray) -> StreamBatch:
        """The samples of the batch, which are those of `rows`."""
        assert [sample.row for sample in self.taken] == rows.tolist(), "other samples than were planned"
        return StreamBatch(self)


class StreamBatch:
    """The samples of one batch; see `Samples`."""

    def __init__(self, making: StreamBatchContext) -> None:
        rows = rows_of(making.taken, 0)
        self.width, self.height = rows.width, rows.height
        self.keys = [sample.key for sample in making.taken]
        self._taken, self._making = making.taken, making

    def shard(self, i: int) -> str:
        """The shard that its sample names."""
        return redact(self._taken[i].shard)

    def read(self, i: int) -> bytes | Image.Image | np.ndarray:
        """The image as it came."""
        return self._taken[i].image

    def decode(self, i: int, data: Any, size: tuple[int, int], box: tuple[int, ...] | None, strict: bool) -> np.ndarray:
        """Image i upright, the box of it resized to `size`."""
        return self._making.pixels(self.keys[i], data, self._taken[i].header, size, box, strict)

    def label(self, i: int) -> Any:
        """Its label, or what stands where there is none."""
        label = self._taken[i].label
        return self._making.labels.absent if label is None else label

    def extra(self, i: int, extension: str) -> Any:
        """What one of its other members holds."""
        return self._taken[i].extras[self._making.extras.index(extension)]

    def bad_row(self, i: int, stage: str, reason: str) -> BadRow:
        """The record of an image that could not be used."""
        return self._taken[i].bad_row(stage, reason)


def _header_of(image: Any, key: str, any_kind: bool) -> tuple[bytes | Image.Image | np.ndarray, Header]:
    if isinstance(image, bytes | bytearray | memoryview):
        data = bytes(image)
        try:
            return data, read_header(data)
        except UnsupportedImage as error:
            if not any_kind:
                raise
            return data, error.header
        except ValueError as error:
            raise ValueError(f"the image of sample {key!r}: {error}") from None
    if not isinstance(image, Image.Image | np.ndarray):
        raise ValueError(
            f"the image of sample {key!r} is a {type(image).__module__}.{type(image).__qualname__}; it must be encoded "
            "bytes, PIL's image or a uint8 array (height, width, C)"
        )
    try:
        return image, image_header(image)
    except ValueError as error:
        error.add_note(f"raised for the sample with key {key!r}")
        raise


@contextmanager
def _naming(key: str) -> Iterator[None]:
    """Whatever is raised says for which sample."""
    try:
        yield
    except Exception as error:
        error.add_note(f"raised for the label of the sample with key {key!r}")
        raise


def _listed(sample: Mapping[str, Any], most: int = 10) -> str:
    names = [str(name) for name in sample if not str(name).startswith("__")]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
