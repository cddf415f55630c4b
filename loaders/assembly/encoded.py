"""Encoded rows: the images of rows as bytes, with the other members of their samples, for a store that keeps both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import xxhash

from patchnpack.loaders.assembly.context import Samples
from patchnpack.loaders.errors import BadImage, BadRow
from patchnpack.loaders.index.table import Index
from patchnpack.loaders.shards.reader import ShardReader

# M rows

HEADER = (
    "width",
    "height",
    "orientation",
    "format",
    "bands",
    "dtype",
    "digest",
)  # columns of an index that a part repeats


@dataclass(frozen=True, slots=True)
class ByteStrings:
    """One byte string per row.

    Attributes:
        values: uint8, all strings concatenated.
        offsets: int64 (M + 1,), string i is `values[offsets[i]:offsets[i + 1]]`.
        valid: bool (M,), False where a row has no string.
    """

    values: np.ndarray
    offsets: np.ndarray
    valid: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """The length of each string, int64 (M,); -1 where a row has none."""
        return np.where(self.valid, np.diff(self.offsets), -1)

    @classmethod
    def of(cls, strings: Sequence[bytes | None]) -> ByteStrings:
        """Concatenate strings, None where a row has none."""
        sizes = [0 if data is None else len(data) for data in strings]
        return cls(
            np.frombuffer(b"".join(data for data in strings if data), np.uint8),
            np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            np.array([data is not None for data in strings], np.bool_),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedRows:
    """The M rows of a part.

    Attributes:
        image: the encoded images.
        members: the other members of their samples, by extension.
        header: columns `HEADER` of the index, as they are for `image`.
        bad: rows whose image cannot be used.
        told: what the index does not know of the bytes, for the marker of the part; None if it knows everything.
    """

    image: ByteStrings
    members: Mapping[str, ByteStrings]
    header: Mapping[str, np.ndarray]
    bad: list[BadRow]
    told: dict[str, Any] | None = field(default=None)


def encoded_rows(index: Index, reader: ShardReader, rows: np.ndarray, samples: Samples) -> EncodedRows:
    """Read rows, int64 (M,), from the byte ranges that an index names; `samples` are those of the rows.

    Each image's bytes are compared with the digest in the index. Bytes that differ are kept as they are and noted as
    bad; a loader finds the same difference.

    Raises:
        OSError: a shard has changed since it was indexed.
    """
    shard = index.shard_of(rows)
    image = _read(shard, index.offset[rows], index.nbytes[rows], reader.read)
    bad: list[BadRow] = []
    digests, ends = index.digest[rows].tolist(), image.offsets.tolist()
    for i, (low, high) in enumerate(pairwise(ends)):
        if xxhash.xxh3_64_intdigest(image.values[low:high].data) != digests[i]:
            try:
                samples.read(i)  # raises OSError if the whole shard has changed
            except BadImage as error:
                bad.append(samples.bad_row(i, error.stage, str(error)))
    members = {
        extension: _read(shard, where[:, 0], where[:, 1], reader.read_member)
        for extension, where in other_members(index, rows).items()
    }
    return EncodedRows(
        image=image, members=members, header={name: getattr(index, name)[rows] for name in HEADER}, bad=bad
    )


def other_members(index: Index, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return where the members of the rows' samples lie, (offset, nbytes) by extension, without the image itself.

    Of neighbouring rows of one sample that share a member, only the first has it: it is stored once.
    """
    members = {}
    for extension, where in index.members.items():
        if ((where[:, 0] >= 0) & (where[:, 0] != index.offset)).any():
            members[extension] = where[rows]
            members[extension][(where[rows, 0] == index.offset[rows]) | shared(index, rows, where)] = -1
    return members


def shared(index: Index, rows: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Return whether each row has the same member as the row before it, in its sample, bool (M,).

    `where` (n, 2) says where the member of each row of the index lies.
    """
    same = np.zeros(len(rows), np.bool_)
    if index.samples is not None:
        offset, sample = where[rows, 0], index.samples.sample_of(rows)
        same[1:] = (offset[1:] >= 0) & (offset[1:] == offset[:-1]) & (sample[1:] == sample[:-1])
    return same


def _read(
    shard: np.ndarray, offset: np.ndarray, nbytes: np.ndarray, read: Callable[[int, int, int], bytes]
) -> ByteStrings:
    """Read one byte range per row with `read(shard, offset, nbytes)`; a negative offset stands for no range."""
    valid = offset >= 0
    ends = np.concatenate([[0], np.cumsum(np.where(valid, nbytes, 0))]).astype(np.int64)
    values = np.empty(int(ends[-1]), np.uint8)
    # In the order of the shards' bytes, which is the fastest to read.
    for i in np.lexsort([offset, shard]).tolist():
        if valid[i]:
            data = read(int(shard[i]), int(offset[i]), int(nbytes[i]))
            values[ends[i] : ends[i + 1]] = np.frombuffer(data, np.uint8)
    return ByteStrings(values, ends, valid)
