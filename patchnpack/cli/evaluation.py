"""The commands `eval`, `features` and `sweep`: run a trained model over images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchnpack.cli.checkpoint import (
    CheckpointFile,
    Device,
    Precision,
    check_output,
    evaluation_loader,
    excluded,
    fields_of_run,
    load_model,
    unit_of,
)
from patchnpack.cli.options.arguments import BatchSize, Classes, Label, Pages, Shards, was_typed
from patchnpack.cli.options.flags import ImageOptions, takes_evaluation, takes_images, takes_model_fields
from patchnpack.cli.options.parsers import parse_patch_size, parse_resolution
from patchnpack.cli.sources import open_shards, open_source

if TYPE_CHECKING:
    import pyarrow as pa

    from patchnpack.loaders import PackedImageLoader
    from patchnpack.scores import Scores

_MOST_CLASSES = 20  # in the table that eval prints


@takes_evaluation
@takes_model_fields
@takes_images
def evaluate_checkpoint(
    context: typer.Context,
    checkpoint: CheckpointFile,
    shards: Shards,
    *,
    packing: dict[str, Any],
    model: dict[str, Any],
    images: ImageOptions,
    out: Annotated[Path, typer.Option("-o", "--out", help="Output file, .parquet.")] = Path("predictions.parquet"),
    metrics: Annotated[Path | None, typer.Option(help="File for all metrics, of each class too, .json.")] = None,
    batch_size: BatchSize = 4,
    label: Label = "cls",
    classes: Classes = None,
    device: Device = "auto",
    precision: Precision = "auto",
    pages: Pages = "first",
) -> None:
    """Write the prediction of a trained model for each image: key, row, label, prediction and logits.

    patchnpack eval runs/first/checkpoint.pt validation-000000.tar -o predictions.parquet

    With labels, it prints accuracy, top-5 accuracy, macro F1 and the accuracy of each class.
    """
    from patchnpack.packer.text import counted
    from patchnpack.predict import predict, write_table

    check_output("--out", out, ".parquet")
    if metrics is not None:
        check_output("--metrics", metrics, ".json")
    network = load_model(checkpoint, device, model)
    source = open_source(shards, images)
    loader = evaluation_loader(
        *(context, checkpoint, network, source, packing, images.storage_options),
        batch_size=batch_size,
        label=label or None,
        classes=classes,
        pages=pages,
        decode=images.decode,
    )
    table = predict(network, loader, precision=precision)
    write_table(out, table)
    show_scores(table, loader, metrics, unit_of(network))
    typer.echo(f"wrote {out}: {counted(len(table), unit_of(network))}, {excluded(loader)}")


@takes_evaluation
@takes_model_fields
@takes_images
def write_features(
    context: typer.Context,
    checkpoint: CheckpointFile,
    shards: Shards,
    *,
    packing: dict[str, Any],
    model: dict[str, Any],
    images: ImageOptions,
    out: Annotated[Path, typer.Option("-o", "--out", help="Output file, .parquet.")] = Path("features.parquet"),
    batch_size: BatchSize = 4,
    label: Annotated[str | None, typer.Option(help="Member that holds the label, for a column label.")] = None,
    classes: Classes = None,
    device: Device = "auto",
    precision: Precision = "auto",
    pages: Pages = "first",
) -> None:
    """Write the feature vector of each image: key, row, label with --label, and feature.

    patchnpack features runs/first/checkpoint.pt train-000000.tar -o features.parquet
    """
    from patchnpack.packer.text import counted
    from patchnpack.predict import features, write_table

    check_output("--out", out, ".parquet")
    network = load_model(checkpoint, device, model)
    source = open_source(shards, images)
    label = label if was_typed(context, "label") else None  # rather than that of the run
    loader = evaluation_loader(
        *(context, checkpoint, network, source, packing, images.storage_options),
        batch_size=batch_size,
        label=label or None,
        classes=classes if label else None,
        pages=pages,
        decode=images.decode,
    )
    table = features(network, loader, precision=precision, labels=bool(label))
    write_table(out, table)
    typer.echo(f"wrote {out}: {counted(len(table), unit_of(network))}, {excluded(loader)}")


@takes_evaluation
@takes_model_fields
@takes_images
def sweep_checkpoint(
    context: typer.Context,
    checkpoint: CheckpointFile,
    shards: Shards,
    *,
    packing: dict[str, Any],
    model: dict[str, Any],
    images: ImageOptions,
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
    pages: Pages = "first",
) -> None:
    """Evaluate a model at several patch sizes and resolutions: accuracy over tokens per image.

    patchnpack sweep runs/first/checkpoint.pt validation-000000.tar --resolutions fit:64,fit:144 --plot sweep.png
    """
    from rich.console import Console
    from rich.table import Table

    from patchnpack.packer import PatchSizes
    from patchnpack.predict import check_can_plot, evaluation_packing, plot_sweep, sweep, write_sweep

    check_output("--out", out, ".csv")
    if plot is not None:
        check_output("--plot", plot, ".png")
        check_can_plot()
    network = load_model(checkpoint, device, model)
    packing = fields_of_run(context, checkpoint, packing)
    sizes = parse_patch_size(patch_sizes, "--patch-sizes") if patch_sizes else packing["patch_size"]
    policies = [(text, parse_resolution(text, "--resolutions")) for text in resolutions.split(",") if text]
    policies = policies or [(str(packing["resolution"]), packing["resolution"])]
    packings = [
        (name, evaluation_packing(network, {**packing, "patch_size": size, "resolution": policy}))
        for size in (sizes.sizes if isinstance(sizes, PatchSizes) else (sizes,))
        for name, policy in policies
    ]
    rows = sweep(
        network,
        open_shards(shards, images),
        packings,
        precision=precision,
        batch_size=batch_size,
        label=label,
        classes=classes,
        pages=pages,
        decode=images.decode,
        storage_options=images.storage_options,
    )
    table = Table("patch size", "resolution", "tokens per image", "accuracy", "loss", "images/s", box=None)
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


def show_scores(
    table: pa.Table, loader: PackedImageLoader, metrics: Path | None = None, unit: str = "image"
) -> Scores | None:
    """Print the scores of predictions with labels, and write them to a file of JSON.

    Args:
        table: what `predict` returns.
        loader: knows the names of the classes.
        metrics: the file, or None.
        unit: what a row of the table is, as `unit_of` says.
    """
    import dataclasses
    import json

    import numpy as np

    from patchnpack.packer.files import atomic_write
    from patchnpack.packer.text import counted
    from patchnpack.scores import scores

    labelled = table.filter(table["label"].is_valid())
    if not len(labelled):
        if metrics is not None:
            raise ValueError(f"metrics is {str(metrics)!r}, but no {unit} has a label; give label, or leave it out")
        return None
    on = f"on {counted(len(labelled), f'labelled {unit}')}"
    labels = labelled["label"].to_pylist()
    if isinstance(labels[0], list):  # targets
        predicted = labelled["prediction"].to_pylist()
        hits = sum(y is not None and x[y] == max(x) for x, y in zip(labels, predicted, strict=True))
        typer.echo(f"accuracy: {hits / len(labels):.4f} {on}")
        found, content = None, {"images": len(labels), "accuracy": hits / len(labels)}
    else:
        logits = np.array(labelled["logits"].to_pylist(), np.float32)
        if max(labels) >= logits.shape[1]:
            raise ValueError(
                f"label {max(labels)} is not a class from 0 to {logits.shape[1] - 1} of the model; check label and "
                "classes, which must number the classes as in training"
            )
        found = scores(np.array(labels), logits, None if loader.classes is None else list(loader.classes))
        _print_scores(found, on, unit)
        content = {**dataclasses.asdict(found), "classes": [row._asdict() for row in found.classes]}
    if metrics is not None:
        text = json.dumps(_finite(content), indent=2, ensure_ascii=False)
        atomic_write(metrics, lambda file: file.write(f"{text}\n".encode()))
    return found


def _finite(value: Any) -> Any:
    """Replace NaN, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if value != value else value  # NaN differs from itself


def _print_scores(found: Scores, on: str, unit: str) -> None:
    from rich.console import Console
    from rich.table import Table

    typer.echo(f"accuracy: {found.accuracy:.4f} {on}")
    if found.top5 is not None:
        typer.echo(f"top-5 accuracy: {found.top5:.4f}")
    typer.echo(f"macro F1: {found.macro_f1:.4f}")
    rows, shown = found.classes, found.classes
    if len(rows) > _MOST_CLASSES:
        shown = sorted(rows, key=lambda row: row.f1)[:_MOST_CLASSES]
        typer.echo(f"the {_MOST_CLASSES} of {len(rows)} classes with the lowest F1; --metrics FILE has all:")
    table = Table("class", f"{unit}s", "accuracy", "precision", "F1", box=None)
    for row in shown:
        table.add_row(row.name, f"{row.images}", *("" if x != x else f"{x:.4f}" for x in row[2:]))
    Console(highlight=False, markup=False).print(table)


def add_evaluation_commands(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command("eval")(evaluate_checkpoint)
    app.command("features")(write_features)
    app.command("sweep")(sweep_checkpoint)
