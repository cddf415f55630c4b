"""Remote shards and parquet shards give the same batches as local tars, through the cache."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from patchnpack.loaders import PackedImageLoader, load_index, scan, update_index
from patchnpack.loaders.remote.errors import RemoteError
from patchnpack.loaders.shards.opener import ShardOpener
from patchnpack.packer import PackedBatch, Packing

PACKING = Packing(seq_len=64, patch_size=8)

Contents = Callable[[PackedBatch], tuple[object, ...]]


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder with ETags and records each GET."""

    def log_message(self, *_: Any) -> None:
        pass

    def end_headers(self) -> None:
        path = self.translate_path(self.path)
        if os.path.isfile(path):
            status = os.stat(path)
            self.send_header("ETag", f'"{status.st_mtime_ns:x}-{status.st_size:x}"')
        super().end_headers()

    def do_GET(self) -> None:
        self.server.got.append(self.path.rpartition("/")[2])  # type: ignore[attr-defined]
        super().do_GET()


@pytest.fixture
def served(drawn: Any) -> Iterator[tuple[str, list[str]]]:
    """The address of the served shards, and the list of fetched names."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(drawn.folder)))
    server.got = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", server.got  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


def open_files() -> list[str]:
    """The open files of this process."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return found


def packed(source: Any, **options: Any) -> PackedImageLoader:
    settled: dict[str, Any] = {"batch_size": 2, "shuffle": True, "label": "cls", "extras": ["txt"], "num_threads": 2}
    return PackedImageLoader(source, **({"packing": PACKING} | settled | options))


# Remote shards


def test_remote_shards_give_the_local_batches_and_are_fetched_once(
    drawn: Any, served: tuple[str, list[str]], tmp_path: Path, contents: Contents
) -> None:
    address, got = served
    names = [Path(shard).name for shard in drawn.shards]
    local, loader = packed(drawn.shards), packed(f"{address}/drawn-{{000..005}}.tar", cache_dir=tmp_path)
    assert sorted(got) == sorted(names)
    for _ in range(2):
        assert [contents(batch) for batch in loader] == [contents(batch) for batch in local]
    assert sorted(got) == sorted(names)
    again = packed(f"{address}/drawn-{{000..005}}.tar", cache_dir=tmp_path)
    assert [contents(batch) for batch in again] == [contents(batch) for batch in packed(drawn.shards)]
    assert sorted(got) == sorted(names)
    assert again.stats()["cache_hits"] >= 5
    assert again.stats()["cache_misses"] == 0
    assert local.stats()["cache_hits"] == local.stats()["cache_misses"] == 0


def test_small_cache_evicts_and_refetches_shards(
    drawn: Any, served: tuple[str, list[str]], tmp_path: Path, contents: Contents
) -> None:
    address, got = served
    largest = max(os.path.getsize(shard) for shard in drawn.shards)
    loader = packed(
        f"{address}/drawn-{{000..005}}.tar", cache_dir=tmp_path, cache_limit=largest + 100, shuffle_window=1
    )
    local = packed(drawn.shards, shuffle_window=1)
    for _ in range(3):
        assert [contents(batch) for batch in loader] == [contents(batch) for batch in local]
    assert len(got) > 12
    held = sum(path.stat().st_size for path in (tmp_path / "patchnpack-shards").iterdir())
    assert held <= largest + 100
    with pytest.raises(ValueError, match=r"bytes, more than the cache's limit of 1000; give a cache_limit="):
        packed(f"{address}/drawn-000.tar", cache_dir=tmp_path / "other", cache_limit=1000)


def test_shards_are_fetched_ahead(drawn: Any, served: tuple[str, list[str]], tmp_path: Path) -> None:
    address, got = served
    index = scan([f"{address}/{Path(shard).name}" for shard in drawn.shards], opener=ShardOpener(tmp_path / "first"))
    got.clear()
    iterator = iter(packed(index, cache_dir=tmp_path / "second", shuffle_window=1, shuffle=False))
    next(iterator)
    deadline = threading.Event()
    for _ in range(200):
        if len(got) == 5:
            break
        deadline.wait(0.05)
    assert sorted(set(got)) == sorted(got)
    assert len(got) >= 5  # the empty shard is not read
    del iterator
    assert not [t for t in threading.enumerate() if t.name.startswith("patchnpack")]


