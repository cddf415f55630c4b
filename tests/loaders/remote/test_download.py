"""Downloads over HTTP: the right bytes, or an error that names the reason, whatever the server does."""

from __future__ import annotations

import pickle
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from patchnpack.loaders.remote.download import RemoteFile, cache_name, download, expand_remote, stat
from patchnpack.loaders.remote.errors import RemoteError, RemoteNotFound
from patchnpack.loaders.remote.retry import Retry
from tests.loaders.misbehaving import Misbehaving
from tests.loaders.remote.fetching import QUICK, fetch, noise


def test_cache_name_depends_on_address_version_and_size() -> None:
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


# Correct servers


@pytest.mark.parametrize("nbytes", [0, 1, 100_000])
@pytest.mark.parametrize("how", [{}, {"ranges": False}, {"etag": False}, {"etag": False, "modified": False}])
def test_download_gives_the_served_bytes(nbytes: int, how: dict[str, Any], server: Misbehaving, tmp_path: Path) -> None:
    url = server.add("/a b/t%200.tar".replace(" ", "%20"), noise(nbytes), **how)
    file = stat(url, policy=QUICK)
    version = "" if not how.get("modified", True) else "2015-10-21T07:28:00+00:00" if "etag" in how else '"v0"'
    assert file == RemoteFile(url, nbytes, version)
    assert fetch(file, tmp_path / "a") == noise(nbytes)
    served = next(iter(server.files.values()))
    assert [request.split()[0] for request in served.requests] == ["HEAD", "GET"]
    assert served.headers[-1].get("if-match") == ('"v0"' if how.get("etag", True) else None)


def test_stat_falls_back_to_get_where_head_is_refused(server: Misbehaving, tmp_path: Path) -> None:
    url = server.add("/t.tar", noise(1000), head=False)
    file = stat(url + "?X-Amz-Signature=0a1b", policy=QUICK)
    assert fetch(file, tmp_path / "a") == noise(1000)
    assert server.files["/t.tar"].requests[1:] == ["GET /t.tar?X-Amz-Signature=0a1b"] * 2


def test_headers_and_passwords_reach_only_their_server(server: Misbehaving, tmp_path: Path) -> None:
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


# Misbehaving servers


def test_closed_connection_resumes_at_the_last_byte(server: Misbehaving, tmp_path: Path) -> None:
    url = server.add("/t.tar", noise(500_000), faults=["ok", "close:200000", "close:100000", "close:0", "close:150000"])
    assert fetch(stat(url, policy=QUICK), tmp_path / "a") == noise(500_000)
    starts = [request.partition("bytes=")[2] for request in server.files["/t.tar"].requests[1:]]
    assert starts == ["", "200000-", "300000-", "300000-", "450000-"]


def test_server_without_ranges_restarts_the_download(server: Misbehaving, tmp_path: Path) -> None:
    url = server.add("/t.tar", noise(100_000), ranges=False, faults=["ok", "close:50000"])
    assert fetch(stat(url, policy=QUICK), tmp_path / "a") == noise(100_000)


def test_progress_resets_the_count_of_attempts(server: Misbehaving, tmp_path: Path) -> None:
    url = server.add("/t.tar", noise(20_000), faults=["ok"] + ["close:1000", "status:503", "status:429"] * 19)
    assert fetch(stat(url, policy=QUICK), tmp_path / "a") == noise(20_000)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("status:500", "the server answered 500 Internal Server Error"),
        ("status:429", "the server answered 429 Too Many Requests"),
        ("close:0", "the connection was closed early"),
        ("stall:0", r"no bytes for 0.5 s"),
        ("mute", r"no bytes for 0.5 s"),
        ("garbage", "the transfer failed|no connection"),
    ],
)
def test_persistent_failure_is_an_error_with_its_reason(
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
def test_permanent_failure_is_not_retried(status: int, kind: type, server: Misbehaving, tmp_path: Path) -> None:
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
def test_changed_file_is_refused(
    nbytes: int, faults: list[str], etag: bool, if_match: bool, server: Misbehaving, tmp_path: Path
) -> None:
    changed = noise(nbytes, 1)
    url = server.add("/t.tar", noise(1000), changed=changed, etag=etag, if_match=if_match, faults=["ok", *faults])
    file = stat(url, policy=QUICK)
    with pytest.raises(RemoteError, match=r"the file has changed.*update the index"):
        fetch(file, tmp_path / "a")


def test_slow_download_ends_at_the_deadline(server: Misbehaving, tmp_path: Path) -> None:
    url = server.add("/t.tar", 1 << 26, pause_s=0.05)
    file = stat(url, policy=QUICK)
    began = time.monotonic()
    with pytest.raises(RemoteError, match=r"in [12]\.\d s"):
        fetch(file, tmp_path / "a", Retry(deadline_s=1, stall_s=0.3, pause_s=0.01))
    assert 0.9 < time.monotonic() - began < 2.5


def test_unreachable_server_is_an_error() -> None:
    with pytest.raises(RemoteError, match=r"^http://127.0.0.1:9/t.tar: no connection .*\(4 attempts in"):
        stat("http://127.0.0.1:9/t.tar", policy=QUICK)
    with pytest.raises(RemoteError, match="unknown host"):
        stat("http://no.invalid/t.tar", policy=QUICK)


def test_full_disk_is_not_retried(server: Misbehaving) -> None:
    url = server.add("/t.tar", noise(1000))
    with pytest.raises(OSError, match="No space left"):
        download(stat(url, policy=QUICK), Path("/dev/full"), policy=QUICK)
    assert server.files["/t.tar"].gets == 1


def test_no_message_holds_a_secret(server: Misbehaving, tmp_path: Path) -> None:
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
    """Download one file under a random mix of faults and check the outcome: "bytes" or "error"."""
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
    if rng.random() < 0.1:  # once, because a consistent lie cannot be detected
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


def test_300_fault_mixes_give_the_right_bytes_or_an_error_in_time(server: Misbehaving, tmp_path: Path) -> None:
    with ThreadPoolExecutor(12) as pool:
        outcomes = list(pool.map(lambda seed: mix(seed, server, tmp_path), range(300)))
    assert outcomes.count("bytes") > 150
    assert outcomes.count("error") > 30
