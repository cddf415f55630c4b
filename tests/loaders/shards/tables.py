"""Parquet shards for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from patchnpack.loaders import PackedImageLoader
from patchnpack.packer import Packing
from tests.images import draw_image, encode_image

PACKING = Packing(seq_len=64, patch_size=8)
JPEG = encode_image(draw_image(40, 30))
OTHER = encode_image(draw_image(24, 24))
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path: Path, **columns: Any) -> str:
    """Write a table with an image in each row, unless `columns` has its own."""
    n = len(next(iter(columns.values())))
    pq.write_table(pa.table({"image": [JPEG] * n, **columns} if "image" not in columns else columns), path)
    return str(path)


def load(path: str, tmp_path: Path, **options: Any) -> list[Any]:
    loader = PackedImageLoader(path, PACKING, batch_size=1, cache_dir=tmp_path / "cache", **options)
    batches = list(loader)
    assert loader.stats()["bad_images"] == 0
    images = [image for batch in batches for image in batch.images()]
    return sorted(images, key=lambda image: image.key)
