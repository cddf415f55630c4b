"""Samples: where the images of a batch come from, an index or a stream, and what is made of their bytes."""

from __future__ import annotations

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import xxhash

from patchnpack.loaders.assembly.buffers import BufferPool
from patchnpack.loaders.errors import BadImage, BadRow, ErrorPolicy
from patchnpack.loaders.imaging.decode import decode
from patchnpack.loaders.imaging.header import Header
from patchnpack.loaders.imaging.user_decode import Decode, user_pixels
from patchnpack.loaders.index.labels import KnownLabels, Labels
from patchnpack.loaders.index.table import Index
from patchnpack.loaders.remote.addresses import redact
from patchnpack.loaders.shards.reader import ShardReader
from patchnpack.packer import Packing

# M images in the batch

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def check_transform(transform: object) -> None:
    """ValueError where `transform` is neither None nor a function of two arguments; one without a signature may be."""
    if transform is None:
        return
    wanted = "transform takes (image, rng), a uint8 array (height, width, C) and a numpy Generator"
    if not callable(transform):
        raise ValueError(f"{wanted}; {transform!r} is no function")
    try:
        signature = inspect.signature(transform)
    except (TypeError, ValueError):  # of some that are written in C
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        name = getattr(transform, "__name__", type(transform).__name__)
        raise ValueError(
            f"{wanted}; {name}{signature} cannot be called so ({error}): wrap it, as in lambda image, rng: f(image)"
        ) from error


class LabelKind(Protocol):
    """What all labels are: arrays of this shape and type, and `absent` where there is none."""

    @property
    def shape(self) -> tuple[int, ...]:
        """() for classes, (D,) for targets."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the arrays."""
        ...

    @property
    def absent(self) -> Any:
        """What stands where there is none."""
        ...


class Samples(Protocol):
    """The samples of a draft's M images; number i is the same one everywhere.

    Attributes:
        keys: their keys.
        width, height: int32 (M,), pixels, upright.
    """

    keys: list[str]
    width: np.ndarray
    height: np.ndarray

    def shard(self, i: int) -> str:
        """Where it came from, without secrets."""
        ...

    def read(self, i: int) -> Any:
        """What `decode` takes. Raises BadImage."""
        ...

    def decode(self, i: int, data: Any, size: tuple[int, int], box: tuple[int, ...] | None, strict: bool) -> np.ndarray:
        """The image upright, the box of it resized to `size`. Raises BadImage."""
        ...

    def label(self, i: int) -> Any:
        """Its label, `absent` where there is none."""
        ...

    def extra(self, i: int, extension: str) -> Any:
        """What one of its other members holds. Raises BadImage."""
        ...

    def bad_row(self, i: int, stage: str, reason: str) -> BadRow:
        """The record of an image that could not be used."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchContext(ABC):
    """How a draft's images are made, and where they come from."""

    packing: Packing
    labels: LabelKind
    extras: Sequence[str]
    transform: Transform | None
    seed: int
    buffers: BufferPool
    errors: ErrorPolicy
    user_decode: Decode | None = None

    @abstractmethod
    def samples(self, rows: np.ndarray) -> Samples:
        """The samples of these rows (int64); called once a draft, by any thread."""

    def pixels(
        self, key: str, data: Any, header: Header, size: tuple[int, int], box: tuple[int, ...] | None, strict: bool
    ) -> np.ndarray:
        """An image (encoded, of PIL, or an array) upright, the box of it resized to `size`. Raises BadImage."""
        if self.user_decode is not None and isinstance(data, bytes):
            data = user_pixels(self.user_decode, data, header, self.packing.channels, key)
        return decode_for(self.packing, data, header, size, box, strict)


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexedBatchContext(BatchContext):
    """What the images of every batch are made with, where an index says where they lie."""

    index: Index
    reader: ShardReader
    labels: Labels | KnownLabels

    def samples(self, rows: np.ndarray) -> Samples:
        """The samples of these rows of the index (int64)."""
        return _IndexedSamples(self, rows)

    def bad_row(self, row: int, stage: str, reason: str) -> BadRow:
        """The record of a row that could not be used."""
        index = self.index
        return BadRow(
            row=row,
            key=index.keys[row],
            shard=redact(index.shards[int(index.shard_of(row))]),
            offset=int(index.offset[row]),
            stage=stage,
            reason=reason,
        )

    def member(self, row: int, extension: str) -> bytes | None:
        """The bytes of one member of a row's sample, None where it has none."""
        return read_member(self.index, self.reader, row, extension)


