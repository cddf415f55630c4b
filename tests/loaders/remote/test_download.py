from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import obstore
import pytest
from moto.server import ThreadedMotoServer
from obstore.store import S3Store

from patchnpack.loaders.remote.download import (
    RemoteError,
    RemoteFile,
    RemoteNotFound,
    Retry,
    cache_name,
    download,
    expand_remote,
    is_remote,
    put,
    shard,
    stat,
)
from patchnpack.loaders.remote.prefetch import Prefetcher
from patchnpack.loaders.remote.shard_cache import ShardCache, Stopped
from tests.loaders.misbehaving import Misbehaving, wait_until

QUICK = Retry(attempts=4, deadline_s=10, stall_s=0.5, pause_s=0.01)


@pytest.fixture
def server() -> Iterator[Misbehaving]:
    with Misbehaving() as server:
        yield server


def noise(nbytes: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(nbytes)


def fetch(file: RemoteFile, to: Path, policy: Retry = QUICK, options: dict[str, Any] | None = None) -> bytes:
    download(file, to, options, policy=policy)
    return to.read_bytes()


# What an address is


def test_addresses_are_told_from_paths() -> None:
    assert is_remote("s3://bucket/a.tar")
    assert is_remote("https://host/a.tar")
    assert not is_remote("shards/a.tar")
    assert not is_remote("/shards/a:b.tar")


def test_braces_give_addresses_without_asking_anybody() -> None:
    assert expand_remote("https://no.invalid/t-{08..10}.tar?key=1") == [
        f"https://no.invalid/t-{i}.tar?key=1" for i in ("08", "09", "10")
    ]
    assert expand_remote("s3://bucket/{b,a}/x.tar") == ["s3://bucket/b/x.tar", "s3://bucket/a/x.tar"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("s3://bucket/t-{0..3.tar", "has a brace without its partner"),
        ("s3://bucket/t-{}.tar", "name no shard"),
        ("s3://bucket", "names no file"),
        ("s3://bucket/folder/", "names no file"),
        ("https://host/?key=1", "names no file"),
        ("file:///data/a.tar", "give its path without file://"),
        ("simplecache::s3://bucket/a.tar", "is no address of one file"),
    ],
)
def test_address_that_names_no_file_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expand_remote(pattern)


def test_http_has_no_listing() -> None:
    with pytest.raises(RemoteError, match=r"http has no listing of files.*write the names as a brace range"):
        expand_remote("https://host/t-*.tar")


def test_cache_name_is_of_the_whole_address_and_the_version() -> None:
    file = RemoteFile("https://host/a/t-0.tar?part=1", 10, '"v0"')
    others = [
        RemoteFile("https://host/a/t-0.tar?part=2", 10, '"v0"'),
        RemoteFile("https://host/b/t-0.tar?part=1", 10, '"v0"'),
        RemoteFile("https://host/a/t-0.tar?part=1", 10, '"v1"'),
        RemoteFile("https://host/a/t-0.tar?part=1", 11, '"v0"'),
    ]
    assert cache_name(file) == cache_name(RemoteFile("https://host/a/t-0.tar?part=1", 10, '"v0"'))
    assert len({cache_name(f) for f in [file, *others]}) == 5
    assert cache_name(file).endswith("-t-0.tar")
    assert "/" not in cache_name(RemoteFile("s3://b/ü/.part", 1, ""))


# A server that behaves


@pytest.mark.parametrize("nbytes", [0, 1, 100_000])
@pytest.mark.parametrize("how", [{}, {"ranges": False}, {"etag": False}, {"etag": False, "modified": False}])
def test_bytes_are_those_of_the_server(nbytes: int, how: dict[str, Any], server: Misbehaving, tmp_path: Path) -> None:
    url = server.add("/a b/t%200.tar".replace(" ", "%20"), noise(nbytes), **how)
    file = stat(url, policy=QUICK)
    version = "" if not how.get("modified", True) else "2015-10-21T07:28:00+00:00" if "etag" in how else '"v0"'
    assert file == RemoteFile(url, nbytes, version)
    assert fetch(file, tmp_path / "a") == noise(nbytes)
    served = next(iter(server.files.values()))
    assert [request.split()[0] for request in served.requests] == ["HEAD", "GET"]
    assert served.headers[-1].get("if-match") == ('"v0"' if how.get("etag", True) else None)


