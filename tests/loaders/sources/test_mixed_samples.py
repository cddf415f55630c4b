"""Images of a batch, each read as its own source reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from patchnpack import Mixture, PackedImageLoader
from tests.images import draw_image, encode_image, write_tar
from tests.loaders.documents import PACKING


class Albums:
    """Two albums of two drawings each, with a caption."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> dict[str, object]:
        return {"png": [np.asarray(draw_image(16, 16, seed=10 * i + j)) for j in range(2)], "txt": f"album {i}"}


@pytest.fixture
def loader(tmp_path: Path) -> PackedImageLoader:
    """Rows 0 to 2 are pages of a document, row 3 is one of its own, and rows 4 to 7 are the albums."""
    pages = [(f"a.{i}.png", encode_image(draw_image(8, 8 + i, seed=i), "PNG")) for i in range(3)]
    alone = ("b.png", encode_image(draw_image(9, 9), "PNG"))
    shard = write_tar(tmp_path / "a.tar", [*pages, ("a.txt", b"document"), alone, ("b.txt", b"page")])
    sources = {"tar": (shard, 1.0), "albums": (Albums(), 1.0)}
    return PackedImageLoader(Mixture(sources), PACKING, batch_size=1, image="png", sample="members", extras=["txt"])


def test_neighbours_share_members_within_their_source_only(loader: PackedImageLoader) -> None:
    samples = loader.context.samples(np.array([4, 5, 6, 7, 0, 1, 2, 3]))
    assert samples.shares("txt").tolist() == [False, True, False, True, False, True, True, False]
    assert not samples.continued().any()
    views = loader.context.samples(np.array([0, 0, 4, 4, 5]))  # two views of a page, and of a drawing
    assert views.continued().tolist() == [False, True, False, True, False]


def test_each_image_and_member_is_that_of_its_source(loader: PackedImageLoader) -> None:
    rows = np.array([7, 1, 4, 3])
    samples = loader.context.samples(rows)
    drawn = [draw_image(16, 16, seed=11), draw_image(8, 9, seed=1), draw_image(16, 16, seed=0), draw_image(9, 9)]
    for i, image in enumerate(drawn):
        pixels = samples.decode(i, samples.read(i), image.size, None, True, lambda kind: None)
        assert np.array_equal(pixels, np.asarray(image))
    assert [samples.extra(i, "txt") for i in range(4)] == ["album 1", "document", "album 0", "page"]