def test_resume_fetches_only_the_remaining_shards(make_drawn: Callable[..., Any], tmp_path: Path) -> None:
    drawn = make_drawn((6,) * 40)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path)))
    server.got = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        shards = [f"http://127.0.0.1:{server.server_port}/{Path(shard).name}" for shard in drawn.shards]
        index = scan(shards, opener=ShardOpener(tmp_path / "first"))
        packing = PACKING.replace(lookahead=8, balance=0)  # otherwise the last packs hold images of every shard
        options: dict[str, Any] = {"shuffle_window": 2, "batch_size": 1, "packing": packing}
        loader = packed(index, cache_dir=tmp_path / "first", **options)
        batches = list(loader)
        state = loader.state_dict(after=batches[len(batches) * 8 // 10])
        server.got.clear()  # type: ignore[attr-defined]
        resumed = packed(index, cache_dir=tmp_path / "second", **options)
        resumed.load_state_dict(state)
        held = 0
        for _ in resumed:
            held = max(held, sum("second" in link for link in open_files()))
        assert len(set(server.got)) <= 20  # type: ignore[attr-defined]
        assert held <= 20
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_spawned_workers_share_the_cache_and_forked_ones_cannot_fetch(
    drawn: Any, served: tuple[str, list[str]], tmp_path: Path, contents: Contents
) -> None:
    address, got = served
    index = scan([f"{address}/{Path(shard).name}" for shard in drawn.shards], opener=ShardOpener(tmp_path / "first"))
    got.clear()
    dataset = packed(index, cache_dir=tmp_path / "second", num_threads=1).as_dataset()
    data = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    assert [contents(batch) for batch in data] == [contents(batch) for batch in packed(drawn.shards)]
    assert sorted(set(got)) == sorted(got)
    # A forked worker can use cached shards.
    dataset = packed(index, cache_dir=tmp_path / "second", num_threads=1).as_dataset()
    assert len(list(DataLoader(dataset, batch_size=None, num_workers=1))) == len(list(packed(drawn.shards)))
    dataset = packed(index, cache_dir=tmp_path / "third", num_threads=1).as_dataset()
    iterator = iter(DataLoader(dataset, batch_size=None, num_workers=1))
    with pytest.raises(RemoteError, match=r"was forked from one that has fetched .*multiprocessing_context='spawn'"):
        next(iterator)
    iterator._shutdown_workers()  # type: ignore[attr-defined]


def test_several_ranks_need_an_index_of_remote_shards(
    served: tuple[str, list[str]], tmp_path: Path, contents: Contents, drawn: Any
) -> None:
    address, got = served
    source = f"{address}/drawn-{{000..005}}.tar"
    with pytest.raises(ValueError, match=r"are remote and have no index, .* patchnpack index SHARDS -o index.parquet"):
        packed(source, cache_dir=tmp_path, rank=0, world_size=2)
    assert got == []
    with pytest.raises(ValueError, match=r"the shards are remote, so the index needs a path"):
        update_index(source, opener=ShardOpener(tmp_path))
    path, _, read = update_index(source, tmp_path / "index.parquet", opener=ShardOpener(tmp_path))
    assert read == 6
    assert update_index(source, path, opener=ShardOpener(tmp_path))[2] == 0
    assert load_index(path).shards == tuple(f"{address}/drawn-{i:03}.tar" for i in range(6))
    for given in ({"source": source, "index": path}, {"source": str(path)}):
        loader = packed(**given, cache_dir=tmp_path, rank=1, world_size=2)
        expected = packed(drawn.shards, rank=1, world_size=2)
        assert [contents(batch) for batch in loader] == [contents(batch) for batch in expected]


def test_changed_remote_shard_is_an_error_with_its_name(
    served: tuple[str, list[str]], tmp_path: Path, make_drawn: Callable[..., Any], drawn: Any
) -> None:
    address, _ = served
    index = scan(f"{address}/drawn-000.tar", opener=ShardOpener(tmp_path / "first"))
    os.utime(drawn.shards[0], ns=(0, os.stat(drawn.shards[0]).st_mtime_ns + 10**9))
    with pytest.raises(RemoteError, match=r"drawn-000.tar: the file has changed .*; update the index"):
        list(packed(index, cache_dir=tmp_path / "second"))


# Parquet


def as_parquet(drawn: Any, folder: Path, layout: str) -> list[str]:
    """The drawn images as parquet files, a few rows per row group."""
    index = scan(drawn.shards)
    reader = index.reader()
    shards = []
    for s in range(len(index.shards)):
        rows = []
        for i in range(int(index.starts[s]), int(index.starts[s + 1])):
            data = reader.read(s, int(index.offset[i]), int(index.nbytes[i]))
            image: Any = {"bytes": data, "path": f"{i}.jpg"} if layout == "struct" else data
            key = index.keys[i]
            rows.append(
                {"__key__": key, "image": image, "label": drawn.labels[key], "txt": drawn.texts[key], "box": [i, 2.5]}
            )
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if layout == "struct" else pa.binary()
        schema = pa.schema(
            [
                ("__key__", pa.string()),
                ("image", kind),
                ("label", pa.int64()),
                ("txt", pa.string()),
                ("box", pa.list_(pa.float64())),
            ]
        )
        path = folder / f"part-{s}.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=4)
        shards.append(str(path))
    return shards


@pytest.mark.parametrize("layout", ["struct", "binary"])
def test_parquet_shards_give_the_batches_of_tar_shards(
    layout: str, drawn: Any, tmp_path: Path, contents: Contents
) -> None:
    shards = as_parquet(drawn, tmp_path, layout)
    loader = packed(shards, label="label", extras=["txt", "box"], cache_dir=tmp_path / "cache")
    assert loader.num_classes == 10
    tars = packed(drawn.shards)
    for _ in range(2):
        for batch, expected in zip(loader, tars, strict=True):
            boxes = batch.extras.pop("box")
            assert contents(batch) == contents(expected)
            assert boxes == [[[float(row), 2.5] for row in rows if row >= 0] for rows in batch.rows.tolist()]


def test_parquet_rows_are_written_to_the_cache_once_per_shard(drawn: Any, tmp_path: Path) -> None:
    shards = as_parquet(drawn, tmp_path, "struct")
    for _ in range(2):
        loader = packed(shards, label=None, cache_dir=tmp_path / "cache")
        assert sum(batch.num_images for batch in loader) == 60
    assert loader.stats()["cache_misses"] == 0
    assert loader.stats()["cache_hits"] >= 5  # two threads may open a shard at once
    spilled = list((tmp_path / "cache" / "patchnpack-shards").iterdir())
    assert len(spilled) == 5  # the empty one is never read


def test_parquet_keys_default_to_shard_and_row(tmp_path: Path, encode_image: Any) -> None:
    data = encode_image(Image.new("RGB", (16, 16)))
    pq.write_table(pa.table({"img": [data, None, data]}), tmp_path / "a.parquet")
    index = scan(tmp_path / "a.parquet")
    assert list(index.keys) == ["a/00000000", "a/00000002"]
    assert index.without_image.tolist() == [1]


def test_ambiguous_image_column_is_an_error_with_the_columns(tmp_path: Path, encode_image: Any) -> None:
    data = encode_image(Image.new("RGB", (16, 16)))
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"one": [data], "two": [data], "x": [1]}), path)
    with pytest.raises(ValueError, match=r"2 columns that can hold images \(one, two; its columns are one, two, x\)"):
        scan(path)
    assert len(scan(path, image="two")) == 1
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(ValueError, match=r"0 columns that can hold images \(none; its columns are x\)"):
        scan(path)


