"""Real image sizes to pack, resampled, and their token counts.

The tables are CSV files with the columns `width` and `height`, in pixels, by default those of `../shared/data/sizes`
beside the checkout, whose README names their sources. The clothing shards beside them give one more table. Whatever is
absent is skipped with a printed line.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from patchnpack import Packing
from patchnpack.loaders import scan
from patchnpack.packer import Rows
from patchnpack.packer.planning.measure import measure
from patchnpack.report.size_table import read_size_tables

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SIZES = DATA / "sizes"
CLOTHING = str(DATA / "clothing" / "train-{000000..000009}.tar")
SEQ_LENS = (1024, 2048, 4096, 8192, 16384)


def size_tables(folder: Path, shards: str, images: int) -> Iterator[tuple[str, Rows]]:
    """Yield (name, rows) of each table: `images` sizes drawn from it with replacement, seed 0.

    Args:
        folder: holds the CSV files.
        shards: pattern of the shards that give one more table, named after their folder.
        images: number of images to draw from each table.
    """
    files = sorted(folder.glob("*.csv"))
    if not files:
        print(f"{folder} is skipped: it holds no CSV files")
    for file in files:
        yield file.stem, _resample(read_size_tables([str(file)]).rows(None), images)
    try:
        index = scan(shards)
    except FileNotFoundError as error:
        print(f"{shards} is skipped: {error}")
        return
    yield Path(shards).parent.name or shards, _resample(index.rows(np.flatnonzero(index.width > 0)), images)


def _resample(rows: Rows, images: int) -> Rows:
    chosen = np.random.default_rng(0).integers(0, len(rows), images)
    return Rows.of_sizes(rows.width[chosen], rows.height[chosen])


def token_counts(rows: Rows, seq_len: int) -> np.ndarray:
    """Tokens of each image at native size and patch 16, int64 (n,); an image above L is shrunk to at most L."""
    images = measure(rows, Packing(seq_len=seq_len), seed=0, epoch=0).images
    return images.keep.astype(np.int64)