def test_server_that_refuses_head_is_asked_with_get(server: Misbehaving, tmp_path: Path) -> None:
    url = server.add("/t.tar", noise(1000), head=False)
    file = stat(url + "?X-Amz-Signature=0a1b", policy=QUICK)
    assert fetch(file, tmp_path / "a") == noise(1000)
    assert server.files["/t.tar"].requests[1:] == ["GET /t.tar?X-Amz-Signature=0a1b"] * 2


def test_headers_and_passwords_reach_the_server_and_no_other(server: Misbehaving, tmp_path: Path) -> None:
    url = server.add("/t.tar", noise(10))
    stat(url, {"headers": {"Authorization": "Bearer word"}}, policy=QUICK)
    assert server.files["/t.tar"].headers[-1]["authorization"] == "Bearer word"
    stat(url.replace("://", "://me:pass%21@"), policy=QUICK)
    assert server.files["/t.tar"].headers[-1]["authorization"] == "Basic bWU6cGFzcyE="
    with Misbehaving() as other:
        moved = other.add("/moved.tar", b"", redirect=url)
        assert stat(moved.replace("://", "://me:pass@"), policy=QUICK).nbytes == 10
        assert "authorization" in other.files["/moved.tar"].headers[-1]
    assert "authorization" not in server.files["/t.tar"].headers[-1]


# A server that does not


def test_early_close_is_continued_where_it_ended(server: Misbehaving, tmp_path: Path) -> None:
    url = server.add("/t.tar", noise(500_000), faults=["ok", "close:200000", "close:100000", "close:0", "close:150000"])
    assert fetch(stat(url, policy=QUICK), tmp_path / "a") == noise(500_000)
    starts = [request.partition("bytes=")[2] for request in server.files["/t.tar"].requests[1:]]
    assert starts == ["", "200000-", "300000-", "300000-", "450000-"]


def test_server_without_ranges_is_asked_for_the_whole_again(server: Misbehaving, tmp_path: Path) -> None:
    url = server.add("/t.tar", noise(100_000), ranges=False, faults=["ok", "close:50000"])
    assert fetch(stat(url, policy=QUICK), tmp_path / "a") == noise(100_000)


def test_progress_starts_the_count_of_attempts_anew(server: Misbehaving, tmp_path: Path) -> None:
    url = server.add("/t.tar", noise(20_000), faults=["ok"] + ["close:1000", "status:503", "status:429"] * 19)
    assert fetch(stat(url, policy=QUICK), tmp_path / "a") == noise(20_000)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("status:500", "the server answered 500 Internal Server Error"),
        ("status:429", "the server answered 429 Too Many Requests"),
        ("close:0", "the connection was closed early"),
        ("stall:0", r"nothing came for 0.5 s"),
        ("mute", r"nothing came for 0.5 s"),
        ("garbage", "the transfer failed|no connection"),
    ],
)
def test_what_goes_on_failing_is_an_error_that_says_so(
    fault: str, message: str, server: Misbehaving, tmp_path: Path
) -> None:
    url = server.add("/t.tar", noise(1000), faults=["ok"] + [fault] * 4)
    file = stat(url, policy=QUICK)
    with pytest.raises(RemoteError, match=rf"^{url}: ({message}).* \(4 attempts in \d\.\d s\); try again later"):
        fetch(file, tmp_path / "a")
    assert server.files["/t.tar"].gets == 4


@pytest.mark.parametrize(
    ("status", "kind"), [(404, RemoteNotFound), (403, RemoteError), (401, RemoteError), (400, RemoteError)]
)
def test_what_will_not_pass_is_not_tried_again(status: int, kind: type, server: Misbehaving, tmp_path: Path) -> None:
    url = server.add("/t.tar", noise(1000), faults=["ok", f"status:{status}"])
    file = stat(url, policy=QUICK)
    with pytest.raises(kind, match=r"\(1 attempt in ") as raised:
        fetch(file, tmp_path / "a")
    assert isinstance(raised.value, FileNotFoundError) == (status == 404)
    assert pickle.loads(pickle.dumps(raised.value)).args == raised.value.args  # noqa: S301 - our own bytes


