from __future__ import annotations

import pytest

from patchnpack.loaders.remote.addresses import is_remote, redact
from patchnpack.loaders.remote.backend import ObjectMeta
from patchnpack.loaders.remote.download import expand_remote


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://host/a.tar", "https://host/a.tar"),
        ("https://host/a.tar?X-Amz-Signature=SECRET", "https://host/a.tar?..."),
        ("https://host/a.tar?SECRET", "https://host/a.tar?..."),
        ("HTTPS://me:SECRET@host/a.tar#SECRET", "HTTPS://host/a.tar?..."),
        ("http://SECRET@host/a@b.tar", "http://host/a@b.tar"),
        ("s3://key:SECRET@bucket/a.tar", "s3://bucket/a.tar"),
        ("az://container/a.tar?sv=2024&sig=SECRET", "az://container/a.tar?..."),
        ("s3://bucket/t-?.tar", "s3://bucket/t-?.tar"),
        ("abfss://container@account/a.tar", "abfss://container@account/a.tar"),
        ("https://host/t-{0..3.tar?SECRET=\nSECRET", "https://host/t-{0..3.tar?..."),
    ],
)
def test_redact_removes_secrets(address: str, shown: str) -> None:
    assert redact(address) == shown


def test_object_meta_prints_size_and_version() -> None:
    assert str(ObjectMeta(10, '"e"')) == '10 bytes, "e"'
    assert str(ObjectMeta(10, "")) == "10 bytes, without a version"


def test_addresses_are_distinguished_from_paths() -> None:
    assert is_remote("s3://bucket/a.tar")
    assert is_remote("https://host/a.tar")
    assert not is_remote("shards/a.tar")
    assert not is_remote("/shards/a:b.tar")


def test_brace_ranges_expand_without_a_request() -> None:
    assert expand_remote("https://no.invalid/t-{08..10}.tar?key=1") == [
        f"https://no.invalid/t-{i}.tar?key=1" for i in ("08", "09", "10")
    ]
    assert expand_remote("s3://bucket/{b,a}/x.tar") == ["s3://bucket/b/x.tar", "s3://bucket/a/x.tar"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("s3://bucket/t-{0..3.tar", "has an unbalanced brace"),
        ("s3://bucket/t-{}.tar", "name no shard"),
        ("s3://bucket", "names no file"),
        ("s3://bucket/folder/", "names no file"),
        ("https://host/?key=1", "names no file"),
        ("file:///data/a.tar", "is the address of a local file; give its path: '/data/a.tar'"),
        ("simplecache::s3://bucket/a.tar", "is not the address of a file"),
    ],
)
def test_address_without_a_file_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expand_remote(pattern)
