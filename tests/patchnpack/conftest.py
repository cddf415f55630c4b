from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from webdataset import ShardWriter

from patchnpack import PackedBatch, Packing, pack_stream
from tests.images import encode_image


@pytest.fixture
def shards(tmp_path: Path) -> Callable[..., str]:
    """Writes a shard of small PNG images, grey level and label alike, and gives its path."""

    def write(name: str = "images.tar", images: int = 24, broken: int = 0) -> str:
        path = tmp_path / name
        rng = np.random.default_rng(0)
        with ShardWriter(f"{tmp_path}/%d{name}", verbose=0, encoder=False) as sink:
            for i in range(images):
                width, height = rng.integers(16, 65, 2)
                grey = np.full((height, width, 3), i % 2 * 200 + 20, np.uint8)
                data = b"no image" if i < broken else encode_image(grey, "PNG")
                sink.write({"__key__": f"{i:03d}", "png": data, "cls": str(i % 2).encode()})
        (tmp_path / f"0{name}").rename(path)
        return str(path)

    return write


@pytest.fixture
def pack() -> Callable[[list[np.ndarray]], PackedBatch]:
    """One batch of uint8 images (height, width, 3) in patches of 16 pixels; labels are their places in the list."""

    def packed(images: list[np.ndarray]) -> PackedBatch:
        samples = [(image, place) for place, image in enumerate(images)]
        [batch] = pack_stream(samples, Packing(seq_len=256, patch_size=16), batch_size=1, num_threads=0)
        return batch

    return packed
