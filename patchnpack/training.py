"""Train a model on shards: loaders, model and trainer in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from patchnpack.augment import RandAugment
from patchnpack.class_weights import class_weights as class_weights_of
from patchnpack.loaders import Index, PackedImageLoader
from patchnpack.loaders.imaging.user_decode import Decode
from patchnpack.models import NaViT, NaViTConfig
from patchnpack.packer import NoDrop, Packing, PatchSizes
from patchnpack.packer.files import atomic_write
from patchnpack.packer.policies.resolution import Resolution
from patchnpack.trainer import (
    Classification,
    Contrastive,
    Distillation,
    Objective,
    TrainConfig,
    TrainResult,
    train,
)
from patchnpack.weights.export import check_export
from patchnpack.weights.files import open_model, with_config

CLASSES_FILE = "classes.txt"  # in the folder of a run: the class names, if they come from folders or tables
UNDERLYING = 32  # patch size of the weights in FlexiViT (arXiv 2212.08013, section 3.4)


def train_on_shards(
    shards: Index | str,
    validation: Index | str | None,
    packing: Packing | None,
    training: TrainConfig,
    *,
    model: dict[str, Any],
    out: Path,
    batch_size: int = 4,
    label: str | None = "cls",
    classes: str | None = None,
    num_classes: int | None = None,
    augment: RandAugment | None = None,
    eval_resolution: Resolution | None = None,
    eval_patch_size: int | None = None,
    underlying: int | None = None,
    init: Path | None = None,
    teacher: Path | None = None,
    text: str | None = None,
    class_weights: str | None = None,
    export_to: str | None = None,
    pages: str = "first",
    decode: Decode | None = None,
    resume: bool | None = None,
    log: Callable[[int, dict[str, float]], None] | None = None,
    started: Callable[[], None] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train a `NaViT` on packed batches of `shards`, and evaluate it on `validation` without token drop.

    Args:
        shards: index of the training images, or a packed folder. If its labels are names, their numbers hold for
            validation as well, and are written to `classes.txt` in `out`.
        validation: index of the validation images, a packed folder, or None.
        packing: packing of the training images; None is that of the packed folder.
        training: the training configuration.
        model: fields of `NaViTConfig` that do not follow from the packing or the classes; with `init`, those that its
            weights do not show.
        out: folder for checkpoints and history.
        batch_size: packs per batch.
        label: member that holds the label, such as "cls" or "json:FIELD"; None for a packed folder is its own.
        classes: file with one class name per line.
        num_classes: outputs of the head; None is one more than the highest label of `shards`.
        augment: RandAugment for training images.
        eval_resolution: resolution policy for validation; None is the policy of `packing`, which must not draw sizes.
        eval_patch_size: patch size for validation; None is the patch size of `packing`, or the middle one of several.
        underlying: patch size of the weights, if the packing has several patch sizes; None is 32.
        init: weights to start from, as `open_model` takes them; the head is replaced if the number of classes differs.
        teacher: the teacher for distillation, a checkpoint or weights of another library.
        text: member with the texts for image-text training, which reads no labels.
        pages: "first" or "error": what becomes of files with several pages, as in `PackedImageLoader`.
        decode: a function that decodes images, as in `PackedImageLoader`.
        class_weights: "balanced", or a file with a weight per class; see `patchnpack.class_weights`.
        export_to: "timm", "big_vision" or "onnx": raise before training if the model could not be exported there.
        resume, log, started: as in `train`.
        storage_options: options for remote shards.

    Raises:
        ValueError: options contradict each other; raised before training starts.
    """
    if text is not None:
        _check_image_text(training, num_classes=num_classes, teacher=teacher, class_weights=class_weights)
        if isinstance(shards, Index) and text.lstrip(".").lower() not in shards.members:
            found = ", ".join(sorted(shards.members))
            raise ValueError(f"text is {text!r}, which no sample has; their members are {found}: name one of them")
    teacher_model = None if teacher is None else open_model(teacher)
    needs_labels = text is None and (teacher_model is None or training.task_weight or training.mixup or training.cutmix)
    shared: dict[str, Any] = {
        "batch_size": batch_size,
        "label": label if needs_labels or (text is None and validation is not None) else None,
        "classes": classes if text is None else None,
        "extras": [text] if text else [],
        "pages": pages,
        "decode": decode,
        "storage_options": storage_options,
    }
    if shared["label"] is None and isinstance(shards, Index):
        shared["classes"] = None
    loader = PackedImageLoader(shards, packing, shuffle=True, seed=training.seed, transform=augment, **shared)
    packing = loader.packing
    if shared["classes"] is None and loader.classes is not None:
        # Names that come with the data: the validation images may lack some, and must not be numbered by themselves.
        shared["classes"], started = loader.classes, _with_classes(started, out, loader.classes)
    held_out = None
    if isinstance(validation, str):
        held_out = PackedImageLoader(validation, None, **shared | {"label": label, "classes": classes})
        if held_out.classes != loader.classes:
            raise ValueError(
                f"validation is {validation!r}, whose classes are not those of the training data; pack it with them"
            )
    elif validation is not None:
        if shared["label"] is None and text is None:  # a packed folder knows its label
            shared["label"] = loader.source.options.label
        evaluated = _validation_packing(packing, eval_resolution, eval_patch_size)
        held_out = PackedImageLoader(validation, evaluated, **shared)
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
            network = start_from(init, num_classes, model, underlying)
        if export_to is not None:
            check_export(network, export_to)
        weights = None if class_weights is None else class_weights_of(class_weights, loader, num_classes)
        objective = _objective(network, training, teacher_model, text, weights)
    return train(
        network,
        loader,
        validation=held_out,
        config=training,
        objective=objective,
        out=out,
        resume=resume,
        log=log,
        started=started,
    )