def read_member(index: Index, reader: ShardReader, row: int, extension: str) -> bytes | None:
    """The bytes of one member of a row's sample, None where it has none."""
    if extension not in index.members:
        return None
    offset, nbytes = index.members[extension][row].tolist()
    if offset < 0:
        return None
    return reader.read(int(index.shard_of(row)), offset, nbytes)


class _IndexedSamples:
    def __init__(self, sources: IndexedBatchContext, rows: np.ndarray) -> None:
        index = sources.index
        shard = index.shard_of(rows)
        self.width, self.height = index.width[rows], index.height[rows]
        # As Python's own numbers: taking them out of arrays one by one would cost more than all else here.
        self._sources, self._rows = sources, rows.tolist()
        self._bytes = tuples(shard, index.offset[rows], index.nbytes[rows])
        self._headers = index.headers(rows)
        self._digests = index.digest[rows].tolist()
        self.keys = [index.keys[row] for row in self._rows]

    def shard(self, i: int) -> str:
        return redact(self._sources.index.shards[self._bytes[i][0]])

    def read(self, i: int) -> bytes:
        shard, offset, nbytes = self._bytes[i]
        data = self._sources.reader.read(shard, offset, nbytes)
        if xxhash.xxh3_64_intdigest(data) != self._digests[i]:
            if self._sources.reader.has_changed(shard):
                raise OSError(
                    f"shard {self.shard(i)!r} was written to since it was indexed, and the image at byte "
                    f"{offset} is another one; bring the index up to date: patchnpack index SHARDS"
                )
            raise BadImage("its bytes are not those that were indexed: the digest differs", "read")
        return data

    def decode(self, i: int, data: Any, size: tuple[int, int], box: tuple[int, ...] | None, strict: bool) -> np.ndarray:
        return self._sources.pixels(self.keys[i], data, self._headers[i], size, box, strict)

    def label(self, i: int) -> Any:
        return self._sources.labels.of(self._rows[i])

    def extra(self, i: int, extension: str) -> Any:
        kind = self._sources.index.kinds.get(extension, extension)
        return extra(extension, kind, self._sources.member(self._rows[i], extension))

    def bad_row(self, i: int, stage: str, reason: str) -> BadRow:
        return self._sources.bad_row(self._rows[i], stage, reason)


def decode_for(
    packing: Packing, data: Any, header: Header, size: tuple[int, int], box: tuple[int, ...] | None, strict: bool
) -> np.ndarray:
    """`decode`, as a packing asks for."""
    return decode(
        data,
        header,
        size,
        box,
        mode=packing.image_mode,
        interpolation=packing.interpolation,
        scaled=packing.scaled_decode,
        strict=strict,
    )


def extra(extension: str, kind: str, data: bytes | None) -> Any:
    """What a member's bytes say: of kind txt as str, json as object, others as they are. Raises BadImage."""
    if data is None:
        return None
    try:
        if kind == "json":
            return json.loads(data)
        return data.decode("utf-8") if kind == "txt" else data
    except ValueError as error:
        raise BadImage(f"its .{extension} member cannot be read: {error}", "extras") from error


def tuples(*columns: np.ndarray) -> list[tuple[int, ...]]:
    """The columns' rows, as Python's own numbers."""
    return list(zip(*(column.tolist() for column in columns), strict=True))
