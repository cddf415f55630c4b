from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from patchnpack.packer.batch.packed_batch import PackedBatch
from patchnpack.trainer import repatchify

Draw = Callable[..., Any]
Pack = Callable[..., Any]


@pytest.fixture
def batch(draw: Draw, pack: Pack) -> PackedBatch:
    images = [draw(5, 3, 1), draw(2, 4, 0), draw(4, 4, -100), draw(1, 1, 3)]
    batch: PackedBatch = pack([images[:2], [], images[2:]])
    return batch


@pytest.mark.parametrize("patch_size", [2, 3, 4, 8, 16])
def test_repatchified_images_hold_the_same_pixels_and_0_beyond_their_edges(patch_size: int, batch: PackedBatch) -> None:
    again = repatchify(batch, patch_size)
    assert again.keys == [["0/0", "0/1", "2/0", "2/1"]]
    for old, new in zip(batch.images(), again.images(), strict=True):
        pixels, others = old.pixels(), new.pixels()
        height, width = pixels.shape[:2]
        assert new.grid == (-(-width // patch_size), -(-height // patch_size))
        assert (others[:height, :width] == pixels).all()
        assert not others[height:].any()
        assert not others[:, width:].any()


def test_an_image_with_dropped_tokens_is_not_repatchified(draw: Draw, pack: Pack) -> None:
    with pytest.raises(ValueError, match=r"has 7 of its 15 tokens.*patch size 8 needs all pixels"):
        repatchify(pack([[draw(5, 3, keep=7)]]), 8)
