"""A stall is an error that names the stage; slow images are none."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from patchnpack.loaders import ErrorPolicy, PackedImageLoader, StallError
from patchnpack.packer import Packing

PACKING = Packing(seq_len=64, patch_size=8)


def test_stall_names_stage_image_shard_and_thread_without_hanging(drawn: Any) -> None:
    release = threading.Event()

    def stuck(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        release.wait(60)
        return image

    loader = PackedImageLoader(
        drawn.shards, PACKING, batch_size=2, transform=stuck, num_threads=2, errors=ErrorPolicy(stall_s=0.3)
    )
    began = time.monotonic()
    try:
        with pytest.raises(
            StallError,
            match=r"no image was finished for 0.3 seconds; patchnpack-decode-\d is at stage 'transform' of image "
            r"'s\di\d+' in shard '.*drawn-\d+.tar'.* raise stall_s",
        ):
            next(iter(loader))
        assert time.monotonic() - began < 10
    finally:
        release.set()


def test_slow_images_are_not_a_stall(drawn: Any) -> None:
    def slow(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        time.sleep(0.05)
        return image

    loader = PackedImageLoader(
        drawn.shards, PACKING, batch_size=8, transform=slow, num_threads=1, errors=ErrorPolicy(stall_s=0.4)
    )
    assert next(iter(loader)).num_images > 20  # a second of work, but images keep finishing
