"""Index files: an index round-trips, and a damaged or foreign file is an error that names the file."""

from __future__ import annotations

import dataclasses
import os
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchnpack.loaders import Index, load_index, save_index, scan
from patchnpack.loaders.index.index_file import is_index
from patchnpack.loaders.index.table import Texts


def as_lists(index: Index) -> dict[str, Any]:
    """Every field as lists."""

    def plain(value: Any) -> Any:
        if isinstance(value, Texts):
            return list(value)
        return (value.dtype.name, value.tolist()) if isinstance(value, np.ndarray) else value

    found = {field.name: plain(getattr(index, field.name)) for field in fields(Index)}
    found["members"] = {extension: plain(where) for extension, where in index.members.items()}
    return found


@pytest.fixture(params=["index.parquet", "index.arrow"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def test_saved_index_loads_equal(path: Path, index: Index) -> None:
    save_index(index, path)
    assert as_lists(load_index(path)) == as_lists(index)


def test_parquet_has_one_row_group_per_shard_with_rows(index: Index, tmp_path: Path) -> None:
    save_index(index, tmp_path / "index.parquet")
    with pq.ParquetFile(tmp_path / "index.parquet") as file:
        rows = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert [n for n in rows if n] == [n for n in np.diff(index.starts).tolist() if n]


def test_columns_of_an_arrow_file_are_memory_mapped(index: Index, tmp_path: Path) -> None:
    save_index(Index.concatenate([index.select([0])] * 1000), tmp_path / "index.arrow")
    before = pa.total_allocated_bytes()
    loaded = load_index(tmp_path / "index.arrow")
    assert len(loaded) == 17_000
    assert pa.total_allocated_bytes() - before < (tmp_path / "index.arrow").stat().st_size / 20
    assert not loaded.width.flags.owndata
    assert not loaded.width.flags.writeable


def test_index_moves_with_its_folder(path: Path, drawn: Any, tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    shutil.copytree(drawn.folder, before)
    index = scan([str(before / Path(shard).name) for shard in drawn.shards])
    save_index(index, before / path.name)
    before.rename(after)
    loaded = load_index(after / path.name)
    assert loaded.shards == tuple(str(after / Path(shard).name) for shard in drawn.shards)
    assert loaded.reader().read(0, 0, 100) == (after / Path(drawn.shards[0]).name).read_bytes()[:100]


def test_shards_elsewhere_are_stored_as_absolute_paths(
    path: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_index(index, path)
    monkeypatch.chdir(path.parent)
    assert load_index(path.name).shards == index.shards


def test_empty_shards_and_bad_rows_round_trip(path: Path, tmp_path: Path, write_tar: Any) -> None:
    write_tar(tmp_path / "a.tar", [("x.txt", b"no image"), ("b.jpg", b"no jpeg"), ("ü.jpg", b"nor this")])
    write_tar(tmp_path / "b.tar", [])
    index = scan([tmp_path / "a.tar", tmp_path / "b.tar"])
    save_index(index, path)
    loaded = load_index(path)
    assert as_lists(loaded) == as_lists(index)
    assert sorted(loaded.bad) == [0, 1]
    assert loaded.without_image.tolist() == [1, 0]


@pytest.mark.parametrize("cut", [0, 7, 100, -1, -9])
def test_truncated_file_is_refused_by_name(cut: int, path: Path, index: Index) -> None:
    save_index(index, path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=rf"index '.*{path.name}' cannot be read .*make it again: patchnpack index"):
        load_index(path)


def test_other_parquet_files_are_refused(path: Path, index: Index) -> None:
    table = pa.table({"image": [b"1"]})
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        assert not is_index(str(path))
        with pytest.raises(ValueError, match=r"is not an index of shards"):
            load_index(path)
    save_index(index, path)
    assert is_index(str(path))


def test_index_of_another_version_is_refused(path: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchnpack.loaders.index.index_file.VERSION", 99)
    save_index(index, path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"has version 99, but this release reads 7; make it again"):
        load_index(path)


def test_missing_file_and_other_suffixes_are_refused(index: Index, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"does not exist; make it with: patchnpack index"):
        load_index(tmp_path / "index.parquet")
    for call in (lambda path: save_index(index, path), load_index):
        with pytest.raises(ValueError, match=r"ends in '.json'; name it .parquet or .arrow"):
            call(tmp_path / "index.json")
    assert list(tmp_path.iterdir()) == []


def test_failed_write_leaves_the_old_index(path: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    save_index(index, path)
    whole = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_index(index.select([0]), path)
    assert path.read_bytes() == whole
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_select_equals_a_scan_of_the_selected_shards(drawn: Any, index: Index) -> None:
    for which in ([0], [3, 1], [5, 4, 3, 2, 1, 0], [2]):
        shards = [drawn.shards[i] for i in which]
        if which != [2]:
            assert as_lists(index.select(which)) == as_lists(scan(shards))
        else:
            assert len(index.select(which)) == 0


def test_concatenate_inverts_select(index: Index) -> None:
    parts = [index.select([0, 1]), index.select([2]), index.select([3, 4, 5])]
    assert as_lists(Index.concatenate(parts)) == as_lists(index)


def test_index_with_a_missing_column_is_refused_by_name(index: Index, tmp_path: Path) -> None:
    path = tmp_path / "index.parquet"
    save_index(index, path)
    pq.write_table(pq.read_table(path).drop_columns(["digest"]), path)
    with pytest.raises(ValueError, match=r"index '.*index.parquet' lacks .*digest.*; make it again"):
        load_index(path)


@pytest.mark.parametrize("name", ["index.parquet", "index.arrow"])
def test_index_with_signed_addresses_is_readable_by_its_owner_only(name: str, index: Index, tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        save_index(index, tmp_path / name)
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o644
        for shard in ("https://host/a.tar?X-Amz-Signature=0a1b", "s3://me:word@bucket/a.tar"):
            shards = (shard, *index.shards[1:])
            save_index(dataclasses.replace(index, shards=shards), tmp_path / name)
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
            assert load_index(tmp_path / name).shards[0] == shard
    finally:
        os.umask(umask)
