"""The commands that train a model and run it: verbs over library calls."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from patchnpack.augment import parse_augment
from patchnpack.cli.arguments import IMAGES, Images, Shards, Storage, counted, open_shards
from patchnpack.cli.options import (
    parse_patch_size,
    parse_resolution,
    parse_storage_options,
    takes_evaluation,
    takes_model,
    takes_packing,
    takes_training,
    whole_flag,
)
from patchnpack.cli.run_file import RUN_FILE, RunFile, read_run_file, write_run_file
from patchnpack.loaders import PackedImageLoader
from patchnpack.models import NaViT
from patchnpack.packer import Packing, PatchSizes
from patchnpack.packer.files import make_folder_of
from patchnpack.predict import (
    check_can_plot,
    evaluation_packing,
    features,
    plot_sweep,
    predict,
    sweep,
    write_sweep,
    write_table,
)
from patchnpack.trainer import TrainConfig, load_checkpoint
from patchnpack.trainer.device import find_device
from patchnpack.training import train_on_shards

Label = Annotated[str, typer.Option(help="Member that holds the label, such as cls or json:FIELD.")]
Classes = Annotated[str | None, typer.Option(help="File with one class name a line.")]
BatchSize = Annotated[int, whole_flag("Packs in a batch.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Precision = Annotated[str, typer.Option(help="auto, float32 or bfloat16.")]


def _as_the_run(context: typer.Context, checkpoint: Path) -> Path:
    """Options default to those that a run was trained with, where its run.toml lies beside the checkpoint."""
    path = checkpoint.parent / RUN_FILE
    if path.exists():
        run = read_run_file(path)
        run["resolution"] = run.get("eval_resolution", run.get("resolution", "native"))
        patch_size = str(run.get("eval_patch_size", run.get("patch_size", "")))
        sizes = parse_patch_size(patch_size) if patch_size else 0
        run["patch_size"] = (
            str(sorted(sizes.sizes)[len(sizes.sizes) // 2]) if isinstance(sizes, PatchSizes) else patch_size
        )
        fields = {parameter.name for parameter in context.command.params} - {"checkpoint", "shards", "out"}
        context.default_map = {name: value for name, value in run.items() if name in fields}
    return checkpoint


CheckpointFile = Annotated[
    Path,
    typer.Argument(
        is_eager=True,
        callback=_as_the_run,
        help="A checkpoint.pt; the run.toml beside it, if there, says how images are packed and where labels are.",
    ),
]


@contextmanager
def _process_group(device: str) -> Iterator[bool]:
    """Under torchrun, the process group of its ranks; gives whether this is the one that writes and prints."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield True
        return
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
def train(
    context: typer.Context,
    shards: Shards,
    *,
    packing: Packing,
    model: dict[str, Any],
    training: TrainConfig,
    config: RunFile = None,
    validation: Annotated[list[str] | None, typer.Option("--validation", help="Shards to evaluate on.")] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for checkpoint, history and run.toml.")] = Path(
        "runs"
    ),
    resume: Annotated[
        bool | None,
        typer.Option(
            "--resume/--no-resume",
            help="Insist on going on from the checkpoint in OUT, or delete it; else as it is there.",
        ),
    ] = None,
    batch_size: BatchSize = 4,
    label: Label = "cls",
    classes: Classes = None,
    num_classes: Annotated[int | None, whole_flag("Outputs of the head; by default the highest label + 1.")] = None,
    flip: Annotated[bool, typer.Option(help="Mirror half of the training images.")] = False,
    augment: Annotated[str, typer.Option(help="RandAugment of training images, COUNT:MAGNITUDE: 2:9.")] = "",
    eval_resolution: Annotated[str | None, typer.Option(help="Of validation; needed where --resolution draws.")] = None,
    eval_patch_size: Annotated[int | None, typer.Option(help="Of validation, where there are several.")] = None,
    underlying: Annotated[
        int | None, typer.Option(help="Patch size of the weights, with several patch sizes; 32 by default.")
    ] = None,
    init: Annotated[Path | None, typer.Option(help="Checkpoint to start from.")] = None,
    teacher: Annotated[Path | None, typer.Option(help="Checkpoint of a model to distill.")] = None,
    text: Annotated[str | None, typer.Option(help="Member with texts, such as txt: image-text training.")] = None,
    image: Images = IMAGES,
    storage_options: Storage = None,
) -> None:
    """Train a NaViT on the images in SHARDS: on their classes, on a teacher's, or on their texts.

    patchnpack train 'train-{000000..000009}.tar' --validation validation-000000.tar --resolution fit:144 --epochs 10

    Run again, it goes on from where it was killed. Under torchrun the ranks train one model.
    """
    with _process_group(training.device) as first:
        transform = parse_augment(augment)
        held_out = open_shards(validation, image, storage_options) if validation else None
        index = open_shards(shards, image, storage_options)
        result = train_on_shards(
            index,
            held_out,
            packing,
            training,
            model=model,
            out=out,
            batch_size=batch_size,
            label=label,
            classes=classes,
            num_classes=num_classes,
            flip=flip,
            augment=transform,
            eval_resolution=None if eval_resolution is None else parse_resolution(eval_resolution),
            eval_patch_size=eval_patch_size,
            underlying=underlying,
            init=init,
            teacher=teacher,
            text=text,
            resume=resume,
            storage_options=parse_storage_options(storage_options or []),
            started=lambda: _write_run(context, out),
        )
    if first:
        for name, value in result.metrics.items():
            typer.echo(f"{name}: {value:.4f}" if name == "accuracy" else f"{name}: {value:.4g}")
        typer.echo(f"wrote {result.checkpoint}")


