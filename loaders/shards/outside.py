"""What lies in a shard outside its images: a digest of it shows whether labels or other members have changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xxhash

# n rows, s shards

_PIECE = 1 << 20  # bytes read at a time


@dataclass(frozen=True, slots=True)
class Outside:
    """The digest of the bytes of each shard outside its images.

    Attributes:
        starts: int64 (s + 1,), the first row of each shard.
        offset, nbytes: int64 (n,), byte range of each image.
        digests: uint64 (s,); see `digest_outside`.
    """

    starts: np.ndarray
    offset: np.ndarray
    nbytes: np.ndarray
    digests: np.ndarray

    def is_unchanged(self, shard: int, fd: int) -> bool:
        """Whether the open file of a shard, given by number, has the digest."""
        rows = slice(self.starts[shard], self.starts[shard + 1])
        return digest_outside(fd, self.offset[rows], self.nbytes[rows]) == int(self.digests[shard])


def digest_outside(fd: int, offset: np.ndarray, nbytes: np.ndarray) -> int:
    """XXH3 of the bytes of an open file outside these ranges.

    Args:
        fd: descriptor of the file.
        offset, nbytes: int64 (m,), the ranges in any order; they may overlap.
    """
    digest = xxhash.xxh3_64()
    for begin, end in _gaps(offset, nbytes, os.fstat(fd).st_size):
        while begin < end:
            piece = os.pread(fd, min(end - begin, _PIECE), begin)
            if not piece:  # truncated meanwhile
                break
            digest.update(piece)
            begin += len(piece)
    return digest.intdigest()


def _gaps(offset: np.ndarray, nbytes: np.ndarray, size: int) -> Iterator[tuple[int, int]]:
    """The begin and end of each run of bytes of a file of `size` bytes that is in none of the ranges."""
    order = np.argsort(offset, kind="stable")
    ends = np.maximum.accumulate((offset + nbytes)[order])
    begins = np.concatenate([[0], ends])
    ends = np.concatenate([offset[order], [size]])
    some = begins < ends
    return zip(begins[some].tolist(), ends[some].tolist(), strict=True)
