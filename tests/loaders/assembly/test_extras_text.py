from __future__ import annotations

import pytest

from patchnpack.loaders.assembly.samples import extra
from patchnpack.loaders.errors import BadImage


@pytest.mark.parametrize("kind", ["txt", "json"])
def test_byte_order_mark_of_an_extra_does_not_count(kind: str) -> None:
    assert extra(kind, kind, b'\xef\xbb\xbf"hi"') == extra(kind, kind, b'"hi"')


def test_extra_that_is_not_utf_8_is_bad() -> None:
    with pytest.raises(BadImage, match=r"its .txt member cannot be read: 'utf-8' codec can't decode byte 0xe9"):
        extra("txt", "txt", b"caf\xe9")