def _write_run(context: typer.Context, out: Path) -> None:
    names = [str(parameter.name) for parameter in context.command.params]
    others = ("config", "resume", "help", "storage_options")  # the last may hold credentials
    values = {name: context.params[name] for name in names if name not in others}
    write_run_file(out / RUN_FILE, values)


def _open(checkpoint: Path, device: str) -> NaViT:
    return load_checkpoint(checkpoint, find_device(device)).model


def _each_once(
    model: NaViT, shards: list[str], packing: dict[str, Any], image: str, storage: list[str] | None, **options: Any
) -> PackedImageLoader:
    """A loader that gives each image of the shards once, as the model takes it."""
    return PackedImageLoader(
        open_shards(shards, image, storage),
        evaluation_packing(model, packing),
        storage_options=parse_storage_options(storage or []),
        **options,
    )


def _must_be(path: Path, suffix: str) -> None:
    """Refuses a file of another kind; makes the folder that it will lie in."""
    if path.suffix != suffix:
        raise ValueError(f"out is {str(path)!r}; it must end in {suffix}")
    make_folder_of(path)


def _left_out(loader: PackedImageLoader) -> str:
    stats = loader.stats()
    return f"{counted(stats['bad_images'], 'bad image')}, {sum(stats['skipped'].values())} skipped"


@takes_evaluation
def evaluate_checkpoint(
    checkpoint: CheckpointFile,
    shards: Shards,
    *,
    packing: dict[str, Any],
    out: Annotated[Path, typer.Option("-o", "--out", help="The file, .parquet.")] = Path("predictions.parquet"),
    batch_size: BatchSize = 4,
    label: Label = "cls",
    classes: Classes = None,
    device: Device = "auto",
    precision: Precision = "auto",
    image: Images = IMAGES,
    storage_options: Storage = None,
) -> None:
    """Write what a trained model says of each image in SHARDS: key, row, label, prediction and logits.

    patchnpack eval runs/first/checkpoint.pt validation-000000.tar -o predictions.parquet
    """
    _must_be(out, ".parquet")
    model = _open(checkpoint, device)
    loader = _each_once(
        model, shards, packing, image, storage_options, batch_size=batch_size, label=label or None, classes=classes
    )
    table = predict(model, loader, precision=precision)
    write_table(out, table)
    pairs = [
        (x, y) for x, y in zip(*(table[c].to_pylist() for c in ("label", "prediction")), strict=True) if x is not None
    ]
    if pairs:
        hits = sum(x[y] == max(x) if isinstance(x, list) else x == y for x, y in pairs)
        typer.echo(f"accuracy: {hits / len(pairs):.4f} of {counted(len(pairs), 'labelled image')}")
    typer.echo(f"wrote {out}: {counted(len(table), 'image')}, {_left_out(loader)}")


