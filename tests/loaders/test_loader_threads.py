from __future__ import annotations

import gc
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from patchnpack.loaders import Index, PackedImageLoader
from patchnpack.packer import PackedBatch
from tests.loaders.loading import PACKING, decoding_threads, keys_of

Check = Callable[..., None]
Contents = Callable[[PackedBatch], tuple[object, ...]]
MakeDrawn = Callable[..., Any]


pytestmark = pytest.mark.usefixtures("no_threads_left")


# Ends, good and bad


def test_discarded_iterator_leaves_no_threads(index: Index) -> None:
    batches = iter(PackedImageLoader(index, PACKING, batch_size=1, num_threads=3, prefetch=4))
    assert not decoding_threads()
    next(batches)
    assert len(decoding_threads()) == 3
    del batches
    assert not decoding_threads()


def test_loop_that_breaks_or_raises_leaves_no_threads(index: Index) -> None:
    loader = PackedImageLoader(index, PACKING, batch_size=1, num_threads=3)
    for _ in loader:
        break
    assert not decoding_threads()

    def interrupted() -> None:
        for _ in loader:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not decoding_threads()
    assert len(list(loader)) > 5


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no alarm")
def test_interrupt_while_waiting_for_an_image_ends_the_threads(index: Index) -> None:
    def slow(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        time.sleep(0.05)
        return image

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        began = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            list(PackedImageLoader(index, PACKING, batch_size=50, transform=slow, num_threads=2))
        # Images in progress are waited for, the other images are not decoded.
        assert time.perf_counter() - began < 1.0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not decoding_threads()


def test_error_in_a_thread_leaves_no_other_threads(index: Index) -> None:
    def broken(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(PackedImageLoader(index, PACKING, batch_size=2, transform=broken, num_threads=4, prefetch=4))
    assert not decoding_threads()


def test_forgotten_iterator_in_a_cycle_is_cleaned_up(index: Index) -> None:
    class Holder:
        pass

    holder: Any = Holder()
    holder.batches = iter(PackedImageLoader(index, PACKING, batch_size=1, num_threads=2))
    next(holder.batches)
    holder.me = holder
    del holder
    gc.collect()
    assert not decoding_threads()


def test_python_exits_with_an_open_iterator(drawn: Any) -> None:
    code = f"""
from patchnpack.loaders import PackedImageLoader
from patchnpack.packer import Packing
batches = iter(PackedImageLoader({drawn.shards[0]!r}, Packing(seq_len=64, patch_size=8), batch_size=1, num_threads=2))
next(batches)
print("open")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "open\n", "")


def test_python_exits_while_a_transform_runs_torch(drawn: Any) -> None:
    code = f"""
import torch
from patchnpack.loaders import PackedImageLoader
from patchnpack.packer import Packing
torch.set_num_threads(1)
matrix = torch.zeros(3000, 3000)

def slow(image, rng):
    if len(image) and started.append(1) is None and len(started) > 20:
        matrix @ matrix
    return image

started = []
packing = Packing(seq_len=64, patch_size=8)
batches = iter(PackedImageLoader({drawn.shards!r}, packing, batch_size=1, num_threads=2, prefetch=30, transform=slow))
next(batches)
while len(started) < 25:
    pass
print("open")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "open\n", "")


def test_two_loaders_at_once_do_not_disturb_each_other(drawn: Any, index: Index, check_batch: Check) -> None:
    options: dict[str, Any] = {"label": "cls", "extras": ["txt"], "num_threads": 2}
    first = PackedImageLoader(index, PACKING, batch_size=2, **options)
    second = PackedImageLoader(drawn.shards, PACKING, batch_size=2, shuffle=True, **options)
    seen: tuple[list[PackedBatch], list[PackedBatch]] = ([], [])
    for pair in zip(first, second, strict=False):
        for batches, batch in zip(seen, pair, strict=True):
            check_batch(batch, drawn, index, PACKING)
            batches.append(batch)
    assert keys_of(seen[0]) != keys_of(seen[1])


def test_prefetch_bounds_how_far_ahead_images_are_decoded(index: Index) -> None:
    made: list[int] = []

    def note(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        made.append(1)
        return image

    for prefetch in (1, 3):
        made.clear()
        batches = iter(
            PackedImageLoader(index, PACKING, batch_size=1, prefetch=prefetch, transform=note, num_threads=1)
        )
        ahead = [len(keys) for batch in PackedImageLoader(index, PACKING, batch_size=1) for keys in batch.keys]
        next(batches)
        for _ in range(200):
            if len(made) >= sum(ahead[: prefetch + 1]):
                break
            time.sleep(0.005)
        time.sleep(0.05)
        assert len(made) == sum(ahead[: prefetch + 1])
        del batches


def test_shard_that_changes_during_the_epoch_raises_with_its_name(make_drawn: MakeDrawn) -> None:
    drawn = make_drawn([5])
    loader = PackedImageLoader(drawn.shards, PACKING, batch_size=1)
    with open(drawn.shards[0], "ab") as file:
        file.write(bytes(512))
    with pytest.raises(OSError, match=r"drawn-000.tar' has \d+ bytes but had \d+ when it was indexed: it has changed"):
        list(loader)
