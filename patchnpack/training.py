"""Train a model on shards: loaders, model and trainer in one call."""

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
from patchnpack.packer.files import atomic_write
from patchnpack.packer.policies.resolution import Resolution
from patchnpack.trainer import Contrastive, Distillation, Objective, TrainConfig, TrainResult, load_checkpoint, train

CLASSES_FILE = "classes.txt"  # in the folder of a run: the class names, if they come from folders or tables
UNDERLYING = 32  # patch size of the weights in FlexiViT (arXiv 2212.08013, section 3.4)


def train_on_shards(
    shards: Index,
    validation: Index | None,
    packing: Packing,
    training: TrainConfig,
    *,
    model: dict[str, Any],
    out: Path,
    batch_size: int = 4,
    label: str | None = "cls",
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
    pages: str = "first",
    resume: bool | None = None,
    started: Callable[[], None] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train a `NaViT` on packed batches of `shards`, and evaluate it on `validation` without token drop.

    Args:
        shards: index of the training images. If its labels are names, their numbers hold for validation as well, and
            are written to `classes.txt` in `out`.
        validation: index of the validation images, or None.
        packing: packing of the training images.
        training: the training configuration.
        model: fields of `NaViTConfig` that do not follow from the packing or the classes.
        out: folder for checkpoints and history.
        batch_size: packs per batch.
        label: member that holds the label, such as "cls" or "json:FIELD".
        classes: file with one class name per line.
        num_classes: outputs of the head; None is one more than the highest label of `shards`.
        flip: mirror half of the training images at random.
        augment: RandAugment for training images.
        eval_resolution: resolution policy for validation; None is the policy of `packing`, which must not draw sizes.
        eval_patch_size: patch size for validation; None is the patch size of `packing`, or the middle one of several.
        underlying: patch size of the weights, if the packing has several patch sizes; None is 32.
        init: checkpoint to start from; its head is replaced if the number of classes differs.
        teacher: checkpoint of the teacher for distillation.
        text: member with the texts for image-text training, which reads no labels.
        pages: "first" or "error": what becomes of files with several pages, as in `PackedImageLoader`.
        resume, started: as in `train`.
        storage_options: options for remote shards.

    Raises:
        ValueError: options contradict each other; raised before training starts.
    """
    if text is not None:
        _check_image_text(training, num_classes=num_classes, teacher=teacher)
        if text.lstrip(".").lower() not in shards.members:
            found = ", ".join(sorted(shards.members))
            raise ValueError(f"text is {text!r}, which no sample has; their members are {found}: name one of them")
    teacher_model = None if teacher is None else load_checkpoint(teacher).model
    needs_labels = text is None and (teacher_model is None or training.task_weight or training.mixup or training.cutmix)
    transforms: list[Any] = [step for step in (mirror_half if flip else None, augment) if step is not None]
    shared: dict[str, Any] = {
        "batch_size": batch_size,
        "label": label if needs_labels or (text is None and validation is not None) else None,
        "classes": classes if text is None else None,
        "extras": [text] if text else [],
        "pages": pages,
        "storage_options": storage_options,
    }
    if shared["label"] is None:
        shared["classes"] = None
    transform = Compose(transforms) if transforms else None
    loader = PackedImageLoader(shards, packing, shuffle=True, seed=training.seed, transform=transform, **shared)
    if shared["classes"] is None and loader.classes is not None:
        # Names that come with the data: the validation images may lack some, and must not be numbered by themselves.
        shared["classes"], started = loader.classes, _with_classes(started, out, loader.classes)
    held_out = None
    if validation is not None:
        held_out = PackedImageLoader(
            validation, _validation_packing(packing, eval_resolution, eval_patch_size), **shared
        )
    if text is not None:
        num_classes = 0
    elif teacher_model is not None and num_classes is None:
        num_classes = teacher_model.config.num_classes
    elif num_classes is None:
        num_classes = loader.num_classes
    with torch.random.fork_rng([]):
        torch.manual_seed(training.seed)
        if init is None:
            network = NaViT(model_config(packing, num_classes, model, underlying))
        else:
            network = from_checkpoint(init, num_classes, model, underlying)
        objective = _objective(network, training, teacher_model, text)
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


def _with_classes(started: Callable[[], None] | None, out: Path, classes: Mapping[str, int]) -> Callable[[], None]:
    """Return `started`, called once the class names are in a file of the run's folder."""

    def begin() -> None:
        text = "".join(f"{name}\n" for name in classes)
        atomic_write(out / CLASSES_FILE, lambda file: file.write(text.encode("utf-8", "surrogateescape")))
        if started is not None:
            started()

    return begin


def model_config(
    packing: Packing, num_classes: int, model: dict[str, Any], underlying: int | None = None
) -> NaViTConfig:
    """Build the model configuration for a packing.

    Args:
        packing: its patch size, channels and scope become those of the model.
        num_classes: outputs of the head.
        model: other fields of `NaViTConfig`.
        underlying: patch size of the weights, if the packing has several patch sizes (FlexiViT); None is 32.

    >>> model_config(Packing(patch_size=PatchSizes((8, 16))), 10, {}).patch_size
    32
    """
    if isinstance(packing.patch_size, PatchSizes):
        patch_size = UNDERLYING if underlying is None else underlying
    elif underlying is None:
        patch_size = packing.patch_size
    else:
        raise ValueError(
            f"underlying is {underlying}, but patch_size is {packing.patch_size}; underlying needs several patch "
            "sizes, such as 8,16,32"
        )
    return NaViTConfig(
        num_classes=num_classes, patch_size=patch_size, channels=packing.channels, scope=packing.scope, **model
    )


def from_checkpoint(
    path: Path, num_classes: int, model: dict[str, Any] | None = None, underlying: int | None = None
) -> NaViT:
    """Load the model of a checkpoint, with a new head if the number of classes differs.

    Args:
        path: the checkpoint.
        num_classes: outputs of the head.
        model: fields of `NaViTConfig`; only `drop_path` may differ from the checkpoint.
        underlying: patch size of the weights; None is that of the checkpoint.

    Raises:
        ValueError: `model` or `underlying` contradicts the checkpoint.
    """
    loaded, model = load_checkpoint(path).model, dict(model or {})
    asked = {**model, "patch_size": loaded.config.patch_size if underlying is None else underlying}
    changes = {"num_classes": num_classes, "drop_path": asked.pop("drop_path", 0.0)}
    for field in dataclasses.fields(NaViTConfig):
        value = asked.get(field.name, field.default)
        # The default stands for a flag that was left out, so it takes the value of the checkpoint.
        if value not in (field.default, saved := getattr(loaded.config, field.name)) and field.name in asked:
            raise ValueError(f"{field.name} is {value}, but {path} has {saved}; leave it out, or start without init")
    network = NaViT(dataclasses.replace(loaded.config, **changes))
    weights = loaded.state_dict()
    if num_classes != loaded.config.num_classes:
        weights = {name: value for name, value in weights.items() if not name.startswith("head.")}
        weights |= {name: value for name, value in network.state_dict().items() if name.startswith("head.")}
    network.load_state_dict(weights)
    return network


def _objective(network: NaViT, training: TrainConfig, teacher: NaViT | None, text: str | None) -> Objective | None:
    """The objective of distillation or image-text training; None is classification."""
    if text is not None:
        config = network.config
        tower = {"width": config.width, "depth": config.depth, "heads": config.heads}
        return Contrastive(network, text=text, tower=tower)
    if teacher is not None:
        task = {name: getattr(training, name) for name in ("loss", "label_smoothing", "mixup", "cutmix")}
        return Distillation(teacher, temperature=training.temperature, task_weight=training.task_weight, **task)
    return None


def _validation_packing(packing: Packing, resolution: Resolution | None, patch_size: int | None) -> Packing:
    """The packing for validation: one patch size, the same sizes in every epoch, no token drop."""
    sizes = sorted(packing.patch_sizes)
    if resolution is None and packing.resolution.draws:
        raise ValueError(
            f"resolution is {packing.resolution}, which draws sizes, so validation would differ each time; give "
            "eval_resolution, such as fit:256"
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
            raise ValueError(
                f"{name} is {value} and text is given, but image-text training has no classes; leave one out"
            )