def _with_classes(started: Callable[[], None] | None, out: Path, classes: Mapping[str, int]) -> Callable[[], None]:
    """Return `started`, called once the class names are in a file of the run's folder."""

    def begin() -> None:
        write_classes(out, classes)
        if started is not None:
            started()

    return begin


def write_classes(out: Path, classes: Mapping[str, int]) -> None:
    """Write class names, in the order of their numbers, to the file of a run's folder."""
    text = "".join(f"{name}\n" for name in classes)
    atomic_write(out / CLASSES_FILE, lambda file: file.write(text.encode("utf-8", "surrogateescape")))


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
    fields = {"patch_size": patch_size, "channels": packing.channels, "scope": packing.scope, **model}
    return NaViTConfig(num_classes=num_classes, **fields)


def start_from(
    path: Path, num_classes: int, model: Mapping[str, Any] | None = None, underlying: int | None = None
) -> NaViT:
    """Load weights to start from, with a new head if the number of classes differs.

    Args:
        path: a checkpoint, or weights of another library, as `open_model` takes them.
        num_classes: outputs of the head.
        model: fields of `NaViTConfig` that the weights do not show; drop_path is 0 unless it is among them.
        underlying: patch size of the weights; None is that of the file.

    Raises:
        ValueError: `model` or `underlying` contradicts the weights.
    """
    fields = dict(model or {}) | ({} if underlying is None else {"patch_size": underlying})
    loaded = open_model(path, fields)
    return with_config(loaded, num_classes=num_classes, drop_path=fields.get("drop_path", 0.0))


def _objective(
    network: NaViT, training: TrainConfig, teacher: NaViT | None, text: str | None, weights: np.ndarray | None
) -> Objective | None:
    """The objective of distillation, image-text training or weighted classes; None is plain classification."""
    if text is not None:
        config = network.config
        tower = {"width": config.width, "depth": config.depth, "heads": config.heads}
        return Contrastive(network, text=text, tower=tower)
    task = {name: getattr(training, name) for name in ("loss", "label_smoothing", "mixup", "cutmix")}
    task |= {} if weights is None else {"class_weights": weights.tolist()}
    if teacher is not None:
        return Distillation(teacher, temperature=training.temperature, task_weight=training.task_weight, **task)
    return None if weights is None else Classification(**task)


def _validation_packing(packing: Packing, resolution: Resolution | None, patch_size: int | None) -> Packing:
    """The packing for validation: one patch size, the same sizes in every epoch, no token drop, no flips."""
    sizes = sorted(packing.patch_sizes)
    if resolution is None and packing.resolution.draws:
        raise ValueError(
            f"resolution is {packing.resolution}, which draws sizes, so validation would differ each time; give "
            "eval_resolution, such as fit:256"
        )
    return packing.replace(
        token_drop=NoDrop(),
        flip=0.0,
        vflip=0.0,
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