@pytest.mark.parametrize("cut", [10, 300, -5])
def test_truncated_parquet_is_refused_by_name(cut: int, drawn: Any, tmp_path: Path) -> None:
    shard = as_parquet(drawn, tmp_path, "struct")[0]
    Path(shard).write_bytes(Path(shard).read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"part-0.parquet' cannot be read"):
        scan(shard)


def test_parquet_changed_after_indexing_is_refused(drawn: Any, tmp_path: Path) -> None:
    shards = as_parquet(drawn, tmp_path, "struct")
    index = scan(shards)
    table = pq.read_table(shards[0]).slice(1)
    pq.write_table(table, shards[0])
    with pytest.raises(OSError, match=r"part-0.parquet' has \d+ bytes but had \d+ when the index was made"):
        list(packed(index, label=None, cache_dir=tmp_path / "cache"))


def test_remote_parquet_gives_the_local_batches(
    drawn: Any, served: tuple[str, list[str]], tmp_path: Path, contents: Contents
) -> None:
    address, got = served
    for shard in as_parquet(drawn, tmp_path, "struct"):
        (drawn.folder / Path(shard).name).write_bytes(Path(shard).read_bytes())
    try:
        options: dict[str, Any] = {"label": "label", "cache_dir": tmp_path / "cache"}
        loader = packed([f"{address}/part-{i}.parquet" for i in range(6)], **options)
        assert [contents(batch) for batch in loader] == [contents(batch) for batch in packed(drawn.shards)]
        assert sorted(set(got)) == sorted(got)
    finally:
        for i in range(6):
            (drawn.folder / f"part-{i}.parquet").unlink()