@takes_evaluation
def write_features(
    checkpoint: CheckpointFile,
    shards: Shards,
    *,
    packing: dict[str, Any],
    out: Annotated[Path, typer.Option("-o", "--out", help="The file, .parquet.")] = Path("features.parquet"),
    batch_size: BatchSize = 4,
    device: Device = "auto",
    precision: Precision = "auto",
    image: Images = IMAGES,
    storage_options: Storage = None,
) -> None:
    """Write the feature vector of each image in SHARDS: key, row and feature.

    patchnpack features runs/first/checkpoint.pt train-000000.tar -o features.parquet
    """
    _must_be(out, ".parquet")
    model = _open(checkpoint, device)
    loader = _each_once(model, shards, packing, image, storage_options, batch_size=batch_size)
    table = features(model, loader, precision=precision)
    write_table(out, table)
    typer.echo(f"wrote {out}: {counted(len(table), 'image')}, {_left_out(loader)}")


@takes_evaluation
def sweep_checkpoint(
    checkpoint: CheckpointFile,
    shards: Shards,
    *,
    packing: dict[str, Any],
    patch_sizes: Annotated[str, typer.Option(help="Several: 8,16,32; by default --patch-size.")] = "",
    resolutions: Annotated[str, typer.Option(help="Several: fit:64,fit:144; by default --resolution.")] = "",
    out: Annotated[Path, typer.Option("-o", "--out", help="The table, .csv.")] = Path("sweep.csv"),
    plot: Annotated[Path | None, typer.Option(help="A picture of accuracy against tokens, .png.")] = None,
    batch_size: BatchSize = 4,
    label: Label = "cls",
    classes: Classes = None,
    device: Device = "auto",
    precision: Precision = "auto",
    image: Images = IMAGES,
    storage_options: Storage = None,
) -> None:
    """Evaluate one model at several patch sizes and resolutions: accuracy against tokens an image.

    patchnpack sweep runs/first/checkpoint.pt validation-000000.tar --resolutions fit:64,fit:144 --plot sweep.png
    """
    _must_be(out, ".csv")
    if plot is not None:
        _must_be(plot, ".png")
        check_can_plot()
    model = _open(checkpoint, device)
    sizes = parse_patch_size(patch_sizes) if patch_sizes else packing["patch_size"]
    policies = [(text, parse_resolution(text)) for text in resolutions.split(",") if text]
    policies = policies or [(str(packing["resolution"]), packing["resolution"])]
    packings = [
        (name, evaluation_packing(model, {**packing, "patch_size": size, "resolution": policy}))
        for size in (sizes.sizes if isinstance(sizes, PatchSizes) else (sizes,))
        for name, policy in policies
    ]
    rows = sweep(
        model,
        open_shards(shards, image, storage_options),
        packings,
        precision=precision,
        batch_size=batch_size,
        label=label,
        classes=classes,
        storage_options=parse_storage_options(storage_options or []),
    )
    table = Table("patch size", "resolution", "tokens an image", "accuracy", "loss", "images/s", box=None)
    for row in rows:
        table.add_row(
            f"{row['patch_size']}",
            row["resolution"],
            f"{row['tokens']:.1f}",
            f"{row['accuracy']:.4f}",
            f"{row['loss']:.4f}",
            f"{row['images_per_second']:.0f}",
        )
    Console(highlight=False, markup=False).print(table)
    write_sweep(out, rows)
    if plot is not None:
        plot_sweep(plot, rows)
    typer.echo(f"wrote {out}" + (f" and {plot}" if plot else ""))


def add_training_commands(app: typer.Typer) -> None:
    """Adds train, eval, features and sweep."""
    app.command("train")(train)
    app.command("eval")(evaluate_checkpoint)
    app.command("features")(write_features)
    app.command("sweep")(sweep_checkpoint)
