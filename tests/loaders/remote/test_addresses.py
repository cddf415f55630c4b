from __future__ import annotations

import pytest

from patchnpack.loaders.remote.addresses import ObjectMeta, redact


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
def test_address_is_shown_without_its_secrets(address: str, shown: str) -> None:
    assert redact(address) == shown


def test_object_meta_are_told_in_words() -> None:
    assert str(ObjectMeta(10, '"e"')) == '10 bytes, "e"'
    assert str(ObjectMeta(10, "")) == "10 bytes, without a version"
