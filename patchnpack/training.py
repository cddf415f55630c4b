"""Shards in, a trained model out: the loaders and the trainer put together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from patchnpack.augment import Compose, RandAugment, mirror_half
from patchnpack.loaders import Index, PackedImageLoader
from patchnpack.models import NaViT, NaViTConfig
from patchnpack.packer import NoDrop, Packing, PatchSizes
from patchnpack.packer.policies.resolution import Resolution
from patchnpack.trainer import Contrastive, Distillation, Objective, TrainConfig, TrainResult, load_checkpoint, train

UNDERLYING = 32  # FlexiViT's own (arXiv 2212.08013, section 3.4)


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
    augment: RandAugment | None = None,
    eval_resolution: Resolution | None = None,
    eval_patch_size: int | None = None,
    underlying: int | None = None,
    init: Path | None = None,
    teacher: Path | None = None,
    text: str | None = None,
    resume: bool | None = None,
    started: Callable[[], None] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Trains a `NaViT` on packed batches of `shards`; evaluates on `validation` without dropping tokens.

    Args:
        model: fields of `NaViTConfig` that do not follow from the packing or the classes.
        num_classes: outputs of the head; None is one more than the highest label of `shards`.
        flip, augment: what is done to training images.
        eval_resolution, eval_patch_size: of validation; None is the packing's own, which must not draw sizes, and the
            middle one of several patch sizes.
        underlying: patch size of the weights, where the packing has several patch sizes; None is 32.
        init: checkpoint that training starts from; its head is left behind where the number of classes differs.
        teacher: checkpoint of a model to distill.
        text: member with the texts of image-text training; labels are then not read.
        resume, started: as in `train`.
        storage_options: of remote shards.

    Raises:
        ValueError: options that do not fit together, before training starts.
    """
    if text is not None:
        _check_image_text(training, num_classes=num_classes, teacher=teacher)
    taught = None if teacher is None else load_checkpoint(teacher).model
    needs_labels = text is None and (taught is None or training.task_weight or training.mixup or training.cutmix)
    steps: list[Any] = [step for step in (mirror_half if flip else None, augment) if step is not None]
    shared: dict[str, Any] = {
        "batch_size": batch_size,
        "label": label if needs_labels or (text is None and validation is not None) else None,
        "classes": classes if text is None else None,
        "extras": [text] if text else [],
        "storage_options": storage_options,
    }
    if shared["label"] is None:
        shared["classes"] = None
    loader = PackedImageLoader(
        shards,
        packing,
        shuffle=True,
        seed=training.seed,
        transform=Compose(steps) if steps else None,
        **shared,
    )
    held_out = None
    if validation is not None:
        held_out = PackedImageLoader(validation, _held_out(packing, eval_resolution, eval_patch_size), **shared)
    if text is not None:
        num_classes = 0
    elif taught is not None and num_classes is None:
        num_classes = taught.config.num_classes
    elif num_classes is None:
        num_classes = loader.num_classes
    with torch.random.fork_rng([]):
        torch.manual_seed(training.seed)
        if init is None:
            network = NaViT(model_config(packing, num_classes, model, underlying))
        else:
            network = from_checkpoint(init, num_classes, model, underlying)
        objective: Objective | None = None
        if taught is not None:
            task = {name: getattr(training, name) for name in ("loss", "label_smoothing", "mixup", "cutmix")}
            objective = Distillation(taught, temperature=training.temperature, task_weight=training.task_weight, **task)
        if text is not None:
            config = network.config
            tower = {"width": config.width, "depth": config.depth, "heads": config.heads}
            objective = Contrastive(network, text=text, tower=tower)
    return train(
        network,
        loader,
        validation=held_out,
        config=training,
        objective=objective,
        out=out,
        resume=resume,
        started=started,
    )


def model_config(
    packing: Packing, num_classes: int, model: dict[str, Any], underlying: int | None = None
) -> NaViTConfig:
    """The model for a packing. With several patch sizes its weights are of `underlying` (FlexiViT), None is 32.

    >>> model_config(Packing(patch_size=PatchSizes((8, 16))), 10, {}).patch_size
    32
    """
    if isinstance(packing.patch_size, PatchSizes):
        patch_size = UNDERLYING if underlying is None else underlying
    elif underlying is None:
        patch_size = packing.patch_size
    else:
        raise ValueError(
            f"underlying is {underlying}, and patch_size {packing.patch_size}; it is for several patch sizes: 8,16,32"
        )
    return NaViTConfig(num_classes=num_classes, patch_size=patch_size, channels=packing.channels, **model)


def from_checkpoint(
    path: Path, num_classes: int, model: dict[str, Any] | None = None, underlying: int | None = None
) -> NaViT:
    """The model of a checkpoint, with a new head where the number of classes differs; `drop_path` is that of `model`.

    Raises:
        ValueError: `model` or `underlying` asks for another model than the checkpoint's.
    """
    loaded, model = load_checkpoint(path).model, dict(model or {})
    asked = {**model, "patch_size": loaded.config.patch_size if underlying is None else underlying}
    changes = {"num_classes": num_classes, "drop_path": asked.pop("drop_path", 0.0)}
    for field in dataclasses.fields(NaViTConfig):
        value = asked.get(field.name, field.default)
        # a flag that was left out has the default, and takes what the checkpoint has
        if value not in (field.default, its := getattr(loaded.config, field.name)) and field.name in asked:
            raise ValueError(f"{field.name} is {value}, and {path} has {its}; leave it out, or start without init")
    network = NaViT(dataclasses.replace(loaded.config, **changes))
    weights = loaded.state_dict()
    if num_classes != loaded.config.num_classes:
        weights = {name: value for name, value in weights.items() if not name.startswith("head.")}
        weights |= {name: value for name, value in network.state_dict().items() if name.startswith("head.")}
    network.load_state_dict(weights)
    return network


def _held_out(packing: Packing, resolution: Resolution | None, patch_size: int | None) -> Packing:
    """The packing of validation: one patch size, sizes that do not differ from epoch to epoch, every token."""
    sizes = sorted(packing.patch_sizes)
    if resolution is None and packing.resolution.draws:
        raise ValueError(
            f"resolution {packing.resolution} draws sizes, so validation would differ each time; give eval_resolution, "
            "such as fit:256"
        )
    return packing.replace(
        token_drop=NoDrop(),
        resolution=resolution or packing.resolution,
        patch_size=patch_size or sizes[len(sizes) // 2],
    )


def _check_image_text(training: TrainConfig, **others: object) -> None:
    defaults = TrainConfig(steps=1)
    for name in ("loss", "mixup", "cutmix", "task_weight", "temperature"):
        if (value := getattr(training, name)) != getattr(defaults, name):
            others[name] = value
    for name, value in others.items():
        if value is not None:
            raise ValueError(f"{name} is {value}, and text is given; image-text training has no classes: leave one out")
