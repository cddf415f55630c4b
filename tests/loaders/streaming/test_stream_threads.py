"""The threads of a stream end with it."""

from __future__ import annotations

import gc
import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from patchnpack.loaders.streaming.pack_stream import pack_stream
from tests.loaders.streaming.streams import PACKING, decoding_threads, endless, flat


def wait_for_no_threads() -> None:
    end = time.monotonic() + 5
    while decoding_threads() and time.monotonic() < end:
        time.sleep(0.01)
    assert decoding_threads() == []


def test_no_thread_outlives_the_stream() -> None:
    options: dict[str, Any] = {"batch_size": 2, "num_threads": 3}
    list(pack_stream(itertools.islice(endless(), 50), PACKING, **options))
    wait_for_no_threads()

    stream = pack_stream(endless(), PACKING, **options)
    next(stream)
    assert len(decoding_threads()) == 3
    stream.close()
    assert decoding_threads() == []
    assert list(stream) == []

    gc.disable()
    try:
        stream = pack_stream(endless(), PACKING, **options)
        next(stream)
        assert len(decoding_threads()) == 3
        del stream  # reference counting alone closes it: nothing in a stream refers back to it
        assert decoding_threads() == []
    finally:
        gc.enable()

    def broken(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        next(pack_stream(endless(), PACKING, transform=broken, **options))
    wait_for_no_threads()

    def failing() -> Iterator[tuple[np.ndarray, int]]:
        yield from itertools.islice(endless(), 400)
        raise ConnectionError("the source broke")

    with pytest.raises(ConnectionError, match="the source broke"):
        list(pack_stream(failing(), PACKING, **options))
    wait_for_no_threads()


def test_unstarted_stream_has_no_threads_and_reads_nothing() -> None:
    source = itertools.count()
    stream = pack_stream(((flat(8, 8), i) for i in source), PACKING, batch_size=1, num_threads=2)
    assert decoding_threads() == []
    stream.close()
    assert next(source) == 0


def test_default_is_one_thread_per_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchnpack.loaders.streaming.stream.cpu_share", lambda: 3)
    for num_threads, expected in ((None, 3), (1, 1), (0, 0)):
        stream = pack_stream(endless(), PACKING, batch_size=1, num_threads=num_threads)
        next(stream)
        assert len(decoding_threads()) == expected
        stream.close()


def test_zero_threads_decode_in_the_callers_thread() -> None:
    seen = set()

    def note(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        seen.add(threading.current_thread())
        return image

    list(pack_stream([(flat(8, 8), 0)] * 20, PACKING, batch_size=1, num_threads=0, transform=note))
    assert seen == {threading.current_thread()}
