from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchnpack.report.size_table import are_size_tables, read_size_tables


def _csv(folder: Path, text: str, name: str = "sizes.csv") -> list[str]:
    (folder / name).write_text(text)
    return [str(folder / name)]


def _parquet(folder: Path, **columns: Any) -> list[str]:
    pq.write_table(pa.table(columns), folder / "sizes.parquet")
    return [str(folder / "sizes.parquet")]


@pytest.mark.parametrize(
    "text",
    [
        "width,height\n640,480\n5,7\n",
        "Height , WIDTH\n480,640\n 7,5\n\n",
        "w,h\n640.0,480.00\n5.,7\n",
        'url,image_width,image_height\n"a, b\nc",640,480\n\xe4,5,7\n',
        "width,height,original_width,original_height\n640,480,1,1\n5,7,1,1\n",
    ],
)
def test_every_spelling_of_the_columns_gives_the_same_sizes(text: str, tmp_path: Path) -> None:
    found = read_size_tables(_csv(tmp_path, text))
    assert (found.width.tolist(), found.height.tolist()) == ([640, 5], [480, 7])
    assert (found.too_large, found.counted) == (0, False)


def test_compressed_tab_separated_and_parquet_tables_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"width,height\n640,480\n"))
    tables = [str(tmp_path / "a.csv.gz"), *_csv(tmp_path, "width\theight\n5\t7\n", "b.TSV")]
    tables += _parquet(tmp_path, url=["x", "y"], WIDTH=pa.array([1, 2], pa.uint16()), HEIGHT=[3.0, 4.0])
    assert are_size_tables(tables)
    found = read_size_tables(tables)
    assert (found.width.tolist(), found.height.tolist()) == ([640, 5, 1, 2], [480, 7, 3, 4])


def test_a_row_with_a_count_stands_for_so_many_images_in_random_order(tmp_path: Path) -> None:
    found = read_size_tables(_csv(tmp_path, "width,height,Count\n640,480,300\n5,7,200\n"))
    assert found.counted
    rows = found.rows(seed=1)
    assert sorted(rows.width.tolist()) == [5] * 200 + [640] * 300
    assert 40 < np.count_nonzero(rows.width[:200] == 5) < 120
    assert rows.width.tolist() != found.rows(seed=2).width.tolist()


def test_images_that_a_loader_refuses_for_their_size_are_counted(tmp_path: Path) -> None:
    found = read_size_tables(_csv(tmp_path, "width,height\n20000,10000\n20000,8000\n999999999999999999,2\n"))
    assert (found.width.tolist(), found.too_large) == ([20000], 2)
    with pytest.raises(ValueError, match=r"all 1 images of .* have more than 178,956,970 pixels.* first 20000x10000"):
        read_size_tables(_csv(tmp_path, "width,height\n20000,10000\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read: Empty CSV file; its first line must name the columns, such as width,height"),
        ("width,height\n", "has no rows; give at least one image"),
        ("640,480\n5,7\n", "has the columns '640', '480', but not width and height .or w and h, or image_width and"),
        (
            "width:height\n5:7\n",
            "has the columns 'width:height', but not .* in its first line, separated by commas, sem",
        ),
        ("width,count\n5,7\n", "has the columns 'width', 'count', but not"),
        ("width,height,Width\n5,7,5\n", "has 2 columns named 'width'; leave one of them"),
        ("width,height\n5,7\n5,-1\n", "row 2 of table .* has '-1' in column 'height'; it must be a whole number of at"),
        ("width,height\n5,7\n0,1\n", "row 2 of table .* has '0' in column 'width'"),
        ("width,height\n5.5,7\n", "row 1 of table .* has '5.5' in column 'width'"),
        ("width,height\n5,wide\n", "row 1 of table .* has 'wide' in column 'height'"),
        ("width,height\n,7\n", "row 1 of table .* has '' in column 'width'.*: correct the row or leave it out"),
        ("width,height\n5\n", "Expected 2 columns, got 1"),
        ("width,height,count\n5,7,0\n", "row 1 of table .* has '0' in column 'count'"),
        ("width,height,count\n5,7,999999999999\n", "counts 999,999,999,999 images; a report takes at most 200,000,000"),
    ],
)
def test_an_unusable_table_is_an_error_with_the_value_and_the_fix(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_size_tables(_csv(tmp_path, text))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"width": [5, None], "height": [7, 7]}, "row 2 of table .* has None in column 'width'"),
        ({"width": [5, 5.5], "height": [7, 7]}, "row 2 of table .* has 5.5 in column 'width'"),
        ({"width": [[5]], "height": [7]}, "column 'width' of table .* holds list<.*>; it must hold whole numbers"),
        ({"width": pa.array([2**64 - 1], pa.uint64()), "height": [7]}, "has 18446744073709551615 in column 'width'"),
    ],
)
def test_an_unusable_parquet_table_is_an_error(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_size_tables(_parquet(tmp_path, **columns))


def test_parquet_shards_and_other_sources_are_not_tables(tmp_path: Path) -> None:
    assert not are_size_tables(_parquet(tmp_path, image=[b"x"], width=[5], height=[7]))
    assert not are_size_tables(_parquet(tmp_path, image=[{"bytes": b"x", "path": ""}], width=[5], height=[7]))
    assert not are_size_tables(_parquet(tmp_path, width=[5]))
    assert not are_size_tables(["train-{000000..000001}.tar", "none.parquet", str(tmp_path)])
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    assert not are_size_tables([str(tmp_path / "damaged.parquet")])
    with pytest.raises(ValueError, match=r"'a\.csv' is a table of sizes and 'b\.tar' is not; give tables or shards"):
        are_size_tables(["b.tar", "a.csv"])


def test_a_missing_or_remote_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"table 'none\.csv' does not exist in .*; correct the path"):
        read_size_tables(["none.csv"])
    with pytest.raises(ValueError, match=r"table 's3://bucket/a\.csv' is remote; copy it to this machine"):
        read_size_tables(["s3://bucket/a.csv"])


