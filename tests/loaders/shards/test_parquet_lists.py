"""Parquet shards whose rows hold several images: columns of lists, and several columns of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchnpack.loaders import Index, open_index, scan
from patchnpack.loaders.imaging.header import read_header
from patchnpack.loaders.shards.opener import ShardOpener
from tests.loaders.index.samples.rows import jpeg
from tests.loaders.shards.tables import IMAGE

SIZES = [[10, 11], [], [12], None, [13, 14, 15]]


def struct(width: int) -> dict[str, Any]:
    return {"bytes": jpeg(width, 20), "path": None}


def lists_of(kind: pa.DataType) -> pa.Array:
    as_struct = pa.types.is_struct(kind.value_type)
    rows = [None if row is None else [struct(w) if as_struct else jpeg(w, 20) for w in row] for row in SIZES]
    return pa.array(rows, kind)


def read_widths(index: Index, opener: ShardOpener) -> list[int]:
    reader = index.reader(opener)
    return [
        read_header(reader.read(0, int(offset), int(nbytes))).width
        for offset, nbytes in zip(index.offset, index.nbytes, strict=True)
    ]


@pytest.fixture
def opener(tmp_path: Path) -> ShardOpener:
    return ShardOpener(tmp_path / "cache")


@pytest.mark.parametrize(
    "kind",
    [pa.list_(IMAGE), pa.large_list(IMAGE), pa.list_(pa.binary()), pa.large_list(pa.large_binary())],
    ids=["structs", "large lists of structs", "bytes", "large"],
)
def test_images_of_a_list_are_one_sample(kind: pa.DataType, tmp_path: Path, opener: ShardOpener) -> None:
    path = str(tmp_path / "b.parquet")
    pq.write_table(pa.table({"label": [0, 1, 2, 3, 4], "images": lists_of(kind), "more": ["x"] * 5}), path)
    index = open_index(path, sample="members", opener=opener)
    assert index.samples is not None
    assert index.samples.starts.tolist() == [0, 2, 3, 6]
    assert index.width.tolist() == [10, 11, 12, 13, 14, 15]
    assert index.cls[:] == ["0", "0", "2", "4", "4", "4"]
    assert list(index.keys) == [f"b/{row:08d}" for row in (0, 0, 2, 4, 4, 4)]
    assert index.without_image.tolist() == [2]
    assert index.kinds["images"] == "list"
    assert read_widths(index, opener) == index.width.tolist()
    assert index.name_of(1) == "b/00000000.images[1]"


def test_null_in_a_list_is_no_image(tmp_path: Path, opener: ShardOpener) -> None:
    path = str(tmp_path / "a.parquet")
    rows = [[struct(10), None, struct(11)], [{"bytes": None, "path": "x.jpg"}]]
    pq.write_table(pa.table({"images": pa.array(rows, pa.list_(IMAGE))}), path)
    index = open_index(path, sample="members", opener=opener)
    assert (index.width.tolist(), index.without_image.tolist()) == ([10, 11], [1])
    assert read_widths(index, opener) == [10, 11]


def test_named_columns_are_the_images_of_a_row_in_their_order(tmp_path: Path, opener: ShardOpener) -> None:
    path = str(tmp_path / "a.parquet")
    left, right = [jpeg(10, 9), jpeg(11, 9)], [struct(20), None]
    pages = [[jpeg(30, 9), jpeg(31, 9)], [jpeg(32, 9)]]
    table = {"left": left, "right": pa.array(right, IMAGE), "pages": pa.array(pages, pa.list_(pa.binary()))}
    pq.write_table(pa.table({**table, "label": [1, 2]}), path)
    index = open_index(path, image="right;pages;left", sample="members", opener=opener)
    assert index.width.tolist() == [20, 30, 31, 10, 32, 11]
    assert read_widths(index, opener) == index.width.tolist()
    assert set(index.members) == {"left", "right", "pages", "label"}
    assert (index.members["left"][:, 0] >= 0).tolist() == [False, False, False, True, False, True]


def test_without_members_lists_stay_what_they_were(tmp_path: Path, opener: ShardOpener) -> None:
    path = str(tmp_path / "a.parquet")
    table = {"image": [jpeg(10, 9)] * 2, "others": pa.array([[b"x"], [b"y", b"z"]], pa.list_(pa.binary()))}
    pq.write_table(pa.table(table), path)
    index = open_index(path, opener=opener)
    assert (index.samples, index.kinds) == (None, {"others": "json"})
    offset, nbytes = index.members["others"][1].tolist()
    assert index.reader(opener).read(0, offset, nbytes) == b'["eQ==", "eg=="]'


def test_list_of_images_without_a_rule_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"images": lists_of(pa.list_(IMAGE))}), path)
    with pytest.raises(
        ValueError, match=r"holds several images per row .* give sample='members' to make each row a sample"
    ):
        scan(path)


def test_images_and_lists_without_a_name_are_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"cover": pa.array([struct(9)] * 5, IMAGE), "pages": lists_of(pa.list_(IMAGE))}), path)
    with pytest.raises(
        ValueError, match=r"2 columns that can hold the images of a sample .* in order: image='cover;pages'"
    ):
        scan(path, sample="members")


def test_column_called_as_an_image_of_a_list_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"images": lists_of(pa.list_(IMAGE)), "images[0]": ["x"] * 5}), path)
    with pytest.raises(ValueError, match=r"also what an image of a list is called; rename the latter"):
        scan(path, sample="members")


def test_opener_of_lists_can_be_pickled(tmp_path: Path, opener: ShardOpener) -> None:
    import pickle

    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"images": lists_of(pa.list_(IMAGE))}), path)
    index = open_index(path, sample="members", opener=opener)
    reader = pickle.loads(pickle.dumps(index.reader(opener)))  # noqa: S301  # what it has dumped
    assert read_header(reader.read(0, int(index.offset[5]), int(index.nbytes[5]))).width == 15
    ahead = index.reader(opener).prefetching(iter([0]), 1, True)
    assert read_header(ahead.read(0, int(index.offset[3]), int(index.nbytes[3]))).width == 13
    ahead.opener.close()