@pytest.mark.parametrize("if_match", [True, False])
@pytest.mark.parametrize("etag", [True, False])
@pytest.mark.parametrize("faults", [["change"], ["close:500", "change"]])
@pytest.mark.parametrize("nbytes", [1000, 999])
def test_file_that_changed_is_refused(
    nbytes: int, faults: list[str], etag: bool, if_match: bool, server: Misbehaving, tmp_path: Path
) -> None:
    changed = noise(nbytes, 1)
    url = server.add("/t.tar", noise(1000), changed=changed, etag=etag, if_match=if_match, faults=["ok", *faults])
    file = stat(url, policy=QUICK)
    with pytest.raises(RemoteError, match=r"the file has changed.*make a new index of it"):
        fetch(file, tmp_path / "a")


def test_trickle_ends_at_the_deadline(server: Misbehaving, tmp_path: Path) -> None:
    url = server.add("/t.tar", 1 << 26, pause_s=0.05)
    file = stat(url, policy=QUICK)
    began = time.monotonic()
    with pytest.raises(RemoteError, match=r"in [12]\.\d s"):
        fetch(file, tmp_path / "a", Retry(deadline_s=1, stall_s=0.3, pause_s=0.01))
    assert 0.9 < time.monotonic() - began < 2.5


def test_nobody_there_is_an_error() -> None:
    with pytest.raises(RemoteError, match=r"^http://127.0.0.1:9/t.tar: no connection .*\(4 attempts in"):
        stat("http://127.0.0.1:9/t.tar", policy=QUICK)
    with pytest.raises(RemoteError, match="the name is not known"):
        stat("http://no.invalid/t.tar", policy=QUICK)


def test_full_disk_is_no_matter_of_the_server(server: Misbehaving) -> None:
    url = server.add("/t.tar", noise(1000))
    with pytest.raises(OSError, match="No space left"):
        download(stat(url, policy=QUICK), Path("/dev/full"), policy=QUICK)
    assert server.files["/t.tar"].gets == 1


def test_secrets_are_in_no_message(server: Misbehaving, tmp_path: Path) -> None:
    url = server.add("/t.tar", noise(1000), faults=["ok", "status:403", "status:403", "status:500"])
    secret = url.replace("://", "://AKIAME:WORD@") + "?X-Amz-Signature=SIGNED&X-Amz-Credential=AKIAME"
    options = {"headers": {"x-key": "HEADERKEY"}}
    file = stat(secret, options, policy=QUICK)
    texts = []
    for ask in (
        lambda: stat(secret, options, policy=QUICK),
        lambda: download(file, tmp_path / "a", options, policy=Retry(attempts=1)),
        lambda: stat(secret.replace("/t.tar", "/none.tar"), options, policy=QUICK),
        lambda: expand_remote(secret.replace("/t.tar", "/t-{0..1.tar")),
        lambda: expand_remote(secret.replace("/t.tar", "/")),
        lambda: stat("s3://bucket/a", {"secret": "WORD", "nonsense": "SIGNED"}, policy=QUICK),
        lambda: stat("s3://bucket/a", {"region": 5, "secret": {"WORD": 1}}, policy=QUICK),
        lambda: stat(
            "s3://bucket/a", {"endpoint": "HEADERKEY", "key": "AKIAME", "secret": "WORD"}, policy=Retry(attempts=1)
        ),
        lambda: stat("gs://bucket/a", {"service_account_key": "WORD"}, policy=Retry(attempts=1, deadline_s=2)),
    ):
        with pytest.raises((OSError, ValueError)) as raised:
            ask()
        assert raised.value.__suppress_context__ or raised.value.__context__ is None
        assert raised.value.__cause__ is None
        texts.append(str(raised.value))
    for text in texts:
        for word in ("WORD", "SIGNED", "AKIA", "HEADERKEY"):
            assert word not in text


