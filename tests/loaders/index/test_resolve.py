"""Choosing the index, and scanning only changed shards again."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import patchnpack.loaders.index.scanner as scanner
from patchnpack.loaders import PackedImageLoader, load_index, open_index, save_index, scan, update_index
from patchnpack.loaders.shards.opener import ShardOpener
from patchnpack.loaders.shards.outside import Outside
from patchnpack.packer import Packing
from tests.images import rewrite_tar

PACKING = Packing(seq_len=64, patch_size=8)


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The scanned shards, in order."""
    names: list[str] = []
    scan_shard = scanner._scan_shard

    def noted(path: str, *rest: Any) -> Any:
        names.append(Path(path).name)
        return scan_shard(path, *rest)

    monkeypatch.setattr(scanner, "_scan_shard", noted)
    return names


@pytest.fixture
def shards(make_drawn: Callable[..., Any]) -> list[str]:
    found: list[str] = make_drawn((5, 3, 4)).shards
    return found


def touch(path: str) -> None:
    os.utime(path, ns=(0, os.stat(path).st_mtime_ns + 1_000_000))


def test_scan_is_cached_and_only_changed_shards_are_read_again(
    shards: list[str], scanned: list[str], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    first = open_index(shards, opener=ShardOpener(cache))
    assert sorted(scanned) == ["drawn-000.tar", "drawn-001.tar", "drawn-002.tar"]
    assert list(open_index(shards, opener=ShardOpener(cache)).keys) == list(first.keys)
    assert len(scanned) == 3
    touch(shards[1])
    again = open_index(shards, opener=ShardOpener(cache))
    assert scanned[3:] == ["drawn-001.tar"]
    assert list(again.keys) == list(first.keys)
    assert again.versions[1] == str(os.stat(shards[1]).st_mtime_ns)
    open_index(shards, opener=ShardOpener(cache))
    assert len(scanned) == 4
    open_index(shards[:2], opener=ShardOpener(cache))
    open_index(shards, opener=ShardOpener(cache), image="png")
    assert len(scanned) == 9


def test_damaged_cached_index_is_replaced_with_a_log_line(
    shards: list[str], scanned: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_index(shards, opener=ShardOpener(tmp_path / "cache"))
    (cached,) = (tmp_path / "cache" / "indexes").iterdir()
    cached.write_bytes(cached.read_bytes()[:50])
    assert len(open_index(shards, opener=ShardOpener(tmp_path / "cache"))) == 12
    assert "cannot be read" in caplog.text
    assert len(scanned) == 6
    load_index(cached)


def test_unwritable_cache_gives_a_log_line_and_the_index(
    shards: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "indexes").write_text("no folder")
    with caplog.at_level(logging.WARNING, "patchnpack"):
        assert len(open_index(shards, opener=ShardOpener(tmp_path / "cache"))) == 12
    assert "the index cannot be cached" in caplog.text


def test_cache_that_is_a_file_is_refused_before_work_starts(shards: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(
        ValueError, match=r"the cache '.*file' is a file; set cache_dir= or \$PATCHNPACK_CACHE to a folder"
    ):
        PackedImageLoader(shards, PACKING, batch_size=1, cache_dir=tmp_path / "file")


def test_index_beside_the_shards_is_used_for_any_subset(shards: list[str], scanned: list[str], tmp_path: Path) -> None:
    path, index, read = update_index(shards)
    assert (path, len(index), read) == (tmp_path / "index.parquet", 12, 3)
    scanned.clear()
    loader = PackedImageLoader([shards[2], shards[0]], PACKING, batch_size=1)
    assert list(loader.index.keys) == [*index.keys[8:], *index.keys[:5]]
    assert PackedImageLoader(str(path), PACKING, batch_size=1).index.shards == tuple(shards)
    assert scanned == []
    PackedImageLoader(
        shards, PACKING, batch_size=1, image="jpg;png;webp"
    )  # the index was made for other extensions, so it is not used
    assert len(scanned) == 3
    save_index(index.select([0, 1]), path)
    assert (
        len(PackedImageLoader(shards, PACKING, batch_size=1).index) == 12
    )  # the index lacks a shard, so it is not used
    assert len(scanned) == 6


def test_index_is_brought_up_to_date_shard_by_shard(
    shards: list[str], scanned: list[str], tmp_path: Path, write_tar: Any
) -> None:
    path, _, read = update_index(shards[:2])
    assert read == 2
    assert update_index(shards)[2] == 1
    assert load_index(path).shards == tuple(shards)
    assert update_index(shards)[2] == 0
    touch(shards[0])
    assert update_index(shards[1])[2] == 1  # other shards of the file are updated, too
    Path(shards[0]).unlink()
    _, index, read = update_index(shards[1:])
    assert (index.shards, read) == (tuple(shards[1:]), 0)
    assert scanned == [f"drawn-{i:03}.tar" for i in (0, 1, 2, 0)]


def test_copied_shards_with_other_mtimes_are_accepted(shards: list[str], tmp_path: Path) -> None:
    path, index, _ = update_index(shards)
    for shard in shards:
        touch(shard)
    loader = PackedImageLoader(str(path), PACKING, batch_size=1)
    assert sorted(key for batch in loader for keys in batch.keys for key in keys) == sorted(index.keys)


def correct(shard: str, member: str, data: bytes) -> None:
    """Write a member again, as a new tar of the same size."""
    size = os.stat(shard).st_size
    rewrite_tar(shard, {member: data})
    assert os.stat(shard).st_size == size
    touch(shard)


@pytest.mark.parametrize("label", [b"7", b"17"])
def test_corrected_label_makes_an_index_stale(label: bytes, shards: list[str], tmp_path: Path) -> None:
    path, index, _ = update_index(shards)
    correct(shards[1], "s1i001.cls", label)
    expected = (
        rf"shard '{shards[1]}' was modified after .* was made \(1 of 3 shards were\): bytes outside its images, such "
        "as labels, differ; bring the index up to date: patchnpack index SHARDS -o "
    )
    for source, options in ((shards, {}), (shards, {"index": path}), (shards, {"index": index}), (index, {})):
        with pytest.raises(OSError, match=expected):
            PackedImageLoader(source, PACKING, batch_size=1, label="cls", **options)
    with pytest.raises(OSError, match=expected):
        PackedImageLoader(str(path), PACKING, batch_size=1)
    assert PackedImageLoader(shards[:1], PACKING, batch_size=1).index.keys[0] == "s0i000"
    assert update_index(shards)[2] == 1
    loader = PackedImageLoader(shards, PACKING, batch_size=1, label="cls")
    found = {
        key: value for batch in loader for key, value in zip(batch.keys[0], batch.labels[0].tolist(), strict=False)
    }
    assert found["s1i001"] == int(label)


@pytest.mark.parametrize("change", ["rename", "other member", "without image"])
def test_any_other_byte_outside_the_images_makes_an_index_stale(
    change: str, tmp_path: Path, write_tar: Any, draw_image: Any, encode_image: Any
) -> None:
    data = encode_image(draw_image(8, 8))
    members = {"a.jpg": data, "a.json": b"{}", "b.svg": data}
    path = write_tar(tmp_path / "a.tar", list(members.items()))
    index = update_index(path)[1]
    if change == "rename":
        members = {{"b.svg": "b.jpg"}.get(name, name): value for name, value in members.items()}
    elif change == "other member":
        members["a.json"] = b"[]"
    else:
        members["b.svg"] = data[:-1] + b"!"
    write_tar(path, list(members.items()))
    touch(path)
    with pytest.raises(OSError, match="was modified after"):
        PackedImageLoader(index, PACKING, batch_size=1)


def test_copies_are_compared_once(shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = update_index(shards)[1]
    calls: list[int] = []
    is_unchanged = Outside.is_unchanged

    def noted(self: Outside, shard: int, fd: int) -> bool:
        calls.append(shard)
        return is_unchanged(self, shard, fd)

    monkeypatch.setattr(Outside, "is_unchanged", noted)

    def opened() -> list[int]:
        calls.clear()
        open_index(shards, opener=ShardOpener(tmp_path / "cache"))
        return sorted(calls)

    assert opened() == []  # the mtimes are those of the index
    for shard in shards[1:]:
        touch(shard)
    assert opened() == [1, 2]
    assert opened() == []
    touch(shards[2])
    assert opened() == [1, 2]
    (tmp_path / "cache" / "copies").chmod(0o500)
    assert list(open_index(shards, opener=ShardOpener(tmp_path / "cache")).keys) == list(index.keys)


def test_index_in_memory_serves_plans_without_its_shards(shards: list[str]) -> None:
    index = scan(shards)
    for shard in shards:
        os.remove(shard)
    assert open_index(index) is index


def test_corrected_label_of_a_parquet_shard_is_found_when_it_is_read(
    tmp_path: Path, draw_image: Any, encode_image: Any
) -> None:
    path, copy = str(tmp_path / "a.parquet"), str(tmp_path / "copy.parquet")
    images = [encode_image(draw_image(8, 8, seed=i)) for i in range(4)]

    def write(to: str, labels: list[int]) -> None:
        table = pa.table({"image": images, "label": labels})
        pq.write_table(table, to, compression="none", use_dictionary=False)

    write(path, [1, 2, 3, 4])
    index = update_index(path, tmp_path / "index.parquet")[1]
    touch(path)
    assert sum(batch.num_images for batch in PackedImageLoader(index, PACKING, batch_size=1, label="label")) == 4
    write(copy, [1, 2, 9, 4])
    assert os.stat(copy).st_size == os.stat(path).st_size
    os.replace(copy, path)
    touch(path)
    loader = PackedImageLoader(path, PACKING, batch_size=1, label="label", index=index)
    with pytest.raises(OSError, match=r"a.parquet' was modified after it was indexed: bytes outside its images"):
        list(loader)


def test_shard_of_another_size_is_an_error_with_the_command_to_run(shards: list[str]) -> None:
    path, _, _ = update_index(shards)
    with open(shards[1], "ab") as file:
        file.write(bytes(512))
    for source in (str(path), shards):
        with pytest.raises(OSError, match=r"drawn-001.tar' has \d+ bytes but had \d+ when .*: patchnpack index SHARDS"):
            PackedImageLoader(source, PACKING, batch_size=1)
    Path(shards[1]).unlink()
    with pytest.raises(FileNotFoundError, match=r"drawn-001.tar' of index .* does not exist"):
        PackedImageLoader(str(path), PACKING, batch_size=1)


def test_given_index_must_hold_the_shards_and_their_images(shards: list[str], tmp_path: Path) -> None:
    save_index(scan(shards[:2]), tmp_path / "two.parquet")
    with pytest.raises(ValueError, match=r"lacks 1 of the 3 shards, such as '.*drawn-002.tar'; add them"):
        PackedImageLoader(shards, PACKING, batch_size=1, index=tmp_path / "two.parquet")
    with pytest.raises(ValueError, match=r"was made with image='jpg;jpeg;.*', but this loader has image='gif'"):
        PackedImageLoader(shards[:2], PACKING, batch_size=1, index=tmp_path / "two.parquet", image="gif")
    given = PackedImageLoader(shards[1], PACKING, batch_size=1, index=scan(shards))
    assert len(given.index) == 3


def test_index_in_a_missing_folder_is_refused_before_work_starts(
    shards: list[str], scanned: list[str], tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"the folder of '.*' does not exist; create it first"):
        update_index(shards, tmp_path / "none" / "index.parquet")
    assert scanned == []


def test_relative_paths_find_the_cached_index(
    shards: list[str], scanned: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [Path(shard).name for shard in shards]
    for _ in range(3):
        open_index(names, opener=ShardOpener(tmp_path / "cache"))
    assert len(scanned) == 3
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert [update_index("../drawn-*.tar", "../all.parquet")[2] for _ in range(2)] == [3, 0]
