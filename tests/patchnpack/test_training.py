from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from patchnpack import ConstantDrop, Packing, PatchSizes
from patchnpack.loaders import scan
from patchnpack.trainer import TrainConfig, load_checkpoint
from patchnpack.training import _validation_packing, model_config, train_on_shards

SMALL = {"width": 24, "depth": 1, "heads": 2}
CONFIG = TrainConfig(epochs=2, label_smoothing=0.0, precision="float32", device="cpu")


def test_train_on_shards_evaluates_and_writes_a_checkpoint(shards: Callable[..., str], tmp_path: Path) -> None:
    index = scan(shards())
    result = train_on_shards(
        index, index, Packing(seq_len=64, token_drop=ConstantDrop(0.5)), CONFIG, model=SMALL, out=tmp_path / "out"
    )
    assert result.model.config.num_classes == 2
    assert result.metrics["images"] == 24, "validation includes every image"
    assert result.checkpoint is not None
    assert load_checkpoint(result.checkpoint).model.config == result.model.config


def test_channels_and_patch_size_follow_the_packing(shards: Callable[..., str], tmp_path: Path) -> None:
    packing = Packing(seq_len=64, patch_size=8, image_mode="L", flip=0.5)
    result = train_on_shards(scan(shards()), None, packing, CONFIG, model=SMALL, out=tmp_path, num_classes=5)
    config = result.model.config
    assert (config.patch_size, config.channels, config.num_classes) == (8, 1, 5)


def test_contradicting_options_raise_before_training(shards: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"width 25 is not a multiple of heads 2"):
        train_on_shards(scan(shards()), None, Packing(seq_len=64), CONFIG, model={**SMALL, "width": 25}, out=tmp_path)


def test_validation_mirrors_no_image() -> None:
    packing = _validation_packing(Packing(flip=0.5, vflip=1.0), None, None)
    assert (packing.flip, packing.vflip) == (0.0, 0.0)


def test_several_patch_sizes_use_an_underlying_patch_size() -> None:
    packing = Packing(patch_size=PatchSizes((8, 12, 16)))
    assert model_config(packing, 10, {}).patch_size == 32
    assert model_config(packing, 10, {"width": 96}, underlying=48).patch_size == 48
    assert model_config(Packing(patch_size=8), 10, {}).patch_size == 8
    with pytest.raises(
        ValueError, match=r"underlying is 32, but patch_size is 8; underlying needs several patch sizes"
    ):
        model_config(Packing(patch_size=8), 10, {}, underlying=32)
