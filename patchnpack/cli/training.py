"""The commands `train`, `eval`, `features` and `sweep`: thin commands over library calls."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchnpack.cli.arguments import (
    IMAGES,
    BatchSize,
    Classes,
    Images,
    Label,
    Pages,
    Root,
    Sample,
    Shards,
    Storage,
    TablePath,
    open_all,
    open_shards,
)
from patchnpack.cli.options import takes_evaluation, takes_model, takes_packing, takes_training, whole_flag
from patchnpack.cli.parsers import parse_patch_size, parse_resolution, parse_storage_options
from patchnpack.cli.run_file import RUN_FILE, RunFile, read_run_file, write_run_file

if TYPE_CHECKING:
    from patchnpack.loaders import Index, PackedImageLoader
    from patchnpack.models import NaViT
    from patchnpack.packer import Packing
    from patchnpack.trainer import TrainConfig

Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Precision = Annotated[str, typer.Option(help="auto, float32 or bfloat16.")]


def _with_defaults_of_run(context: typer.Context, checkpoint: Path) -> Path:
    """Take option defaults from the run.toml beside the checkpoint, so that evaluation packs as training did."""
    from patchnpack.packer import PatchSizes

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
        callback=_with_defaults_of_run,
        help="A checkpoint.pt. If a run.toml lies beside it, packing and label options default to those of the run.",
    ),
]


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
def train(
    context: typer.Context,
    shards: Shards,
    *,
    packing: Packing,
    model: dict[str, Any],
    training: TrainConfig,
    config: RunFile = None,
    validation: Annotated[
        list[str] | None,
        typer.Option("--validation", help="Validation data, as the training data."),
    ] = None,
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
    num_classes: Annotated[int | None, whole_flag("Number of classes; default: highest label + 1.")] = None,
    flip: Annotated[bool, typer.Option(help="Mirror half of the training images at random.")] = False,
    augment: Annotated[str, typer.Option(help="RandAugment for training images as COUNT:MAGNITUDE, such as 2:9.")] = "",
    eval_resolution: Annotated[
        str | None, typer.Option(help="Resolution policy for validation; required if --resolution draws sizes.")
    ] = None,
    eval_patch_size: Annotated[
        int | None, typer.Option(help="Patch size for validation, if --patch-size has several.")
    ] = None,
    underlying: Annotated[
        int | None, typer.Option(help="Patch size of the weights, if --patch-size has several; default: 32.")
    ] = None,
    init: Annotated[Path | None, typer.Option(help="Checkpoint to start from.")] = None,
    teacher: Annotated[Path | None, typer.Option(help="Checkpoint of the teacher for distillation.")] = None,
    text: Annotated[str | None, typer.Option(help="Member with texts, such as txt, for image-text training.")] = None,
    image: Images = IMAGES,
    sample: Sample = None,
    path: TablePath = None,
    root: Root = None,
    pages: Pages = "first",
    storage_options: Storage = None,
) -> None:
    """Train a NaViT on images, with labels, a teacher or texts.

    patchnpack train 'train-{000000..000009}.tar' --validation validation-000000.tar --resolution fit:144 --epochs 10

    The same command resumes a run that was killed. Under torchrun, all ranks train one model.
    """
    from patchnpack.augment import parse_augment
    from patchnpack.training import train_on_shards

    with _process_group(training.device) as first:
        transform = parse_augment(augment)
        index, *held_out = open_all(
            [shards, validation] if validation else [shards], image, sample, storage_options, path, root
        )
        result = train_on_shards(
            index,
            held_out[0] if held_out else None,
            packing,
            training,
            model=model,
            out=out,
            batch_size=batch_size,
            label=label or None,
            classes=classes,
            num_classes=num_classes,
            flip=flip,
            augment=transform,
            eval_resolution=None if eval_resolution is None else parse_resolution(eval_resolution, "--eval-resolution"),
            eval_patch_size=eval_patch_size,
            underlying=underlying,
            init=init,
            teacher=teacher,
            text=text,
            pages=pages,
            resume=resume,
            storage_options=parse_storage_options(storage_options or []),
            started=lambda: _write_run(context, out),
        )
    if first:
        for name, value in result.metrics.items():
            typer.echo(f"{name}: {value:.4f}" if name == "accuracy" else f"{name}: {value:.4g}")
        if result.skipped_steps:
            typer.echo(f"skipped steps: {result.skipped_steps}")
        typer.echo(f"wrote {result.checkpoint}")


def _write_run(context: typer.Context, out: Path) -> None:
    from patchnpack.training import CLASSES_FILE

    names = [str(parameter.name) for parameter in context.command.params]
    excluded = ("config", "resume", "help", "storage_options")  # storage options may hold credentials
    values = {name: context.params[name] for name in names if name not in excluded}
    if values["classes"] is None and (out / CLASSES_FILE).exists():  # so that evaluation numbers them alike
        values["classes"] = str(out / CLASSES_FILE)
    write_run_file(out / RUN_FILE, values)


def _open(checkpoint: Path, device: str) -> NaViT:
    from patchnpack.trainer import load_checkpoint
    from patchnpack.trainer.device import find_device

    return load_checkpoint(checkpoint, find_device(device)).model


def _evaluation_loader(
    model: NaViT,
    index: Index,
    packing: dict[str, Any],
    storage: list[str] | None,
    **options: Any,
) -> PackedImageLoader:
    """A loader that yields each image of the index once, packed for the model."""
    from patchnpack.loaders import PackedImageLoader
    from patchnpack.predict import evaluation_packing

    return PackedImageLoader(
        index,
        evaluation_packing(model, packing),
        storage_options=parse_storage_options(storage or []),
        **options,
    )


def _check_output(flag: str, path: Path, suffix: str) -> None:
    """Reject a path with the wrong suffix; create its parent folder."""
    from patchnpack.packer.files import make_folder_of

    if path.suffix != suffix:
        raise ValueError(f"{flag} is {str(path)!r}; it must end in {suffix}")
    make_folder_of(path)


def _excluded(loader: PackedImageLoader) -> str:
    from patchnpack.packer.text import counted

    stats = loader.stats()
    without = f", {counted(stats['without_image'], 'sample')} without an image" if stats["without_image"] else ""
    pages = f", {stats['multi_page']} with further pages" if stats["multi_page"] else ""
    warnings = f", {counted(sum(stats['warnings'].values()), 'warning')} of decoders" if stats["warnings"] else ""
    left_out = f"{counted(stats['bad_images'], 'bad image')}, {sum(stats['skipped'].values())} skipped{without}"
    return left_out + pages + warnings


@takes_evaluation
def evaluate_checkpoint(
    checkpoint: CheckpointFile,
    shards: Shards,
    *,
    packing: dict[str, Any],
    out: Annotated[Path, typer.Option("-o", "--out", help="Output file, .parquet.")] = Path("predictions.parquet"),
    batch_size: BatchSize = 4,
    label: Label = "cls",
    classes: Classes = None,
    device: Device = "auto",
    precision: Precision = "auto",
    image: Images = IMAGES,
    sample: Sample = None,
    path: TablePath = None,
    root: Root = None,
    pages: Pages = "first",
    storage_options: Storage = None,
) -> None:
    """Write the prediction of a trained model for each image: key, row, label, prediction and logits.

    patchnpack eval runs/first/checkpoint.pt validation-000000.tar -o predictions.parquet
    """
    from patchnpack.packer.text import counted
    from patchnpack.predict import predict, write_table

    _check_output("--out", out, ".parquet")
    model = _open(checkpoint, device)
    index = open_shards(shards, image, sample, storage_options, path, root)
    loader = _evaluation_loader(
        *(model, index, packing, storage_options),
        batch_size=batch_size,
        label=label or None,
        classes=classes,
        pages=pages,
    )
    table = predict(model, loader, precision=precision)
    write_table(out, table)
    pairs = [
        (x, y) for x, y in zip(*(table[c].to_pylist() for c in ("label", "prediction")), strict=True) if x is not None
    ]
    if pairs:
        hits = sum(y is not None and (x[y] == max(x) if isinstance(x, list) else x == y) for x, y in pairs)
        typer.echo(f"accuracy: {hits / len(pairs):.4f} on {counted(len(pairs), f'labelled {model.config.scope}')}")
    typer.echo(f"wrote {out}: {counted(len(table), model.config.scope)}, {_excluded(loader)}")


@takes_evaluation
def write_features(
    checkpoint: CheckpointFile,
    shards: Shards,
    *,
    packing: dict[str, Any],
    out: Annotated[Path, typer.Option("-o", "--out", help="Output file, .parquet.")] = Path("features.parquet"),
    batch_size: BatchSize = 4,
    device: Device = "auto",
    precision: Precision = "auto",
    image: Images = IMAGES,
    sample: Sample = None,
    path: TablePath = None,
    root: Root = None,
    pages: Pages = "first",
    storage_options: Storage = None,
) -> None:
    """Write the feature vector of each image: key, row and feature.

    patchnpack features runs/first/checkpoint.pt train-000000.tar -o features.parquet
    """
    from patchnpack.packer.text import counted
    from patchnpack.predict import features, write_table

    _check_output("--out", out, ".parquet")
    model = _open(checkpoint, device)
    index = open_shards(shards, image, sample, storage_options, path, root)
    loader = _evaluation_loader(model, index, packing, storage_options, batch_size=batch_size, pages=pages)
    table = features(model, loader, precision=precision)
    write_table(out, table)
    typer.echo(f"wrote {out}: {counted(len(table), model.config.scope)}, {_excluded(loader)}")


@takes_evaluation
def sweep_checkpoint(
    checkpoint: CheckpointFile,
    shards: Shards,
    *,
    packing: dict[str, Any],
    patch_sizes: Annotated[
        str, typer.Option(help="Patch sizes to evaluate, such as 8,16,32; default: --patch-size.")
    ] = "",
    resolutions: Annotated[
        str, typer.Option(help="Resolution policies to evaluate, such as fit:64,fit:144; default: --resolution.")
    ] = "",
    out: Annotated[Path, typer.Option("-o", "--out", help="Output table, .csv.")] = Path("sweep.csv"),
    plot: Annotated[Path | None, typer.Option(help="Plot of accuracy over tokens per image, .png.")] = None,
    batch_size: BatchSize = 4,
    label: Label = "cls",
    classes: Classes = None,
    device: Device = "auto",
    precision: Precision = "auto",
    image: Images = IMAGES,
    sample: Sample = None,
    path: TablePath = None,
    root: Root = None,
    pages: Pages = "first",
    storage_options: Storage = None,
) -> None:
    """Evaluate a model at several patch sizes and resolutions: accuracy over tokens per image.

    patchnpack sweep runs/first/checkpoint.pt validation-000000.tar --resolutions fit:64,fit:144 --plot sweep.png
    """
    from rich.console import Console
    from rich.table import Table

    from patchnpack.packer import PatchSizes
    from patchnpack.predict import check_can_plot, evaluation_packing, plot_sweep, sweep, write_sweep

    _check_output("--out", out, ".csv")
    if plot is not None:
        _check_output("--plot", plot, ".png")
        check_can_plot()
    model = _open(checkpoint, device)
    sizes = parse_patch_size(patch_sizes, "--patch-sizes") if patch_sizes else packing["patch_size"]
    policies = [(text, parse_resolution(text, "--resolutions")) for text in resolutions.split(",") if text]
    policies = policies or [(str(packing["resolution"]), packing["resolution"])]
    packings = [
        (name, evaluation_packing(model, {**packing, "patch_size": size, "resolution": policy}))
        for size in (sizes.sizes if isinstance(sizes, PatchSizes) else (sizes,))
        for name, policy in policies
    ]
    rows = sweep(
        model,
        open_shards(shards, image, sample, storage_options, path, root),
        packings,
        precision=precision,
        batch_size=batch_size,
        label=label,
        classes=classes,
        pages=pages,
        storage_options=parse_storage_options(storage_options or []),
    )
    table = Table("patch size", "resolution", "tokens per image", "accuracy", "loss", "images/s", box=None)
    for row in rows:
        shown = {"tokens": ".1f", "accuracy": ".4f", "loss": ".4f", "images_per_second": ".0f"}
        numbers = [format(row[name], form) for name, form in shown.items()]
        table.add_row(str(row["patch_size"]), row["resolution"], *numbers)
    Console(highlight=False, markup=False).print(table)
    write_sweep(out, rows)
    if plot is not None:
        plot_sweep(plot, rows)
    typer.echo(f"wrote {out}" + (f" and {plot}" if plot else ""))


def add_training_commands(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command("train")(train)
    app.command("eval")(evaluate_checkpoint)
    app.command("features")(write_features)
    app.command("sweep")(sweep_checkpoint)
