"""A misbehaving HTTP server for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.loaders.misbehaving import Misbehaving


@pytest.fixture
def server() -> Iterator[Misbehaving]:
    with Misbehaving() as server:
        yield server
