"""Shards in, a trained model out: the loaders and the trainer put together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from patchnpack.loaders import Index, PackedImageLoader
from patchnpack.models import NaViTConfig, TrainConfig, TrainResult, train
from patchnpack.packer import NoDrop, Packing, PatchSizes


def mirror_half(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A transform that mirrors every other image, uint8 (H, W, C)."""
    return image[:, ::-1] if rng.random() < 0.5 else image


def train_on_shards(
    shards: Index,
    validation: Index | None,
    packing: Packing,
    training: TrainConfig,
    *,
    model: dict[str, Any],
    out: Path,
    batch_size: int = 4,
    label: str = "cls",
    classes: str | None = None,
    num_classes: int | None = None,
    flip: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Trains a `NaViT` on packed batches of `shards`; evaluates on `validation` without dropping tokens.

    Args:
        model: fields of `NaViTConfig` that do not follow from the packing or the classes.
        num_classes: outputs of the head; None is one more than the highest label of `shards`.
        storage_options: of remote shards.

    Raises:
        ValueError: options that do not fit together, before training starts.
    """
    if isinstance(packing.patch_size, PatchSizes):
        raise ValueError(f"patch_size is {packing.patch_size}; the model embeds patches of one size: choose one")
    loader = PackedImageLoader(
        shards,
        packing,
        batch_size=batch_size,
        shuffle=True,
        seed=training.seed,
        label=label,
        classes=classes,
        transform=mirror_half if flip else None,
        storage_options=storage_options,
    )
    held_out = None
    if validation is not None:
        held_out = PackedImageLoader(
            validation,
            packing.replace(token_drop=NoDrop()),
            batch_size=batch_size,
            label=label,
            classes=classes,
            storage_options=storage_options,
        )
    if num_classes is None:
        num_classes = loader.num_classes
    config = NaViTConfig(num_classes=num_classes, patch_size=packing.patch_size, channels=packing.channels, **model)
    return train(config, loader, validation=held_out, config=training, out=out)