def mix(seed: int, server: Misbehaving, folder: Path) -> str:
    """One file, served with a random mix of faults: "bytes" or "error", having checked what it may be."""
    rng = random.Random(seed)
    nbytes = rng.choice([0, 1, 1000, 70_000, 300_000])
    body, changed = noise(nbytes, seed), noise(rng.choice([nbytes, nbytes, nbytes + 7]), seed + 1000)
    how = {
        "ranges": rng.random() < 0.8,
        "etag": rng.random() < 0.7,
        "if_match": rng.random() < 0.5,
        "head": rng.random() < 0.9,
    }
    some = [f"close:{rng.randrange(nbytes + 1)}" for _ in range(4)] + [f"stall:{rng.randrange(nbytes + 1)}", "mute"]
    some += ["status:500", "status:503", "status:429", "whole", "ok", "garbage"]
    faults = [rng.choice(some) for _ in range(rng.randrange(7))]
    change = rng.random() < 0.3
    if rng.random() < 0.1:  # once: a server that always lies alike cannot be found out
        faults.insert(rng.randrange(len(faults) + 1), f"length:{rng.randrange(1, 50)}")
    if change:
        faults.insert(rng.randrange(len(faults) + 1), "change")
    url = server.add(f"/{seed}.tar", body, changed=changed, faults=list(faults), **how)
    to, policy = folder / f"{seed}", Retry(attempts=5, deadline_s=4, stall_s=0.3, pause_s=0.005)
    began, failed = time.monotonic(), None
    try:
        file = stat(url, policy=policy)
        download(file, to, policy=policy)
    except RemoteError as error:
        failed = str(error)
    if failed is not None:
        assert time.monotonic() - began < 2 * policy.deadline_s + 0.5, faults
        assert failed.startswith(f"{url}: ")
        bad = [fault for fault in faults if fault not in ("ok", "whole")]
        harmless = not change and not any(fault.startswith("length") for fault in faults)
        assert not (harmless and len(bad) < 4), (faults, failed)
        return "error"
    assert file.nbytes == to.stat().st_size
    then = body if file.version in ('"v0"', "2015-10-21T07:28:00+00:00") else changed
    assert to.read_bytes() == then, (faults, how)
    return "bytes"


def test_300_mixes_of_faults_give_the_right_bytes_or_a_named_error_in_time(server: Misbehaving, tmp_path: Path) -> None:
    with ThreadPoolExecutor(12) as pool:
        came = list(pool.map(lambda seed: mix(seed, server, tmp_path), range(300)))
    assert came.count("bytes") > 150
    assert came.count("error") > 30


# In the cache


def test_prefetched_shards_come_once_and_close_calls_a_download_off(server: Misbehaving, tmp_path: Path) -> None:
    urls = [server.add(f"/{i}.tar", noise(100_000, i), pause_s=0.02) for i in range(4)]
    slow = server.add("/slow.tar", 1 << 30, pause_s=0.05)
    shards = [shard(stat(url, policy=QUICK), policy=QUICK) for url in [*urls, slow]]
    with Prefetcher(ShardCache(tmp_path), shards, ahead=2) as prefetcher:
        for i in range(4):
            with os.fdopen(prefetcher.acquire(shards[i].name), "rb") as file:
                assert file.read() == noise(100_000, i)
        wait_until(lambda: server.files["/slow.tar"].gets == 1)
        began = time.monotonic()
    assert time.monotonic() - began < 3
    assert [server.files[f"/{i}.tar"].gets for i in range(4)] == [1, 1, 1, 1]
    assert not list(tmp_path.glob("**/*.part"))
    assert len(list(tmp_path.glob("**/*.tar"))) == 4


def test_stop_ends_a_download(server: Misbehaving, tmp_path: Path) -> None:
    file = stat(server.add("/slow.tar", 1 << 30, pause_s=0.02), policy=QUICK)
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(Stopped):
        download(file, tmp_path / "a", policy=QUICK, stop=stop)


_LEND = """
import os, re, sys
from pathlib import Path
from patchnpack.loaders.remote.download import cache_name, download, stat
from patchnpack.loaders.remote.shard_cache import ShardCache
cache, file = ShardCache(sys.argv[1]), stat(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
before = peak()
fd = cache.acquire(cache_name(file), lambda to: download(file, to), file.nbytes)
print(os.fstat(fd).st_size, peak() - before)
"""


