"""Tables whose column of paths holds lists: the images of a row are one sample."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from patchnpack.loaders import open_index, update_index
from patchnpack.loaders.shards.opener import ShardOpener
from tests.loaders.index.samples.rows import jpeg

ROWS = [(["a.jpg", "b.jpg"], "x"), ([], "none"), (["c.jpg"], "y"), (["b.jpg", "", "a.jpg"], "z")]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of lists of paths beside its files, a.jpg to c.jpg, of widths 10 to 12."""
    for number, name in enumerate("abc"):
        (tmp_path / f"{name}.jpg").write_bytes(jpeg(10 + number, 20))
    lines = [json.dumps({"pages": paths, "label": label}) for paths, label in ROWS]
    (tmp_path / "docs.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "docs.jsonl"


def test_paths_of_a_row_are_one_sample(table: Path, tmp_path: Path) -> None:
    index = open_index(table, path="pages", sample="members", opener=ShardOpener(tmp_path / "cache"))
    assert index.samples is not None
    assert index.samples.starts.tolist() == [0, 2, 3, 5]
    assert index.width.tolist() == [10, 11, 12, 11, 10]
    assert list(index.keys) == ["a.jpg", "b.jpg", "c.jpg", "b.jpg#2", "a.jpg#2"]
    assert index.without_image.tolist() == [1]
    reader = index.reader()
    labels = [reader.read_member(0, *index.members["label"][row].tolist()).decode() for row in range(5)]
    assert labels == ["x", "x", "y", "z", "z"]


def test_changed_files_alone_are_read_again(table: Path, tmp_path: Path) -> None:
    path = tmp_path / "index.parquet"
    assert update_index(table, path, column="pages", sample="members")[2] == 3
    (tmp_path / "b.jpg").write_bytes(jpeg(30, 20))
    _, index, read = update_index(table, path, column="pages", sample="members")
    assert (read, index.width.tolist()) == (1, [10, 30, 12, 30, 10])


def test_lists_without_a_rule_are_refused_with_the_remedy(table: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"column 'pages' of .* holds lists of paths .* give sample='members'"):
        open_index(table, path="pages", opener=ShardOpener(tmp_path / "cache"))
