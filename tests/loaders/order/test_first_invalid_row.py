"""Errors about an image's size name its key and its shard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from patchnpack.loaders import PackedImageLoader
from patchnpack.packer import Native, Packing, SampleSide

SIZES = [(16, 16), (24, 8), (40, 40), (16, 8), (48, 40)]


@pytest.fixture
def shards(tmp_path: Path, write_tar: Any, encode_image: Any) -> list[str]:
    images = [encode_image(Image.new("RGB", size), "PNG") for size in SIZES]
    return [
        write_tar(tmp_path / "a.tar", [(f"a{i}.png", image) for i, image in enumerate(images[:2])]),
        write_tar(tmp_path / "b.tar", [(f"b{i}.png", image) for i, image in enumerate(images[2:])]),
    ]


def test_oversize_image_is_named_with_its_shard(shards: list[str]) -> None:
    with pytest.raises(
        ValueError, match=r"row 2 of 40x40 .* \(2 rows do\).*; the first is 'b0' in shard '.*b.tar', row 2"
    ):
        PackedImageLoader(shards, Packing(seq_len=16, patch_size=8, oversize="error"), batch_size=1)


def test_image_smaller_than_a_patch_is_named_with_its_shard(shards: list[str]) -> None:
    packing = Packing(seq_len=16, patch_size=16, resolution=Native(edge="crop"), undersize="error")
    with pytest.raises(ValueError, match=r"24x8 pixels is smaller .*; the first is 'a1' in shard '.*a.tar', row 1"):
        PackedImageLoader(shards, packing, batch_size=1)


def test_image_that_a_later_epoch_draws_too_large_is_named(shards: list[str]) -> None:
    packing = Packing(seq_len=16, patch_size=8, resolution=SampleSide(low=8, high=40), oversize="error")
    loader = None
    for seed in range(100):
        try:
            loader = PackedImageLoader(shards, packing, batch_size=1, seed=seed)  # epoch 0 is measured here
            break
        except ValueError:
            continue
    assert loader is not None
    loader.repeat = True
    with pytest.raises(
        ValueError, match=r"more than seq_len 16 .*; the first is '[ab]\d' in shard '.*[ab].tar', row \d"
    ):
        list(loader)


def test_sample_that_cannot_be_packed_is_named_by_its_first_image(shards: list[str]) -> None:
    packing = Packing(seq_len=40, patch_size=8, oversize="error")
    with pytest.raises(
        ValueError,
        match=r"the sample of row 2 has .*; the first such sample begins with 'b0' in shard '.*b.tar', row 2",
    ):
        PackedImageLoader(shards, packing, batch_size=1, sample=r"key:(.)\d")
    packing = Packing(seq_len=200, patch_size=16, resolution=Native(edge="crop"), undersize="error")
    with pytest.raises(
        ValueError, match=r"row 1 of 24x8 pixels .*; the first such sample begins with 'a0' in shard '.*a.tar', row 0"
    ):
        PackedImageLoader(shards, packing, batch_size=1, sample=r"key:(.)\d")


def test_samples_that_are_all_oversize_name_both_limits(shards: list[str]) -> None:
    says = (
        r"none of the 2 samples of 5 rows can be used: 2 have more than seq_len 200 tokens or max_images 1 images and "
        r"oversize is 'skip'. To use some, raise seq_len or max_images, choose images with frames=Frames\(...\), or"
    )
    packing = Packing(seq_len=200, patch_size=8, max_images=1, oversize="skip")
    with pytest.raises(ValueError, match=says):
        PackedImageLoader(shards, packing, batch_size=1, sample=r"key:(.)\d")
