"""Tables of paths: columns, roots, labels, targets, and mistakes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchnpack import Mixture
from tests.images import draw_image, encode_image, write_tar
from tests.loaders.files.making import extras_of, images_of, loader_of, make_folder, make_sources
from tests.loaders.loading import keys_of


@pytest.fixture
def home(tmp_path: Path) -> Path:
    make_folder(tmp_path / "images", 8)
    return tmp_path


def write(home: Path, text: str, name: str = "t.csv") -> Path:
    (home / name).write_text(text)
    return home / name


def test_repeated_rows_get_numbered_keys_and_empty_paths_are_counted(home: Path) -> None:
    table = write(home, "file,n\nimages/cat/im02.jpg,1\n,2\nimages/cat/im02.jpg,3\n./images/cat/im06.jpg,4\n")
    loader = loader_of(home, table, label="n", shuffle=False)
    images = {image.key: image.label for batch in loader for image in batch.images()}
    assert images == {"images/cat/im02.jpg": 1, "images/cat/im02.jpg#2": 3, "./images/cat/im06.jpg": 4}
    assert loader.stats()["without_image"] == 1
    assert len(loader.index.files[0] or ()) == 2


def test_names_are_sorted_numbers_stay_and_empty_cells_have_no_label(home: Path) -> None:
    table = write(home, "path,name,n\nimages/cat/im02.jpg,b,7\nimages/cat/im06.jpg,a,3\nimages/dog/im03.jpg,,\n")
    named = loader_of(home, table, label="name")
    assert named.classes == {"a": 0, "b": 1}
    assert sorted(label for label, _ in images_of(list(named)).values()) == [-100, 0, 1]
    numbers = loader_of(home, table, label="n")
    assert numbers.classes is None
    assert (numbers.num_classes, numbers.stats()["without_label"]) == (8, 0)
    assert sorted(label for label, _ in images_of(list(numbers)).values()) == [-100, 3, 7]
    with pytest.raises(ValueError, match=r"label 'b' .* neither a whole number nor a known class"):
        loader_of(home, table, label="name", classes=["a"])


def test_lists_are_targets_and_other_columns_extras(home: Path) -> None:
    rows = [
        {"file_name": f"images/{name}.jpg", "vector": [i, 0.5], "caption": f"é {i}", "boxes": [{"x": i}]}
        for i, name in enumerate(["cat/im02", "cat/im06", "dog/im03"])
    ]
    write(home, "".join(json.dumps(row) + "\n" for row in rows), "t.jsonl")
    pq.write_table(pa.Table.from_pylist(rows), home / "t.parquet")
    for name in ("t.jsonl", "t.parquet"):
        loader = loader_of(home, home / name, path="file_name", label="vector", extras=["caption", "boxes"])
        assert loader.num_classes == 2
        for batch in loader:
            captions, boxes = extras_of(batch, "caption"), extras_of(batch, "boxes")
            for image in batch.images():
                number = int(captions[image.key][2:])
                assert np.asarray(image.label).tolist() == [number, 0.5]
                assert boxes[image.key] == [{"x": number}]


def test_a_callable_label_gets_the_columns(home: Path) -> None:
    table = write(home, "path,a,b\nimages/cat/im02.jpg,1,2\nimages/cat/im06.jpg,3,4\n")
    loader = loader_of(home, table, label=lambda members: int(members["a"]) * 10 + int(members["b"]))
    assert sorted(label for label, _ in images_of(list(loader)).values()) == [12, 34]


def test_paths_count_from_the_table_or_from_root(home: Path) -> None:
    (home / "tables").mkdir()
    table = write(home, "path\ncat/im02.jpg\n", "tables/t.csv")
    assert keys_of(list(loader_of(home, table, root=home / "images"))) == ["cat/im02.jpg"]
    with pytest.raises(FileNotFoundError, match=r"tables/cat/im02.jpg' does not exist \(1 of the 1 files .*; .*root="):
        loader_of(home, table)
    absolute = write(home, f"path\n{home}/images/cat/im02.jpg\n", "tables/a.csv")
    assert len(keys_of(list(loader_of(home, absolute)))) == 1
    assert len(keys_of(list(loader_of(home, absolute, root=home)))) == 1


@pytest.mark.parametrize(
    ("path", "root", "reason"),
    [
        ("../outside.jpg", None, "leads out of the folder of the table, "),
        ("x/../../outside.jpg", None, "leads out of the folder of the table, "),
        ("../outside.jpg", "images", "leads out of root="),
        ("/etc/hostname", "images", "which is not below root="),
        ("https://host/a.jpg", "images", "which is not below root="),
    ],
)
def test_a_path_that_leaves_the_root_is_refused(home: Path, path: str, root: str | None, reason: str) -> None:
    table = write(home, f"path\n{path}\n")
    with pytest.raises(ValueError, match=reason):
        loader_of(home, table, root=None if root is None else home / root)


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        ("file,label\na.jpg,1\n", {"path": "fil"}, "has no column 'fil'; its columns are file, label: name one, path="),
        ("a,b\n1,2\n", {}, "has no column 'path'; its columns are a, b: name the one of the paths with path="),
        ("path,url\n1,2\n", {}, r"has several columns that may be paths \(path, url\)"),
        ("width,height\n1,2\n", {}, "a table of sizes serves `patchnpack report` only"),
        ("path\n\n", {}, "no row of .* has a path"),
        ("path,path\na,b\n", {}, "several columns named 'path'"),
        ("path,jpg\nimages/cat/im02.jpg,1\n", {}, "has a column 'jpg', .*; rename the column"),
        ("path,a\nx\n", {}, "cannot be read"),
        ("path\nimages\n", {}, "is a folder; name a file"),
        ("path\nimages/cat/im02.jpg\n", {"image": "png"}, "is a table of paths; name their column with path="),
        ("path\nimages/cat/im02.jpg\n", {"label": "kind"}, "label 'kind' is absent from all 1 samples"),
        (
            "path,a\nimages/cat/im02.jpg,b\n",
            {"extras": ["kind"]},
            "extras asks for 'kind', .*; the columns beside the paths are a: name one",
        ),
    ],
)
def test_mistakes_with_tables_name_the_remedy(home: Path, text: str, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        loader_of(home, write(home, text), **options)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_tables_of_spreadsheets_are_read(home: Path, encoding: str, mark: str) -> None:
    lines = ["path|n", "images/cat/im02.jpg|1", "images/cat/im06.jpg|2"]
    (home / "t.csv").write_bytes("\r\n".join(lines).replace("|", mark).encode(encoding))
    loader = loader_of(home, home / "t.csv", path="path", label="n")
    assert sorted(label for label, _ in images_of(list(loader)).values()) == [1, 2]


def test_a_table_root_or_path_that_does_not_exist_is_named(home: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"table .*none.csv' does not exist"):
        loader_of(home, home / "none.csv")
    with pytest.raises(FileNotFoundError, match=r"root .*none' is no folder"):
        loader_of(home, write(home, "path\na.jpg\n"), root=home / "none")
    pq.write_table(pa.table({"path": [1]}), home / "n.parquet")
    with pytest.raises(ValueError, match=r"column 'path' of .* holds int64, not paths"):
        loader_of(home, home / "n.parquet", path="path")


def test_path_and_root_are_refused_where_no_table_is_read(home: Path) -> None:
    tar = write_tar(home / "x.tar", [("k.jpg", encode_image(draw_image(20, 20)))])
    index = loader_of(home, tar).index
    for source in (tar, index, Mixture({"a": (tar, 1)})):
        for name in ("path", "root"):
            with pytest.raises(ValueError, match=f"{name} is 'x', which is for tables of paths"):
                loader_of(home, source, **{name: "x"})
    with pytest.raises(ValueError, match="path is 3; give the name of a column"):
        loader_of(home, tar, path=3)


def test_a_parquet_file_without_path_is_a_shard(tmp_path: Path) -> None:
    table = make_sources(tmp_path, 4)["parquet"]["source"]
    with pytest.raises(ValueError, match="columns that can hold images"):
        loader_of(tmp_path, table)


def test_changed_cells_are_read_although_no_file_changed(home: Path) -> None:
    table = write(home, "path,n\nimages/cat/im02.jpg,1\n")
    assert [label for label, _ in images_of(list(loader_of(home, table, label="n"))).values()] == [1]
    write(home, "path,n\nimages/cat/im02.jpg,2\n")
    assert [label for label, _ in images_of(list(loader_of(home, table, label="n"))).values()] == [2]


@pytest.mark.parametrize("name", ["train.csv", "train.jsonl", "train.parquet"])
def test_compressed_tables_are_the_tables(tmp_path: Path, name: str) -> None:
    make_sources(home := tmp_path)
    want = images_of(list(loader_of(home, str(home / name), path="file", label="species")))
    packed = home / f"{name}.GZ"
    packed.write_bytes(gzip.compress((home / name).read_bytes()))
    assert images_of(list(loader_of(home, str(packed), path="file", label="species"))) == want
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"\.GZ' cannot be read: .*; write it again"):
        loader_of(home, str(packed), path="file", label="species")


def test_a_missing_label_of_a_table_names_its_columns(tmp_path: Path) -> None:
    make_sources(home := tmp_path)
    with pytest.raises(ValueError, match="the columns beside the paths are caption, species: name one of them"):
        loader_of(home, str(home / "train.csv"), path="file", label="kind")
    with pytest.raises(ValueError, match=r"their members are \.folder, \.jpg"):
        loader_of(home, str(home / "images"), label="kind")
