"""The commands `probe`, which fits a head on frozen features, and `export`, which writes weights of another library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from patchnpack.cli.checkpoint import (
    CheckpointFile,
    Device,
    Precision,
    evaluation_loader,
    excluded,
    load_model,
    unit_of,
)
from patchnpack.cli.evaluation import show_scores
from patchnpack.cli.options.arguments import (
    BatchSize,
    Classes,
    ClassWeights,
    Label,
    NumClasses,
    Pages,
    Seed,
    Shards,
    Validation,
)
from patchnpack.cli.options.flags import ImageOptions, takes_evaluation, takes_images, takes_model_fields
from patchnpack.cli.sources import open_both
from patchnpack.cli.training import write_run


@takes_evaluation
@takes_model_fields
@takes_images
def probe(
    context: typer.Context,
    checkpoint: CheckpointFile,
    shards: Shards,
    *,
    packing: dict[str, Any],
    model: dict[str, Any],
    images: ImageOptions,
    validation: Validation = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for checkpoint.pt and run.toml.")] = Path("probe"),
    metrics: Annotated[Path | None, typer.Option(help="File for all metrics of validation, .json.")] = None,
    l2: Annotated[
        float | None, typer.Option(help="Strength of the L2 penalty; default: chosen on a fifth of the images.")
    ] = None,
    class_weights: ClassWeights = None,
    num_classes: NumClasses = None,
    batch_size: BatchSize = 4,
    label: Label = "cls",
    classes: Classes = None,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    pages: Pages = "first",
) -> None:
    """Fit a linear head on the features of a frozen model, which are computed once, and write the model with it.

    patchnpack probe runs/first/checkpoint.pt 'train-{000000..000009}.tar' --validation validation-000000.tar -o probe
    """
    import numpy as np

    from patchnpack.class_weights import class_weights as class_weights_of
    from patchnpack.packer.text import counted
    from patchnpack.predict import features, predict
    from patchnpack.probe import fit_probe, with_head
    from patchnpack.trainer import save_checkpoint
    from patchnpack.training import write_classes

    network = load_model(checkpoint, device, model)
    given: dict[str, Any] = {"batch_size": batch_size, "label": label or None, "classes": classes, "pages": pages}
    given["decode"] = images.decode
    source, held = open_both(shards, validation, images)
    loader = evaluation_loader(context, checkpoint, network, source, packing, images.storage_options, **given)
    held_out = None
    if held is not None:
        given["classes"] = given["classes"] if loader.classes is None else loader.classes
        held_out = evaluation_loader(context, checkpoint, network, held, packing, images.storage_options, **given)
    count = loader.num_classes if num_classes is None else num_classes
    factors = None if class_weights is None else class_weights_of(class_weights, loader, count)
    table = features(network, loader, precision=precision, labels=True)
    table = table.filter(table["label"].is_valid())
    labels, inputs = table["label"].to_pylist(), np.array(table["feature"].to_pylist(), np.float32)
    if labels and isinstance(labels[0], list):
        raise ValueError("labels are targets of several numbers, and a probe fits classes; use `patchnpack train`")
    if labels and max(labels) >= count:
        raise ValueError(f"label {max(labels)} is not a class from 0 to {count - 1}; set num_classes")
    weight, bias, strength = fit_probe(
        inputs, np.array(labels, np.int64), count, l2=l2, class_weights=factors, seed=seed
    )
    fitted = with_head(network, weight, bias).to(next(network.parameters()).device)
    out.mkdir(parents=True, exist_ok=True)
    if loader.classes is not None:
        write_classes(out, loader.classes)
    save_checkpoint(out / "checkpoint.pt", fitted.cpu())
    write_run(context, out)
    typer.echo(f"fitted on {counted(len(labels), f'labelled {unit_of(network)}')}, {excluded(loader)}; l2 {strength:g}")
    if held_out is not None:
        show_scores(predict(fitted, held_out, precision=precision), held_out, metrics, unit_of(network))
    typer.echo(f"wrote {out / 'checkpoint.pt'}")


@takes_model_fields
def export(
    checkpoint: CheckpointFile,
    *,
    model: dict[str, Any],
    out: Annotated[
        Path,
        typer.Option("-o", "--out", help="Output file: .safetensors or .pth for timm, .npz for big_vision, .onnx."),
    ],
    format: Annotated[str, typer.Option(help="timm, big_vision or onnx.")],
    kind: Annotated[
        str,
        typer.Option(help="naflex for the model that takes images of any size, or vit for the one of a fixed size."),
    ] = "naflex",
) -> None:
    """Write the weights of a model for another library, for timm with a config.json beside them, or an ONNX file.

    patchnpack export runs/first/checkpoint.pt -o exported/model.safetensors --format timm
    """
    from patchnpack.weights import export_model

    export_model(load_model(checkpoint, "cpu", model), out, format, kind=kind)
    beside = f" and {out.parent / 'config.json'}" if format == "timm" else ""
    typer.echo(f"wrote {out}{beside}")


def add_probe_commands(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command("probe")(probe)
    app.command("export")(export)
