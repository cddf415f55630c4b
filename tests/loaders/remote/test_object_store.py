"""Object stores through obstore: listing, reading, uploading, credentials and options."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest
from moto.server import ThreadedMotoServer
from obstore.store import S3Store

from patchnpack.loaders.remote.download import RemoteFile, expand_remote, put, stat
from patchnpack.loaders.remote.errors import RemoteError, RemoteNotFound
from patchnpack.loaders.remote.retry import Retry
from tests.loaders.misbehaving import Misbehaving
from tests.loaders.remote.fetching import QUICK, fetch, noise


def test_http_glob_is_refused() -> None:
    with pytest.raises(RemoteError, match=r"plain HTTP cannot list files.*write the names as a brace range"):
        expand_remote("https://host/t-*.tar")


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, Any]]:
    """s3fs options of a bucket "shards" that holds train/{a,b}/t-{0,1,2}.tar."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    options: dict[str, Any] = {"key": "testing", "secret": "testing", "client_kwargs": {"region_name": "us-east-1"}}
    options["endpoint_url"] = f"http://{host}:{port}"
    try:
        boto3 = pytest.importorskip("boto3")
        client = boto3.client(
            "s3",
            endpoint_url=options["endpoint_url"],
            region_name="us-east-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )
        client.create_bucket(Bucket="shards")
        store = obstore_store(options)
        for folder in "ab":
            for i in range(3):
                obstore.put(store, f"train/{folder}/t-{i}.tar", noise(100_000 + i, i))
        obstore.put(store, "train/a/other name+%20.tar", b"odd")
        obstore.put(store, "top.tar", b"top")
        client.close()
        yield options
    finally:
        moto.stop()


def obstore_store(options: dict[str, Any]) -> S3Store:
    return S3Store(
        "shards",
        endpoint=options["endpoint_url"],
        region="us-east-1",
        access_key_id="testing",
        secret_access_key="testing",
        client_options={"allow_http": True},
    )


def test_s3_glob_is_sorted_and_stays_inside_its_folder(bucket: dict[str, Any]) -> None:
    def found(pattern: str) -> list[str]:
        return [
            url.removeprefix("s3://shards/") for url in expand_remote(f"s3://shards/{pattern}", bucket, policy=QUICK)
        ]

    assert found("train/a/t-*.tar") == [f"train/a/t-{i}.tar" for i in range(3)]
    assert found("train/{b,a}/t-[01].tar") == [f"train/{folder}/t-{i}.tar" for folder in "ba" for i in range(2)]
    assert found("*/?/t-2.tar") == ["train/a/t-2.tar", "train/b/t-2.tar"]
    assert found("*.tar") == ["top.tar"]
    for nothing in ("train/*.tar", "train/a/x-*.tar", "nowhere/*"):
        with pytest.raises(FileNotFoundError, match=r"no file matches 's3://shards/.*'; name shards that exist"):
            found(nothing)


@pytest.mark.parametrize("words", ["s3fs", "obstore"])
def test_s3_object_is_downloaded_whole(words: str, bucket: dict[str, Any], tmp_path: Path) -> None:
    options = bucket
    if words == "obstore":
        options = {"access_key_id": "testing", "secret_access_key": "testing", "region": "us-east-1"}
        options |= {"endpoint": bucket["endpoint_url"], "client_options": {"user_agent": "me"}}
    file = stat("s3://shards/train/b/t-1.tar", options, policy=QUICK)
    assert (file.nbytes, file.version[0]) == (100_001, '"')
    assert fetch(file, tmp_path / "a", options=options) == noise(100_001, 1)
    odd = stat("s3://shards/train/a/other name+%20.tar", options, policy=QUICK)
    assert fetch(odd, tmp_path / "b", options=options) == b"odd"


def test_changed_or_deleted_s3_object_is_refused(bucket: dict[str, Any], tmp_path: Path) -> None:
    store = obstore_store(bucket)
    obstore.put(store, "moving.tar", b"one")
    file = stat("s3://shards/moving.tar", bucket, policy=QUICK)
    obstore.put(store, "moving.tar", b"two")
    with pytest.raises(RemoteError, match=r"^s3://shards/moving.tar: the file has changed"):
        fetch(file, tmp_path / "a", options=bucket)
    obstore.delete(store, "moving.tar")
    with pytest.raises(RemoteNotFound, match="no such file"):
        fetch(file, tmp_path / "a", options=bucket)
    with pytest.raises(RemoteNotFound, match=r"^s3://none/a.tar: no such file \(1 attempt in .*; correct the address"):
        stat("s3://none/a.tar", bucket, policy=QUICK)


@pytest.mark.parametrize("nbytes", [0, 10, 20_000_000])
def test_s3_put_round_trips_at_every_size(nbytes: int, bucket: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(noise(nbytes))
    for _ in range(2):  # a new file, then an overwrite
        put("s3://shards/put/index file.parquet", tmp_path / "a", bucket)
        file = stat("s3://shards/put/index file.parquet", bucket, policy=QUICK)
        assert fetch(file, tmp_path / "b", options=bucket) == noise(nbytes)
    with pytest.raises(RemoteError, match="no such file"):
        put("s3://nobucket/a.parquet", tmp_path / "a", bucket, policy=QUICK)


def test_missing_s3_credentials_are_an_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    once = Retry(attempts=1, deadline_s=5, stall_s=1)
    with pytest.raises(RemoteError, match=r"no credentials were found .*storage_options=\{'anon': True\}"):
        stat("s3://shards/a.tar", {"region": "us-east-1"}, policy=once)


@pytest.mark.parametrize("scheme", ["gs", "gcs", "az"])
def test_gcs_and_azure_objects_are_read(scheme: str, server: Misbehaving, tmp_path: Path) -> None:
    server.add("/bucket/d/t-0.tar", noise(100_000), faults=["ok", "close:40000"])
    address = f"http://127.0.0.1:{server.server_port}"
    options: dict[str, Any] = {"token": "anon", "endpoint_url": address}
    if scheme == "az":
        options = {"account_name": "name", "anon": True, "endpoint": address}
    file = stat(f"{scheme}://bucket/d/t-0.tar", options, policy=QUICK)
    assert file == RemoteFile(f"{scheme}://bucket/d/t-0.tar", 100_000, '"v0"')
    assert fetch(file, tmp_path / "a", options=options) == noise(100_000)
    assert server.files["/bucket/d/t-0.tar"].headers[-1]["range"] == "bytes=40000-"


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        (
            "s3://b/a.tar",
            {"nonsense": 1, "key": "a"},
            "cannot create its S3Store with the storage_options 'access_key_id', 'nonsense'",
        ),
        ("s3://b/a.tar", {"retry_config": {}}, "the loader retries itself"),
        (
            "s3://b/a.tar",
            {"endpoint_url": "host:9000"},
            "endpoint in storage_options is not an address; it must begin with https:// or http://",
        ),
        ("az://b/a.tar", {}, r"its AzureStore with the storage_options \{\} .*'account_name': ..."),
        ("http://h/a.tar", {"key": "a"}, "storage_options has 'key'; for http it can have headers and client_options"),
        ("gs://b/a.tar", {"token": "nowhere.json"}, "must be 'anon', 'google_default' or the path of a key file"),
    ],
)
def test_invalid_storage_option_is_refused(url: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stat(url, options, policy=QUICK)
