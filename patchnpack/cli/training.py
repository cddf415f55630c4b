"""The command `train`, and what commands that read a checkpoint share with it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchnpack.cli.options.arguments import (
    BatchSize,
    Classes,
    ClassWeights,
    Label,
    NumClasses,
    Pages,
    Shards,
    Validation,
    was_given,
)
from patchnpack.cli.options.flags import (
    MODEL_FLAGS,
    PACKING_FLAGS,
    ImageOptions,
    takes_images,
    takes_model,
    takes_packing,
    takes_training,
)
from patchnpack.cli.options.model_fields import given_fields
from patchnpack.cli.options.parsers import parse_resolution
from patchnpack.cli.options.run_file import RUN_FILE, RunFile, write_run_file
from patchnpack.cli.sources import open_both, packed_folder, packing_of

if TYPE_CHECKING:
    from patchnpack.packer import Packing
    from patchnpack.trainer import TrainConfig


@contextmanager
def _process_group(device: str) -> Iterator[bool]:
    """Under torchrun, join the process group of the ranks; yields whether this rank writes and prints."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield True
        return
    import torch

    from patchnpack.trainer.device import find_device

    cuda = find_device(device).type == "cuda"
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield torch.distributed.get_rank() == 0
    finally:
        torch.distributed.destroy_process_group()


@takes_packing
@takes_model
@takes_training
@takes_images
def train(
    context: typer.Context,
    shards: Shards,
    *,
    packing: Packing,
    model: dict[str, Any],
    training: TrainConfig,
    images: ImageOptions,
    config: RunFile = None,
    validation: Validation = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the checkpoint, history and run.toml.")] = Path(
        "runs"
    ),
    resume: Annotated[
        bool | None,
        typer.Option(
            "--resume/--no-resume",
            help="Require a checkpoint in OUT, or delete it; default: resume if there is one.",
        ),
    ] = None,
    batch_size: BatchSize = 4,
    label: Label = "cls",
    classes: Classes = None,
    num_classes: NumClasses = None,
    augment: Annotated[str, typer.Option(help="RandAugment for training images as COUNT:MAGNITUDE, such as 2:9.")] = "",
    class_weights: ClassWeights = None,
    eval_resolution: Annotated[
        str | None, typer.Option(help="Resolution policy for validation; required if --resolution draws sizes.")
    ] = None,
    eval_patch_size: Annotated[
        int | None, typer.Option(help="Patch size for validation, if --patch-size has several.")
    ] = None,
    underlying: Annotated[
        int | None, typer.Option(help="Patch size of the weights, if --patch-size has several; default: 32.")
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            help="Weights to start from: a checkpoint.pt, or a .safetensors, .npz or .pth of timm, big_vision or "
            "transformers, with its config.json beside it; --model gives what they do not show, such as heads=12."
        ),
    ] = None,
    export_to: Annotated[
        str | None,
        typer.Option("--for", help="Refuse a model that could not be exported: timm, big_vision or onnx."),
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="Teacher for distillation: a checkpoint, or weights as for --init.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="Member with texts, such as txt, for image-text training.")] = None,
    tensorboard: Annotated[bool, typer.Option(help="Write TensorBoard scalars to OUT.")] = False,
    pages: Pages = "first",
) -> None:
    """Train a NaViT on images, with labels, a teacher or texts.

    patchnpack train 'train-{000000..000009}.tar' --validation validation-000000.tar --resolution fit:144 --epochs 10

    The same command resumes a run that was killed, and with more epochs or steps extends one that is finished. Under
    torchrun, all ranks train one model.
    """
    from patchnpack.augment import parse_augment
    from patchnpack.tensorboard import TensorBoard
    from patchnpack.training import train_on_shards

    fields = given_fields(context, model)
    with _process_group(training.device) as first:
        transform = parse_augment(augment)
        source, held_out = open_both(shards, validation, images)
        packing, is_packed = packing_of(context, source, packing, images.storage_options)
        result = train_on_shards(
            source,
            held_out,
            packing,
            training,
            model=fields,
            out=out,
            batch_size=batch_size,
            label=(label or None) if not is_packed or was_given(context, "label") else None,
            classes=classes,
            num_classes=num_classes,
            augment=transform,
            eval_resolution=None if eval_resolution is None else parse_resolution(eval_resolution, "--eval-resolution"),
            eval_patch_size=eval_patch_size,
            underlying=underlying,
            init=init,
            teacher=teacher,
            text=text,
            class_weights=class_weights,
            export_to=export_to,
            pages=pages,
            decode=images.decode,
            resume=resume,
            log=TensorBoard(out) if tensorboard else None,
            storage_options=images.storage_options,
            started=lambda: write_run(context, out, fields),
        )
    if first:
        for name, value in result.metrics.items():
            typer.echo(f"{name}: {value:.4f}" if name == "accuracy" else f"{name}: {value:.4g}")
        if result.skipped_steps:
            typer.echo(f"skipped steps: {result.skipped_steps}")
        typer.echo(f"wrote {result.checkpoint}")


def write_run(context: typer.Context, out: Path, fields: Mapping[str, Any] | None = None) -> None:
    """Write the options of a command to run.toml in `out`; fields of the model that no flag holds become its table.

    Options that the weights of --init or a packed folder decide are left out unless they were given.
    """
    from patchnpack.training import CLASSES_FILE

    names = [str(parameter.name) for parameter in context.command.params]
    excluded = ["config", "resume", "help", "storage_options", "model"]  # storage options may hold credentials
    decided = [*(MODEL_FLAGS if context.params.get("init") else ())]
    decided += [*PACKING_FLAGS, "label"] if packed_folder(list(context.params["shards"])) else []
    excluded += [name for name in decided if not was_given(context, name)]
    values = {name: context.params[name] for name in names if name not in excluded}
    if values.get("classes") is None and (out / CLASSES_FILE).exists():  # so that evaluation numbers them alike
        values["classes"] = str(out / CLASSES_FILE)
    if fields:
        values["model"] = {name: value for name, value in fields.items() if name not in MODEL_FLAGS}
        flags = {name: value for name, value in fields.items() if name in MODEL_FLAGS}
        values |= {name: ",".join(value) if isinstance(value, tuple) else value for name, value in flags.items()}
    write_run_file(out / RUN_FILE, values)


def add_training_commands(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("train")(train)