def lend_elsewhere(folder: Path, url: str) -> subprocess.Popen[str]:
    """A process that has asked for the file's length and waits for a line before it fetches it."""
    command = [sys.executable, "-P", "-c", _LEND, str(folder), url]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def begin(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_processes_share_one_flat_download_and_survive_one_that_is_killed(server: Misbehaving, tmp_path: Path) -> None:
    large, nbytes = server.add("/large.tar", 200 << 20), 200 << 20
    slow = server.add("/slow.tar", 1 << 20, pause_s=0.2)
    killed = lend_elsewhere(tmp_path, slow)
    ranks = [lend_elsewhere(tmp_path, large) for _ in range(2)]
    for process in (killed, *ranks):
        assert read_line(process) == "ready"
    begin(killed)
    wait_until(lambda: any(part.stat().st_size for part in tmp_path.glob("**/*slow.tar.part")))
    killed.kill()
    killed.wait(10)
    for process in ranks:
        begin(process)
    told = [read_line(process).split() for process in ranks]
    assert [int(size) for size, _ in told] == [nbytes, nbytes]
    assert max(int(kilobytes) for _, kilobytes in told) < 50_000
    assert server.files["/large.tar"].gets == 1
    for process in (killed, *ranks):
        process.communicate(timeout=10)

    server.files["/slow.tar"].pause_s = 0
    file, cache = stat(slow, policy=QUICK), ShardCache(tmp_path)
    assert not list(tmp_path.glob("**/*.part"))
    with os.fdopen(
        cache.acquire(cache_name(file), lambda to: download(file, to, policy=QUICK), file.nbytes), "rb"
    ) as got:
        assert got.read() == bytes(1 << 20)


# S3


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, Any]]:
    """Options for a bucket "shards", in the words of s3fs, with train/{a,b}/t-{0,1,2}.tar in it."""
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
        store = own_store(options)
        for folder in "ab":
            for i in range(3):
                obstore.put(store, f"train/{folder}/t-{i}.tar", noise(100_000 + i, i))
        obstore.put(store, "train/a/other name+%20.tar", b"odd")
        obstore.put(store, "top.tar", b"top")
        client.close()
        yield options
    finally:
        moto.stop()


def own_store(options: dict[str, Any]) -> S3Store:
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
def test_s3_object_comes_whole(words: str, bucket: dict[str, Any], tmp_path: Path) -> None:
    options = bucket
    if words == "obstore":
        options = {"access_key_id": "testing", "secret_access_key": "testing", "region": "us-east-1"}
        options |= {"endpoint": bucket["endpoint_url"], "client_options": {"user_agent": "me"}}
    file = stat("s3://shards/train/b/t-1.tar", options, policy=QUICK)
    assert (file.nbytes, file.version[0]) == (100_001, '"')
    assert fetch(file, tmp_path / "a", options=options) == noise(100_001, 1)
    odd = stat("s3://shards/train/a/other name+%20.tar", options, policy=QUICK)
    assert fetch(odd, tmp_path / "b", options=options) == b"odd"


def test_s3_object_that_changed_or_went_is_refused(bucket: dict[str, Any], tmp_path: Path) -> None:
    store = own_store(bucket)
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
def test_s3_object_is_what_was_put_whatever_its_length(nbytes: int, bucket: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(noise(nbytes))
    for _ in range(2):  # new, and over an old one
        put("s3://shards/put/index file.parquet", tmp_path / "a", bucket)
        file = stat("s3://shards/put/index file.parquet", bucket, policy=QUICK)
        assert fetch(file, tmp_path / "b", options=bucket) == noise(nbytes)
    with pytest.raises(RemoteError, match="no such file"):
        put("s3://nobucket/a.parquet", tmp_path / "a", bucket, policy=QUICK)


def test_s3_without_credentials_says_how_to_give_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    once = Retry(attempts=1, deadline_s=5, stall_s=1)
    with pytest.raises(RemoteError, match=r"no credentials were found .*storage_options=\{'anon': True\}"):
        stat("s3://shards/a.tar", {"region": "us-east-1"}, policy=once)


@pytest.mark.parametrize("scheme", ["gs", "gcs", "az"])
def test_other_clouds_are_read_over_their_protocols(scheme: str, server: Misbehaving, tmp_path: Path) -> None:
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
            "cannot make its S3Store with the storage_options 'access_key_id', 'nonsense'",
        ),
        ("s3://b/a.tar", {"retry_config": {}}, "retries are the loader's own"),
        (
            "s3://b/a.tar",
            {"endpoint_url": "host:9000"},
            "endpoint is no address; it must begin with https:// or http://",
        ),
        ("az://b/a.tar", {}, r"its AzureStore with the storage_options \{\} .*'account_name': ..."),
        ("http://h/a.tar", {"key": "a"}, "storage_options has 'key'; for http it may have headers and client_options"),
        ("gs://b/a.tar", {"token": "nowhere.json"}, "none of 'anon', 'google_default' and the path of a key file"),
    ],
)
def test_option_that_cannot_be_is_refused(url: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stat(url, options, policy=QUICK)


# What fsspec reads


class _Failing(fsspec.get_filesystem_class("memory")):  # type: ignore[misc]
    """A file system whose calls fail as `failures` says, one after the other."""

    protocol = "failing"
    failures: list[Exception | Callable[[], Any]] = []  # noqa: RUF012 - fsspec makes the instances

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("failing://", "memory://")))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, Exception):
                raise failure
            failure()
        return bytes(super().cat_file(path, start, end, **options))


