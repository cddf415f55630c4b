"""Folders and tables of paths on a remote store: fsspec's memory:// stands for one, an HTTP server for addresses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from patchnpack.loaders.remote.errors import RemoteNotFound
from tests.images import draw_image, encode_image
from tests.loaders.files.making import images_of, loader_of, make_sources
from tests.loaders.loading import keys_of
from tests.loaders.misbehaving import Misbehaving

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    make_sources(tmp_path, 12)
    (tmp_path / "images" / "notes.md").write_text("x")
    (tmp_path / "images" / ".git").mkdir()
    (tmp_path / "images" / ".git" / "a.jpg").write_bytes(b"x")
    memory = fsspec.filesystem("memory")
    for path in tmp_path.rglob("*"):
        if path.is_file():
            memory.pipe_file(f"/bucket/{path.relative_to(tmp_path).as_posix()}", path.read_bytes())
    yield tmp_path
    memory.store.clear()


def test_a_remote_folder_is_read_like_a_local_one(home: Path) -> None:
    local = loader_of(home, home / "images", label="folder")
    for address in ("memory://bucket/images", "memory://bucket/images/"):
        remote = loader_of(home, address, label="folder")
        assert list(remote.index.keys) == list(local.index.keys)
        assert remote.index.unused_members.tolist() == local.index.unused_members.tolist() == [2]
        assert images_of(list(remote)) == images_of(list(local))


def test_a_remote_table_and_root(home: Path) -> None:
    want = images_of(list(loader_of(home, home / "train.csv", path="file", label="species")))
    for source, root in (("memory://bucket/train.csv", None), (str(home / "train.csv"), "memory://bucket")):
        loader = loader_of(home, source, path="file", label="species", root=root)
        assert images_of(list(loader)) == want


def test_a_table_may_hold_addresses(home: Path) -> None:
    rows = [f"memory://bucket/{path.relative_to(home).as_posix()}" for path in sorted(home.rglob("im*.jpg"))]
    table = home / "urls.csv"
    table.write_text("\n".join(["url", *rows]) + "\n")
    assert len(keys_of(list(loader_of(home, table)))) == 12


def test_secrets_of_addresses_are_in_no_key_and_their_index_is_private(tmp_path: Path) -> None:
    with Misbehaving() as server:
        urls = [server.add(f"/{name}", encode_image(draw_image(20, 20))) for name in ("a.jpg", "b.jpg")]
        table = tmp_path / "t.csv"
        table.write_text("".join(["url\n", *(f"{url}?X-Signature=secret\n" for url in urls)]))
        loader = loader_of(tmp_path, table)
        assert sorted(keys_of(list(loader))) == [f"{url}?..." for url in urls]
    (cached,) = (tmp_path / "cache" / "indexes").iterdir()
    assert cached.stat().st_mode & 0o077 == 0


def test_remote_files_that_are_known_are_not_read_again(home: Path) -> None:
    memory = fsspec.filesystem("memory")
    first = loader_of(home, "memory://bucket/images").index
    memory.rm("/bucket/images/cat/im02.jpg")
    again = loader_of(home, "memory://bucket/images").index
    assert len(again) == len(first) - 1


def test_a_remote_file_that_is_gone_is_named(home: Path) -> None:
    loader = loader_of(home, "memory://bucket/images", storage_options={"retry": {"attempts": 1}})
    fsspec.filesystem("memory").rm("/bucket/images/cat/im02.jpg")
    with pytest.raises(RemoteNotFound, match=r"memory://bucket/images/cat/im02.jpg' is gone since it was indexed"):
        list(loader)


def test_several_ranks_need_an_index_of_remote_files(home: Path) -> None:
    with pytest.raises(ValueError, match=r"are remote and not in an index.*patchnpack index SOURCE -o index.parquet"):
        loader_of(home, "memory://bucket/images", rank=0, world_size=2)
    loader_of(home, "memory://bucket/images")  # fills the cache, which the ranks share here
    loader_of(home, "memory://bucket/images", rank=0, world_size=2)


def test_a_remote_folder_of_shards_is_an_error(home: Path) -> None:
    with pytest.raises(ValueError, match=r"is a folder of 1 shards; name the shards: 'memory://bucket/shards/\*.tar'"):
        loader_of(home, "memory://bucket/shards")
