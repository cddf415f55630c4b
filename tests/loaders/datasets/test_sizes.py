"""The pass over the sizes: cached by data and rows, in threads, with progress, in flat memory."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import Subset

from patchnpack import PackedImageLoader
from patchnpack.loaders.datasets.items import items_of
from patchnpack.loaders.datasets.sizes import index_of
from tests.loaders.datasets.collections_of_images import Items, Pairs, Photos
from tests.loaders.loading import PACKING


def test_cached_sizes_belong_to_the_rows_that_are_used(photos: Photos, tmp_path: Path) -> None:
    pairs: Any = Pairs(photos)
    widths = np.array([photos.pixels(i).shape[1] for i in range(40)])
    for rows in ([0, 1, 2], [5, 6, 7], [2, 1, 0]):
        loader = PackedImageLoader(
            Subset(pairs, rows), PACKING, batch_size=1, fingerprint="the same text", cache_dir=tmp_path
        )
        assert loader.index.width.tolist() == widths[rows].tolist()
    assert len(list((tmp_path / "indexes").iterdir())) == 3


def test_index_is_the_same_for_any_number_of_threads_and_reports_progress(photos: Photos, tmp_path: Path) -> None:
    many = Photos(200)
    items = items_of(Items(200, lambda i: many.data[i]), "", thread_safe=True, named=False)
    seen: list[tuple[int, int]] = []
    one, four = (
        index_of(
            items,
            sizes=None,
            fingerprint=None,
            folder=tmp_path,
            num_threads=threads,
            progress=lambda done, total: seen.append((done, total)),
        )
        for threads in (1, 4)
    )
    for name in ("width", "height", "orientation", "format", "pages", "digest", "nbytes"):
        assert np.array_equal(getattr(one, name), getattr(four, name))
    assert seen == [(64, 200), (128, 200), (192, 200), (200, 200)] * 2


def test_damaged_cache_is_read_again(photos: Photos, tmp_path: Path) -> None:
    def load() -> PackedImageLoader:
        return PackedImageLoader(photos.hugging_face(), PACKING, batch_size=1, fingerprint="x", cache_dir=tmp_path)

    widths = load().index.width.tolist()
    (file,) = (tmp_path / "indexes").iterdir()
    file.write_bytes(b"damaged")
    assert load().index.width.tolist() == widths
    assert file.stat().st_size > 100


def test_cache_that_cannot_be_written_is_a_warning(photos: Photos, tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "indexes").write_bytes(b"")  # a file where the folder belongs
    loader = PackedImageLoader(photos.hugging_face(), PACKING, batch_size=1, fingerprint="x", cache_dir=tmp_path)
    assert len(loader.index) == 40
    assert "the sizes cannot be cached" in caplog.text


@pytest.mark.parametrize("how", ["file of several pages", "sizes given"])
def test_pages_error_makes_files_of_several_pages_bad(photos: Photos, how: str) -> None:
    file = io.BytesIO()
    frames = [Image.fromarray(np.full((16, 24, 3), 90 * i, np.uint8)) for i in range(3)]
    frames[0].save(file, "TIFF", save_all=True, append_images=frames[1:])
    items = [(file.getvalue(), 0), (photos.data[0], 1)]
    sizes = [(24, 16), photos.pixels(0).shape[1::-1]] if how == "sizes given" else None
    loader = PackedImageLoader(items, PACKING, batch_size=1, pages="error", sizes=sizes)
    assert [key for batch in loader for keys in batch.keys for key in keys] == ["1"]
    assert "pages" in loader.stats()["bad"][0]["reason"]
    first = PackedImageLoader(items, PACKING, batch_size=1, sizes=sizes)
    assert sum(batch.num_images for batch in first) == 2