@pytest.mark.parametrize(
    "column",
    [
        pa.array([640, 5]).dictionary_encode(),
        pa.array(["640", "5"]).dictionary_encode(),
        pa.array(["640", "5"], pa.string_view()),
        pa.array([640, 5], pa.decimal128(10, 2)),
        pa.array([640, 5], pa.float32()),
    ],
    ids=lambda column: str(column.type),
)
def test_sizes_of_any_type_that_holds_whole_numbers_are_read(column: pa.Array, tmp_path: Path) -> None:
    tables = _parquet(tmp_path, width=column, height=[480, 7])
    assert are_size_tables(tables)
    assert read_size_tables(tables).width.tolist() == [640, 5]


@pytest.mark.parametrize(
    "image",
    [
        pa.array([b"x"], pa.binary_view()),
        pa.array([b"x"]).dictionary_encode(),
        pa.array([[b"x"]]),
        pa.array([{"bytes": b"x", "path": ""}]),
    ],
    ids=lambda column: str(column.type),
)
def test_table_with_sizes_and_images_is_a_shard(image: pa.Array, tmp_path: Path) -> None:
    assert not are_size_tables(_parquet(tmp_path, width=[640], height=[480], image=image))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("excel.csv", b"width;height\r\n640;480\r\n5;7\r\n"),
        ("tabs.csv", b"width\theight\n640\t480\n5\t7\n"),
        ("commas.tsv", b"width,height\n640,480\n5,7\n"),
        ("unicode.csv", "width\theight\r\n640\t480\r\n5\t7\r\n".encode("utf-16")),
        ("mark.csv", b"\xef\xbb\xbfwidth;height\n640;480\n5;7\n"),
        ("told.csv", b"sep=;\r\nwidth;height\r\n640;480\r\n5;7\r\n"),
        ("bar.csv", b"sep=|\nwidth|height\n640|480\n5|7\n"),
        ("quotes.csv", b'"name";"width";"height"\n"a;b";640;480\n"c";5;7\n'),
        ("lines.csv", b"width;height\r640;480\r5;7\r"),
        ("compressed.csv", gzip.compress(b"width,height\n640,480\n5,7\n")),
        ("plain.csv.gz", b"width,height\n640,480\n5,7\n"),
        ("unicode.csv.gz", gzip.compress("width;height\n640;480\n5;7\n".encode("utf-16"))),
    ],
)
def test_tables_are_read_as_spreadsheets_write_them(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    found = read_size_tables([str(tmp_path / name)])
    assert (found.width.tolist(), found.height.tolist()) == ([640, 5], [480, 7])


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("cut.csv.gz", gzip.compress(b"width,height\n640,480\n" * 999)[:60]),
        ("odd.csv", "width,height\n640,480\n".encode("utf-16") + b"\0"),
    ],
)
def test_damaged_table_is_named(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"table '.*{name}'"):
        read_size_tables([str(tmp_path / name)])
