"""`sample="members"`: all images of a sample of a tar are its rows, in natural order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patchnpack.loaders import Index, PackedImageLoader, scan
from patchnpack.loaders.imaging.header import read_header
from patchnpack.loaders.labels.labels import Labels
from tests.images import write_tar
from tests.loaders.index.samples.rows import jpeg, write_documents


def members_of(index: Index) -> list[str | None]:
    assert index.samples is not None
    return [None] * len(index) if index.samples.member is None else list(index.samples.member)


def test_images_of_a_sample_are_rows_in_natural_order(tmp_path: Path) -> None:
    index = scan(write_documents(tmp_path / "a.tar", {"a": [10, 2, 1], "b": [3]}), sample="members")
    assert list(index.keys) == ["a", "a", "a", "b"]
    assert members_of(index) == ["p1.jpg", "p2.jpg", "p10.jpg", "p3.jpg"]
    assert index.width.tolist() == [11, 12, 20, 13]
    assert index.samples is not None
    assert index.samples.rule == "members"
    assert index.samples.starts.tolist() == [0, 3, 4]
    assert index.samples.page.tolist() == [0] * 4
    assert index.samples.frames.tolist() == [1] * 4
    assert [index.name_of(row) for row in (0, 2, 3)] == ["a.p1.jpg", "a.p10.jpg", "b.p3.jpg"]
    assert repr(index).startswith("Index of 4 images in 2 samples (members) in 1 shard")


def test_rows_of_a_sample_share_text_and_members_and_own_their_image(tmp_path: Path) -> None:
    shard = write_documents(tmp_path / "a.tar", {"a": [2, 1], "b": [1]})
    index, data = scan(shard, sample="members"), Path(shard).read_bytes()
    assert set(index.members) == {"jpg", "cls", "txt"}
    assert index.cls[:] == ["0", "0", "1"]
    for row in range(3):
        offset, nbytes = index.members["jpg"][row].tolist()
        assert (offset, nbytes) == (index.offset[row], index.nbytes[row])
        assert read_header(data[offset : offset + nbytes]).width == index.width[row]
        offset, nbytes = index.members["txt"][row].tolist()
        assert data[offset : offset + nbytes].decode() == f"text of {index.keys[row]}"
    assert index.other_images == 0


@pytest.mark.parametrize(
    ("image", "chosen"),
    [
        ("jpg", ["jpg", "p1.jpg", "p2.jpg"]),
        ("jpg;png", ["jpg", "p1.jpg", "p1.png", "p2.jpg", "seg.png"]),
        ("png;jpg", ["jpg", "p1.png", "p1.jpg", "p2.jpg", "seg.png"]),
        ("p2.jpg;p1.jpg", ["p2.jpg", "p1.jpg"]),
    ],
)
def test_image_names_extensions_or_whole_members(image: str, chosen: list[str], tmp_path: Path) -> None:
    names = ["seg.png", "p2.jpg", "p1.png", "p1.jpg", "jpg", "json"]
    index = scan(
        write_tar(tmp_path / "a.tar", [(f"a.{name}", jpeg(9, 9)) for name in names]), image=image, sample="members"
    )
    assert members_of(index) == chosen
    assert "json" in index.members


def test_samples_without_an_image_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = [("a.p1.jpg", jpeg(9, 9)), ("a.p2.jpg", jpeg(9, 9)), ("b.txt", b"no image"), ("c.txt", b"neither")]
    shard = write_tar(tmp_path / "a.tar", members)
    index = scan(shard, sample="members")
    assert (len(index), index.without_image.tolist(), index.unused_members.tolist()) == (2, [2], [2])
    from patchnpack.loaders import open_index
    from patchnpack.loaders.shards.opener import ShardOpener

    open_index(shard, sample="members", opener=ShardOpener(tmp_path / "cache"))
    assert "2 of 3 samples have no image" in caplog.text


def test_unreadable_page_is_a_bad_row_of_its_sample(tmp_path: Path) -> None:
    members = [("a.p1.jpg", jpeg(9, 9)), ("a.p2.jpg", b"no image"), ("a.p3.jpg", jpeg(9, 9))]
    index = scan(write_tar(tmp_path / "a.tar", members), sample="members")
    assert list(index.bad) == [1]
    assert index.samples is not None
    assert index.samples.starts.tolist() == [0, 3]


def test_names_of_pages_take_no_column_each(tmp_path: Path) -> None:
    """Members of images would be a column of the index for each place in a clip."""
    index = scan(write_documents(tmp_path / "a.tar", {"a": range(200), "b": range(200)}), sample="members")
    assert len(index) == 400
    assert set(index.members) == {"jpg", "cls", "txt"}


def read_nothing(row: int, extension: str) -> bytes | None:
    raise AssertionError(f"{extension} of row {row} was read")


def test_sample_has_the_label_of_the_first_row_with_one(tmp_path: Path) -> None:
    members: list[tuple[str, bytes]] = []
    for number, (key, label) in enumerate([("a_1", None), ("a_2", "3"), ("b_1", "5"), ("b_2", None), ("c_1", None)]):
        members.append((f"{key}.jpg", jpeg(10 + number, 10)))
        members += [(f"{key}.cls", label.encode())] if label else []
    index = scan(write_tar(tmp_path / "a.tar", members), sample=r"key:(.)_\d")
    labels = Labels(index, "cls", None, read_nothing)
    assert labels.known(np.arange(5)) is not None
    assert np.asarray(labels.known(np.arange(5))).tolist() == [3, 3, 5, 5, -100]
    assert [int(labels.of(row)) for row in range(5)] == [3, 3, 5, 5, -100]


def test_two_labels_in_a_sample_are_refused(tmp_path: Path) -> None:
    members = [("a_1.jpg", jpeg(10, 10)), ("a_1.cls", b"1"), ("a_2.jpg", jpeg(10, 10)), ("a_2.cls", b"2")]
    index = scan(write_tar(tmp_path / "a.tar", members), sample=r"key:(.)_\d")
    with pytest.raises(
        ValueError, match=r"key 'a_1' in .* has the label '1', and key 'a_2' of the same sample has '2'"
    ):
        Labels(index, "cls", None, read_nothing)


def test_member_of_a_label_is_read_once_per_sample(tmp_path: Path) -> None:
    index = scan(write_documents(tmp_path / "a.tar", {"a": [1, 2, 3], "b": [1, 2]}), sample="members")
    read: list[int] = []

    def read_number(row: int, extension: str) -> bytes:
        read.append(row)
        return b"%d" % row

    labels = Labels(index, "txt", None, read_number)
    read.clear()
    assert [int(labels.of(row)) for row in range(5)] == [0, 0, 0, 3, 3]
    assert read == [0, 3]


def test_pages_error_contradicts_members(tmp_path: Path) -> None:
    shard = write_documents(tmp_path / "a.tar", {"a": [1]})
    with pytest.raises(ValueError, match=r"pages is 'error', .* and sample is 'members', .* give only one of them"):
        PackedImageLoader(shard, batch_size=1, sample="members", pages="error")


def test_members_are_the_same_for_any_number_of_threads(tmp_path: Path) -> None:
    shards = [write_documents(tmp_path / f"{i}.tar", {f"a{i}": [2, 1], f"b{i}": [1, 3]}) for i in range(6)]
    one, many = (scan(shards, sample="members", num_threads=threads) for threads in (1, 8))
    a: Any = one.samples
    b: Any = many.samples
    assert a.starts.tolist() == b.starts.tolist() == list(range(0, 25, 2))
    assert one.digest.tolist() == many.digest.tolist()