@pytest.fixture
def memory() -> Iterator[Any]:
    fsspec.register_implementation("failing", _Failing, clobber=True)
    system = fsspec.filesystem("failing")
    yield system
    system.store.clear()
    _Failing.failures = []


def test_protocol_of_fsspec_is_listed_and_read(memory: Any, tmp_path: Path) -> None:
    for i in range(3):
        memory.pipe(f"/d/t-{i}.tar", noise(1000, i))
    urls = expand_remote("memory://d/t-*.tar")
    assert [url.rpartition("/")[2] for url in urls] == ["t-0.tar", "t-1.tar", "t-2.tar"]
    assert fetch(stat(urls[1]), tmp_path / "a") == noise(1000, 1)
    with pytest.raises(RemoteNotFound):
        stat("memory://d/t-9.tar")
    memory.pipe("/d/e/t.tar", b"")
    with pytest.raises(RemoteError, match="this is a folder"):
        stat("memory://d/e")


def test_protocol_of_fsspec_is_written(memory: Any, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(noise(1000))
    put("memory://d/index.parquet", tmp_path / "a")
    assert fetch(stat("memory://d/index.parquet"), tmp_path / "b") == noise(1000)


def test_fsspec_that_fails_or_stands_still_is_tried_again(memory: Any, tmp_path: Path) -> None:
    memory.pipe("/d/t.tar", noise(1000))
    file = stat("failing://d/t.tar", policy=QUICK)
    over = threading.Event()
    _Failing.failures = [ConnectionError("the key is WORD"), lambda: over.wait(10), RuntimeError("no")]
    began = time.monotonic()
    assert fetch(file, tmp_path / "a") == noise(1000)
    assert 0.5 < time.monotonic() - began < 5
    over.set()
    _Failing.failures = [ConnectionError("the key is WORD")] * 4
    with pytest.raises(RemoteError, match=r"the file system failed with ConnectionError \(4 attempts"):
        fetch(file, tmp_path / "a")


def test_fsspec_file_that_changes_is_refused(memory: Any, tmp_path: Path) -> None:
    memory.pipe("/d/t.tar", noise(1000))
    file = stat("failing://d/t.tar", policy=QUICK)
    memory.pipe("/d/t.tar", noise(1000, 1))
    with pytest.raises(RemoteError, match="the file has changed"):
        fetch(file, tmp_path / "a")
    file = stat("failing://d/t.tar", policy=QUICK)
    _Failing.failures = [lambda: memory.pipe("/d/t.tar", noise(1000, 2))]
    with pytest.raises(RemoteError, match=r"the file changed while it was read .*\(1 attempt in"):
        fetch(file, tmp_path / "a")


@pytest.mark.skipif(find_spec("huggingface_hub") is not None, reason="huggingface_hub is installed")
def test_what_hf_needs_is_named() -> None:
    with pytest.raises(RemoteError, match=r"hf:// cannot be read .*pip install huggingface_hub"):
        stat("hf://datasets/org/name/t.tar", policy=QUICK)


def test_protocol_that_nobody_knows_is_refused() -> None:
    with pytest.raises(RemoteError, match="no file system is known for nosuch://"):
        stat("nosuch://host/t.tar", policy=QUICK)


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'patchnpack\[remote\]'"):
        stat("https://host/t.tar", policy=QUICK)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ModuleNotFoundError, match=r"need fsspec.*pip install 'patchnpack\[remote\]'"):
        stat("hf://datasets/org/name/t.tar", policy=QUICK)


def test_importing_the_package_imports_neither() -> None:
    imports = "import sys, patchnpack.loaders.remote.download"
    script = f"{imports}; assert not {{'fsspec.core', 'obstore'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", script], check=True, timeout=60)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"attempts": 0}, "attempts is 0; it must be at least 1"),
        ({"deadline_s": 0}, "deadline_s is 0; it must be above 0"),
        ({"stall_s": float("nan")}, "stall_s is nan"),
        ({"pause_s": 30}, "pause_s is 30; it must be from 0 to max_pause_s, 20.0"),
    ],
)
def test_policy_checks_itself(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Retry(**wrong)  # type: ignore[arg-type]
