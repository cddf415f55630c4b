"""Indexes on remote stores: finding, uploading, and the errors of both."""

from __future__ import annotations

import functools
import http.server
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from patchnpack.loaders import PackedImageLoader, load_index, open_index, save_index, scan, update_index
from patchnpack.loaders.index import remote_index
from patchnpack.loaders.remote.errors import RemoteError
from patchnpack.loaders.shards.opener import ShardOpener
from patchnpack.packer import Packing
from tests.images import rewrite_tar

PACKING = Packing(seq_len=64, patch_size=8)
QUICK = {"retry": {"attempts": 2, "pause_s": 0.01, "deadline_s": 20}}


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder with ETags, accepts PUTs, records requests, and answers requests for an index as configured."""

    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def end_headers(self) -> None:
        path = self.translate_path(self.path)
        if os.path.isfile(path):
            status = os.stat(path)
            self.send_header("ETag", f'"{status.st_mtime_ns:x}-{status.st_size:x}"')
        super().end_headers()

    def send_head(self) -> Any:
        self.server.asked.append(f"{self.command} {self.path.partition('?')[0]}")
        if ("index" in self.path or self.server.status == 500) and self.server.status:
            self.send_error(self.server.status)
            return None
        return super().send_head()

    def do_PUT(self) -> None:
        self.server.asked.append(f"PUT {self.path}")
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.status:
            return self.send_error(self.server.status)
        Path(self.translate_path(self.path)).write_bytes(data)
        self.send_response(201)
        self.send_header("Content-Length", "0")
        return self.end_headers()


class Server(http.server.ThreadingHTTPServer):
    def __init__(self, folder: str) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
        self.asked: list[str] = []
        self.status = 0
        self.address = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def server(make_drawn: Callable[..., Any], tmp_path: Path) -> Iterator[Server]:
    """Serves three shards. The missing indexes are forgotten after the test."""
    make_drawn((5, 3, 4))
    server = Server(str(tmp_path))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def shards(server: Server) -> str:
    return f"{server.address}/drawn-{{000..002}}.tar"


def opened(source: Any, cache: Path, **options: Any) -> Any:
    return open_index(source, opener=ShardOpener(cache, storage_options=QUICK), **options)


def fetched(server: Server) -> list[str]:
    return [request for request in server.asked if request.startswith("GET")]


def test_index_beside_remote_shards_is_found(server: Server, tmp_path: Path) -> None:
    url = f"{server.address}/index.parquet"
    path, index, read = update_index(shards(server), url, opener=ShardOpener(tmp_path / "a", storage_options=QUICK))
    assert (path, len(index), read) == (url, 12, 3)
    assert [request for request in server.asked if "PUT" in request] == ["PUT /index.parquet"]
    server.asked.clear()
    found = opened(shards(server), tmp_path / "b", may_scan=False)
    assert list(found.keys) == list(index.keys)
    assert found.shards == tuple(f"{server.address}/drawn-{i:03}.tar" for i in range(3))
    assert found.versions == index.versions
    assert fetched(server) == ["GET /index.parquet"]
    again = opened([f"{server.address}/drawn-002.tar"], tmp_path / "b")
    assert list(again.keys) == list(index.keys[8:])
    assert fetched(server) == ["GET /index.parquet"]  # the index is cached, and only its version was asked for


def test_remote_index_is_brought_up_to_date_shard_by_shard(server: Server, tmp_path: Path) -> None:
    url, opener = f"{server.address}/index.arrow", ShardOpener(tmp_path / "a", storage_options=QUICK)
    assert update_index(f"{server.address}/drawn-{{000..001}}.tar", url, opener=opener)[2] == 2
    _, index, read = update_index(shards(server), url, opener=opener)
    assert (len(index), read) == (12, 1)
    assert update_index(shards(server), url, opener=opener)[2] == 0
    assert sum("PUT" in request for request in server.asked) == 2
    assert len(opened(shards(server), tmp_path / "b", may_scan=False)) == 12


def test_index_of_local_shards_serves_uploaded_copies(server: Server, tmp_path: Path) -> None:
    update_index(sorted(map(str, tmp_path.glob("drawn-*.tar"))))
    for shard in tmp_path.glob("drawn-*.tar"):
        os.utime(shard, ns=(0, 10**18))  # a copy has another mtime
    loader = PackedImageLoader(
        shards(server), PACKING, batch_size=1, cache_dir=tmp_path / "b", rank=0, world_size=2, storage_options=QUICK
    )
    assert loader.index.shards == tuple(f"{server.address}/drawn-{i:03}.tar" for i in range(3))
    alone = PackedImageLoader(f"{server.address}/index.parquet", PACKING, batch_size=1, cache_dir=tmp_path / "b")
    local = PackedImageLoader(sorted(map(str, tmp_path.glob("drawn-*.tar"))), PACKING, batch_size=1)
    assert [batch.keys for batch in alone] == [batch.keys for batch in local]
    assert alone.stats()["bad_images"] == 0


@pytest.mark.parametrize("is_cached", [False, True])
@pytest.mark.parametrize("made_from", ["local shards", "remote shards"])
def test_corrected_label_of_a_remote_shard_is_an_error(
    made_from: str, is_cached: bool, server: Server, tmp_path: Path
) -> None:
    """By its ETag, or by its digest where the index was made from local copies and holds no ETag."""
    local, opener = sorted(map(str, tmp_path.glob("drawn-*.tar"))), ShardOpener(tmp_path / "a", storage_options=QUICK)
    if made_from == "local shards":
        update_index(local)
    else:
        update_index(shards(server), f"{server.address}/index.parquet", opener=opener)

    def loader() -> PackedImageLoader:
        return PackedImageLoader(
            shards(server), PACKING, batch_size=1, label="cls", cache_dir=tmp_path / "b", storage_options=QUICK
        )

    if is_cached:
        assert sum(batch.num_images for batch in loader()) == 12
        server.asked.clear()
        assert sum(batch.num_images for batch in loader()) == 12
        assert not any("GET /drawn" in request for request in server.asked)
    size = os.stat(local[1]).st_size
    rewrite_tar(local[1], {"s1i001.cls": b"17"})
    assert os.stat(local[1]).st_size == size
    os.utime(local[1], ns=(0, 10**18))
    by_download = made_from == "remote shards" and not is_cached
    expected = "has changed" if by_download else "drawn-001.tar' was modified after it was indexed"
    with pytest.raises(OSError, match=expected):
        list(loader())


def test_cached_shards_are_used_while_the_store_is_unreachable(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url, opener = f"{server.address}/index.parquet", ShardOpener(tmp_path / "a", storage_options=QUICK)
    index = update_index(shards(server), url, opener=opener)[1]

    def loader() -> PackedImageLoader:
        return PackedImageLoader(index, PACKING, batch_size=1, cache_dir=tmp_path / "b", storage_options=QUICK)

    first = [batch.keys for batch in loader()]
    server.status = 500
    with caplog.at_level(logging.INFO, "patchnpack"):
        assert [batch.keys for batch in loader()] == first
    assert "cached shards are used without asking" in caplog.text


def test_uploaded_shard_of_another_size_is_an_error(server: Server, tmp_path: Path) -> None:
    update_index(sorted(map(str, tmp_path.glob("drawn-*.tar"))))
    with (tmp_path / "drawn-001.tar").open("ab") as file:
        file.write(bytes(512))
    loader = PackedImageLoader(shards(server), PACKING, batch_size=1, cache_dir=tmp_path / "b", storage_options=QUICK)
    with pytest.raises(OSError, match=r"drawn-001.tar' has \d+ bytes, its index says \d+; bring the index up to date"):
        list(loader)


def test_missing_index_is_asked_for_once_per_process(server: Server, tmp_path: Path) -> None:
    for _ in range(3):
        opened(shards(server), tmp_path / "b")
    asked = [request for request in server.asked if "index" in request]
    assert asked == ["HEAD /index.parquet", "HEAD /index.arrow"]
    update_index(shards(server), f"{server.address}/index.parquet", opener=ShardOpener(tmp_path / "b"))
    server.asked.clear()
    opened(shards(server), tmp_path / "c", may_scan=False)  # the uploaded index is no longer missing
    assert fetched(server) == ["GET /index.parquet"]


def test_refused_request_for_an_index_is_logged_and_repeated_later(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    update_index(shards(server), f"{server.address}/index.parquet", opener=ShardOpener(tmp_path / "a"))
    server.status = 403
    with caplog.at_level(logging.INFO, "patchnpack"):
        assert len(opened(shards(server), tmp_path / "b")) == 12
    assert "the search for an index beside the shards is skipped" in caplog.text
    assert "403 Forbidden" in caplog.text
    server.status = 0
    assert len(opened(shards(server), tmp_path / "c", may_scan=False)) == 12


def test_unreachable_store_is_an_error(server: Server, tmp_path: Path) -> None:
    server.status = 503
    with pytest.raises(RemoteError, match=r"index.parquet: the server answered 503 .* \(2 attempts"):
        opened(shards(server), tmp_path / "b")


def test_refused_upload_is_an_error_with_the_address(server: Server, tmp_path: Path) -> None:
    opener = ShardOpener(tmp_path / "a", storage_options=QUICK)
    index = scan(shards(server), opener=opener)
    server.status = 403
    with pytest.raises(RemoteError, match=r"/index.parquet: the server answered 403 Forbidden .*give storage_options="):
        remote_index.save_remote_index(index, f"{server.address}/index.parquet", opener)


def test_index_of_signed_addresses_is_not_uploaded(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"drawn-000.tar\?...' may hold a secret") as caught:
        update_index(
            f"{server.address}/drawn-000.tar?sig=WORD", f"{server.address}/index.parquet", opener=ShardOpener(tmp_path)
        )
    assert "WORD" not in str(caught.value)
    assert not any("PUT" in request for request in server.asked)


def test_other_file_is_refused_as_index_and_skipped_beside_shards(server: Server, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    pa = pytest.importorskip("pyarrow")
    pq.write_table(pa.table({"image": [b""]}), tmp_path / "index.parquet")
    assert len(opened(shards(server), tmp_path / "b")) == 12
    with pytest.raises(ValueError, match=r"index.parquet' is not an index of shards; make one: patchnpack index"):
        opened(shards(server), tmp_path / "b", index=f"{server.address}/index.parquet")
    with pytest.raises(ValueError, match=r"ends in '.idx'; name it .parquet or .arrow"):
        update_index(shards(server), f"{server.address}/all.idx", opener=ShardOpener(tmp_path / "b"))


def test_index_copied_to_a_server_names_the_shards_there(server: Server, tmp_path: Path) -> None:
    update_index(shards(server), f"{server.address}/index.parquet", opener=ShardOpener(tmp_path / "a"))
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in [*tmp_path.glob("drawn-*.tar"), tmp_path / "index.parquet"]:
        shutil.copy2(file, copy)
    found = opened(f"{server.address}/copy/drawn-{{000..002}}.tar", tmp_path / "b", may_scan=False)
    assert found.shards == tuple(f"{server.address}/copy/drawn-{i:03}.tar" for i in range(3))
    assert load_index(copy / "index.parquet").shards == tuple(str(copy / f"drawn-{i:03}.tar") for i in range(3))
    save_index(found, tmp_path / "here.parquet")
    assert load_index(tmp_path / "here.parquet").shards == found.shards


@pytest.mark.parametrize(
    ("addresses", "folder"),
    [
        (["s3://b/t/0.tar", "s3://b/t/1.tar"], "s3://b/t"),
        (["s3://b/t/a/0.tar", "s3://b/t/ab/1.tar"], "s3://b/t"),
        (["s3://b/0.tar"], "s3://b"),
        (["s3://b/0.tar", "s3://c/0.tar"], None),
        (["https://h/a/0.tar?sig=a/b", "https://h/a/1.tar#x/y"], "https://h/a"),
    ],
)
def test_common_folder_ignores_queries_and_partial_names(addresses: list[str], folder: str | None) -> None:
    assert remote_index.common_folder(addresses) == folder
