"""`check_loader`: hold what a loader knows without reading pixels against a model, before any work starts."""

from __future__ import annotations

from typing import Any

from patchnpack.models.navit import NaViT


def check_loader(model: NaViT, loader: Any, *, labels: bool, patch_size: int | None = None) -> None:
    """Raise ValueError if the model cannot take the images of a loader, or with `labels` their labels.

    `NaViT.check` checks the same for one batch. A loader other than `PackedImageLoader` is checked only there, and so
    are labels outside the index and sizes drawn after the first epoch.

    Args:
        model: the model.
        loader: the loader.
        labels: whether the labels must be classes or targets of the model.
        patch_size: patch size into which the model cuts the images again; None is that of each batch.
    """
    if not hasattr(loader, "largest_grids"):
        return
    config, channels = model.config, loader.packing.channels
    if channels != config.channels:
        raise ValueError(
            f"images have {channels} channels, by the packing's channels or image_mode, but the model takes "
            f"{config.channels}; set NaViTConfig(channels={channels}), or another Packing(channels=...)"
        )
    if loader.packing.dtype in ("uint16", "int16") and set(config.mean + config.std) == {0.5}:
        raise ValueError(
            f"images are {loader.packing.dtype}, and mean and std of the model are 0.5, the defaults of 8-bit pixels; "
            "set NaViTConfig(mean=..., std=...) in the units of the pixels: `patchnpack stats SHARDS` prints them"
        )
    if loader.packing.scope != config.scope:
        raise ValueError(
            f"the packing has scope {loader.packing.scope!r}, by which packs are balanced, but the model has scope "
            f"{config.scope!r}; set Packing(scope={config.scope!r}), or another NaViTConfig(scope=...)"
        )
    if "absolute" in config.positions:
        grids = loader.largest_grids().items()  # by patch size, the most patches along a side, and the image
        sides = [(-(-side * size // (patch_size or size)), image) for size, (side, image) in grids]
        side, image = max(sides, default=(0, ""))
        if side > config.max_grid:
            raise ValueError(
                f"image {image} has {side} patches per side, but the position tables of the model end at max_grid "
                f"{config.max_grid}; raise max_grid to at least {side}, give position='fractional', or use smaller "
                "images or larger patches"
            )
    if not labels or (classes := config.num_classes) == 0:
        return
    shape = loader.context.labels.shape
    if shape and shape != (classes,):
        raise ValueError(
            f"labels have {shape[0]} targets per image, but the model has {classes} outputs; give num_classes="
            f"{shape[0]} to a new model"
        )
    for label, image in loader.label_range() or ():
        if not 0 <= label < classes:
            raise ValueError(
                f"label {label} is not a class from 0 to {classes - 1} (image {image}); set num_classes to the number "
                "of classes, or check label and classes of the loader"
            )
