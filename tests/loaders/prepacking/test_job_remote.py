"""Packs in object stores: S3 by obstore, and a file system of fsspec."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("obstore", reason="the extra [remote] is not installed")
fsspec = pytest.importorskip("fsspec", reason="the extra [remote] is not installed")
boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
moto = pytest.importorskip("moto.server", reason="moto is not installed")

from patchnpack.loaders import PackedImageLoader, scan  # noqa: E402
from patchnpack.loaders.prepacking.job import Job  # noqa: E402
from patchnpack.loaders.prepacking.unpack import unpack  # noqa: E402
from patchnpack.loaders.prepacking.verify import verify  # noqa: E402
from patchnpack.loaders.remote.errors import RemoteError  # noqa: E402
from patchnpack.packer import Packing  # noqa: E402

PACKING = Packing(seq_len=64, patch_size=8, max_images=7)

Contents = Callable[[Any], tuple[object, ...]]


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, Any]]:
    """Yield options for an empty bucket "packs"."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    try:
        client = boto3.client(
            "s3",
            endpoint_url=address,
            region_name="us-east-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )
        client.create_bucket(Bucket="packs")
        client.close()
        yield {
            "key": "testing",
            "secret": "testing",
            "client_kwargs": {"region_name": "us-east-1"},
            "endpoint_url": address,
        }
    finally:
        server.stop()


@pytest.mark.parametrize("store", ["images", "patches"])
@pytest.mark.parametrize("where", ["s3://packs/deep/", "memory://packs/"])
def test_packs_in_an_object_store_equal_those_in_a_folder(
    where: str, store: Any, drawn: Any, tmp_path: Path, bucket: dict[str, Any], contents: Contents
) -> None:
    options = bucket if where.startswith("s3") else None
    given: dict[str, Any] = {"source": scan(drawn.shards), "packing": PACKING, "store": store, "part_packs": 4}
    given |= {"label": "cls", "extras": ["txt"], "shuffle": True}
    Job(out=str(tmp_path / "local"), **given).run()
    out = where + store
    assert not Job(out=out, storage_options=options, **given).run(1, 2)
    with pytest.raises(ValueError, match="are not finished"):
        PackedImageLoader(out, batch_size=2, storage_options=options, cache_dir=tmp_path / "cache")
    assert Job(out=out, storage_options=options, **given).run(0, 2)

    remote = PackedImageLoader(out, batch_size=2, storage_options=options, cache_dir=tmp_path / "cache")
    local = PackedImageLoader(tmp_path / "local", batch_size=2)
    for _ in range(2):
        assert list(map(contents, remote)) == list(map(contents, local))
    parts = len(os.listdir(tmp_path / "local" / "parts"))
    assert remote.stats()["cache_misses"] == parts + 2  # the parts, the rows and the plan, each once
    assert verify(out, options).problems == []
    unpack(out, where + store + "-shards", storage_options=options)
    unpack(tmp_path / "local", tmp_path / "shards")
    if options is None:
        system = fsspec.filesystem("memory")
        root = where.removeprefix("memory:/") + store
        assert {path.removeprefix(root): system.cat(path) for path in system.find(root)} == {
            "/" + str(path.relative_to(tmp_path / "local")): path.read_bytes()
            for path in (tmp_path / "local").rglob("*")
            if path.is_file()
        }
        for shard in (tmp_path / "shards").glob("*.tar"):
            assert system.cat(f"{root}-shards/{shard.name}") == shard.read_bytes()


def test_part_that_differs_from_the_manifest_raises_with_its_name(drawn: Any, tmp_path: Path) -> None:
    out = "memory://packs/damaged"
    Job(source=scan(drawn.shards), out=out, packing=PACKING, part_packs=4).run()
    system = fsspec.filesystem("memory")
    name = "/packs/damaged/parts/e0000-s000-00000001.arrow"
    system.pipe(name, system.cat(name)[:-1] + b"x")
    loader = PackedImageLoader(out, batch_size=2, cache_dir=tmp_path / "cache")
    with pytest.raises(OSError, match=r"e0000-s000-00000001.arrow is not what the manifest says"):
        list(loader)


def test_other_packs_and_missing_addresses_raise(drawn: Any, bucket: dict[str, Any]) -> None:
    given: dict[str, Any] = {"source": scan(drawn.shards), "storage_options": bucket}
    Job(out="s3://packs/one", packing=PACKING, **given).run()
    with pytest.raises(ValueError, match=r"'s3://packs/one' holds other packs: packing.seq_len is 128 here and 64"):
        Job(out="s3://packs/one", packing=PACKING.replace(seq_len=128), **given)
    with pytest.raises(ValueError, match="holds something else"):
        unpack("s3://packs/one", "s3://packs/one", storage_options=bucket)
    with pytest.raises(FileNotFoundError, match="holds no packs"):
        PackedImageLoader("s3://packs/none/", batch_size=1, storage_options=bucket)
    with pytest.raises(RemoteError, match=r"s3://none/packs/"):
        Job(out="s3://none/packs", packing=PACKING, **given).run()
