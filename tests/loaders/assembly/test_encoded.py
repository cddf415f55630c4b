"""Encoded rows: bytes as they are in the shards, and what images share only once."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np

from patchnpack.loaders import PackedImageLoader, scan
from patchnpack.loaders.assembly.encoded import ByteStrings, other_members
from tests.images import read_tar
from tests.loaders.documents import PACKING, Documents


def test_an_absent_string_is_not_an_empty_one() -> None:
    strings = ByteStrings.of([b"ab", None, b"", b"c"])
    assert strings.values.tobytes() == b"abc"
    assert strings.sizes.tolist() == [2, -1, 0, 1]


def test_a_member_that_images_of_a_sample_share_is_with_the_first_of_a_run(tmp_path: Path) -> None:
    documents = Documents(tmp_path, (3,), members=True)
    index = scan(documents.shards, sample="members")
    pages = [len(of) for of in documents.pages.values()]
    begins = np.cumsum([0, *pages])
    assert sum(pages) > 3
    rows = np.arange(len(index))
    members = other_members(index, rows)
    assert set(members) >= {"cls", "txt"}
    for name in ("cls", "txt"):
        assert np.flatnonzero(members[name][:, 0] >= 0).tolist() == begins[:-1].tolist()
    backwards = other_members(index, rows[::-1])["txt"]
    assert np.flatnonzero(backwards[::-1, 0] >= 0).tolist() == (begins[1:] - 1).tolist()


def test_rows_hold_the_bytes_of_the_shard_and_changed_ones_are_bad(tmp_path: Path) -> None:
    documents = Documents(tmp_path, (4,), members=True)
    index = scan(documents.shards, sample="members")
    index.digest[2] ^= np.uint64(1)
    context = PackedImageLoader(index, PACKING, batch_size=1).context
    rows = np.arange(len(index))[::-1]
    found = context.encoded(rows)
    images = [data for name, data in read_tar(documents.shards[0]) if name.endswith((".png", ".jpg"))]
    ends = found.image.offsets
    assert [found.image.values[a:b].tobytes() for a, b in pairwise(ends)] == images[::-1]
    assert [(bad.row, bad.stage) for bad in found.bad] == [(2, "read")]
    assert found.header["width"].tolist() == index.width[::-1].tolist()
