from __future__ import annotations

import copy
import time
from typing import Any

import pytest

from patchnpack.loaders import PackedImageLoader
from patchnpack.loaders.remote.errors import RemoteError
from patchnpack.loaders.remote.retry import RETRY, Retry, take_retry
from patchnpack.loaders.shards.opener import ShardOpener
from tests.loaders.misbehaving import Misbehaving

QUICK = {"attempts": 2, "pause_s": 0.01, "deadline_s": 5}


def test_options_without_retry_are_unchanged() -> None:
    assert take_retry(None) == (RETRY, None)
    options = {"anon": True}
    assert take_retry(options) == (RETRY, options)


def test_retry_is_split_from_the_options_and_parses_strings() -> None:
    options = {"anon": True, "retry": {"attempts": "3", "deadline_s": "60"}}
    assert take_retry(options) == (Retry(attempts=3, deadline_s=60), {"anon": True})
    assert "retry" in options
    assert take_retry({"retry": Retry(attempts=1)}) == (Retry(attempts=1), {})


@pytest.mark.parametrize(
    ("retry", "message"),
    [
        (5, r"has retry=5; it must be a dict of numbers, of attempts, deadline_s, stall_s, pause_s, max_pause_s"),
        ({"tries": 3}, r"retry=\{'tries': 3\}; it must be a dict"),
        ({"attempts": "many"}, "it must be a dict of numbers"),
        ({"attempts": None}, "it must be a dict of numbers"),
        ({"attempts": 0}, "attempts is 0; it must be at least 1"),
        ({"deadline_s": 0}, "deadline_s is 0.0; it must be above 0 and finite"),
        ({"pause_s": 30}, "pause_s is 30.0; it must be from 0 to max_pause_s"),
    ],
)
def test_invalid_retry_is_refused_before_any_request(retry: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PackedImageLoader("https://no.invalid/a.tar", batch_size=1, storage_options={"retry": retry})


def test_loader_obeys_the_retry_policy_and_names_the_option() -> None:
    with Misbehaving() as server:
        url = server.add("/t.tar", b"", faults=["status:503"] * 9)
        began = time.monotonic()
        with pytest.raises(
            RemoteError, match=r"503 .*\(2 attempts in .*raise the limits: storage_options=\{'retry': \.\.\.\}"
        ):
            PackedImageLoader(url, batch_size=1, index=None, storage_options={"retry": QUICK})
        assert time.monotonic() - began < 3
        assert len(server.files["/t.tar"].requests) == 2


def test_copied_opener_keeps_the_retry_policy() -> None:
    with Misbehaving() as server:
        url = server.add("/t.tar", b"", faults=["status:503"] * 9)
        opener = copy.copy(ShardOpener(storage_options={"retry": QUICK}))  # uses the same protocol as pickle
        with pytest.raises(RemoteError, match=r"\(2 attempts in"):
            opener.stat(url)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"attempts": 0}, "attempts is 0; it must be at least 1"),
        ({"deadline_s": 0}, "deadline_s is 0; it must be above 0"),
        ({"stall_s": float("nan")}, "stall_s is nan"),
        ({"pause_s": 30}, "pause_s is 30; it must be from 0 to max_pause_s, 20.0"),
    ],
)
def test_invalid_policy_is_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Retry(**wrong)  # type: ignore[arg-type]