def test_glob_of_parquet_shards_skips_their_index(drawn: Any, tmp_path: Path) -> None:
    as_parquet(drawn, tmp_path, "struct")
    for _ in range(2):
        path, index, _ = update_index(str(tmp_path / "*.parquet"), opener=ShardOpener(tmp_path / "cache"))
        assert (Path(path).name, len(index.shards), len(index)) == ("index.parquet", 6, 60)
    assert len(packed(str(tmp_path / "*.parquet"), label=None).index) == 60
    with pytest.raises(ValueError, match=r"index.parquet' is an index, not a shard"):
        scan([str(tmp_path / "index.parquet"), str(tmp_path / "part-0.parquet")])


def test_parquet_with_paths_only_is_refused(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array([{"bytes": None, "path": "a.jpg"}], kind)}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"has no bytes in its column 'image', in none of 1 rows: it may hold paths"):
        scan(tmp_path / "a.parquet")


def test_column_of_nulls_is_absent_in_that_shard(tmp_path: Path, encode_image: Callable[..., bytes]) -> None:
    data = encode_image(Image.new("RGB", (16, 16)))
    pq.write_table(pa.table({"image": [data], "caption": ["text"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": [data], "caption": pa.nulls(1)}), tmp_path / "b.parquet")
    loader = packed(str(tmp_path / "*.parquet"), label=None, extras=["caption"], cache_dir=tmp_path / "cache")
    captions = [caption for batch in loader for pack in batch.extras["caption"] for caption in pack]
    assert sorted(captions, key=str) == [None, "text"]


def test_failed_start_of_prefetching_leaves_no_thread(
    drawn: Any, served: tuple[str, list[str]], tmp_path: Path
) -> None:
    address, _ = served
    index = scan(f"{address}/drawn-000.tar", opener=ShardOpener(tmp_path / "first"))
    (tmp_path / "file").write_text("no folder")
    before = threading.active_count()
    for _ in range(3):
        with pytest.raises(OSError, match="file"):
            next(iter(packed(index, label=None, cache_dir=tmp_path / "file" / "below")))
    assert threading.active_count() <= before + 1  # the server may be answering
