from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patchnpack.augment import RandAugment, from_pil
from patchnpack.loaders import PackedImageLoader, pack_stream
from patchnpack.loaders.assembly.transform import WATCHED, watched
from tests.images import draw_image, encode_image, write_tar
from tests.loaders.loading import PACKING, noisy

IMAGE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)

SAYS = (
    "draws from a global generator (random, np.random or torch), so batches differ from run to run; draw from the rng"
)


def of_python(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image ^ np.uint8(random.randrange(256))


def of_numpy(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image ^ np.uint8(np.random.randint(256))  # noqa: NPY002


def of_torch(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image ^ np.uint8(torch.randint(256, ()).item())


def in_place(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    image ^= np.uint8(random.randrange(256))
    return image


def seeded(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    random.seed(int(rng.integers(1 << 32)))
    return of_python(image, rng)


def wasted(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    random.random()
    return noisy(image, rng)


def calls(transform: Any, images: int = 2 * WATCHED) -> None:
    for i in range(images):
        transform(IMAGE.copy(), np.random.default_rng(i))


@pytest.mark.parametrize("transform", [of_python, of_numpy, of_torch, in_place])
def test_a_transform_that_draws_from_a_global_generator_warns_once(
    transform: Callable[..., np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    calls(watched(transform))
    (record,) = caplog.records
    assert record.message.startswith(f"the transform {transform.__name__} {SAYS}")
    assert "wrap a function of PIL images in patchnpack.augment.from_pil" in record.message


@pytest.mark.parametrize("transform", [noisy, RandAugment(), from_pil(lambda p: p), seeded, wasted])
def test_a_transform_that_depends_on_image_and_generator_alone_does_not_warn(
    transform: Callable[..., np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    calls(watched(transform))
    assert not caplog.records


def test_draws_of_other_threads_do_not_warn(caplog: pytest.LogCaptureFixture) -> None:
    stop = threading.Event()

    def draws() -> None:
        while not stop.is_set():
            random.random(), torch.rand(1)

    thread = threading.Thread(target=draws)
    thread.start()
    try:
        for _ in range(4):
            calls(watched(noisy))
    finally:
        stop.set()
        thread.join()
    assert not caplog.records


def test_a_watched_transform_returns_what_the_transform_returns_and_calls_it_once_per_image() -> None:
    called: list[int] = []

    def counted(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        called.append(1)
        return noisy(image, rng)

    transform = watched(counted)
    assert transform is not None
    for i in range(WATCHED + 3):
        assert (transform(IMAGE, np.random.default_rng(i)) == noisy(IMAGE, np.random.default_rng(i))).all()
    assert len(called) == WATCHED + 3
    assert watched(None) is None


def test_loaders_and_streams_warn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = [encode_image(draw_image(16, 16, seed=i)) for i in range(12)]
    shard = write_tar(tmp_path / "a.tar", [(f"{i}.jpg", image) for i, image in enumerate(data)])
    caplog.set_level(logging.WARNING)
    list(PackedImageLoader(shard, PACKING, batch_size=1, transform=of_python, num_threads=2))
    list(pack_stream([(image, 0) for image in data], PACKING, batch_size=1, transform=of_numpy))
    assert [record.message.split()[2] for record in caplog.records] == ["of_python", "of_numpy"]
