from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from patchnpack.loaders.shards import outside
from patchnpack.loaders.shards.outside import digest_outside

RANGES = st.lists(st.tuples(st.integers(0, 99), st.integers(0, 40)).map(lambda r: (r[0], min(r[1], 100 - r[0]))))


@given(ranges=RANGES, seed=st.integers(0, 3), piece=st.sampled_from([1, 7, 1 << 20]))
def test_digest_is_of_the_bytes_in_no_range(ranges: list[tuple[int, int]], seed: int, piece: int) -> None:
    data = np.random.default_rng(seed).bytes(100)
    inside = {i for offset, nbytes in ranges for i in range(offset, offset + nbytes)}
    expected = xxhash.xxh3_64_intdigest(bytes(data[i] for i in range(100) if i not in inside))
    fd = os.memfd_create("file")
    kept, outside._PIECE = outside._PIECE, piece
    try:
        os.write(fd, data)
        offset, nbytes = np.array(ranges, np.int64).reshape(-1, 2).T
        assert digest_outside(fd, offset, nbytes) == expected
    finally:
        outside._PIECE = kept
        os.close(fd)


def test_range_beyond_a_truncated_file_gives_another_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(100)))
    ranges = np.array([10]), np.array([20])
    fd = os.open(tmp_path / "a", os.O_RDWR)
    try:
        whole = digest_outside(fd, *ranges)
        os.ftruncate(fd, 20)
        assert digest_outside(fd, *ranges) != whole
    finally:
        os.close(fd)
