"""A trained model over shards: predictions, features, and how accuracy depends on patch size and resolution."""

from __future__ import annotations

import copy
import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from patchnpack.loaders import Index, PackedImageLoader
from patchnpack.models import NaViT
from patchnpack.packer import NoDrop, PackedBatch, Packing, PatchSizes
from patchnpack.packer.files import atomic_write
from patchnpack.trainer import autocast, evaluate

# B packs, K images in a pack at most, N images, C classes, D width


def evaluation_packing(model: NaViT, fields: dict[str, Any]) -> Packing:
    """A packing that gives each image once, the same each time: no token is dropped, no size drawn.

    Args:
        model: gives the patch size where `fields` has None.
        fields: of `Packing`.

    Raises:
        ValueError: several patch sizes, or a resolution that draws.
    """
    packing = Packing(
        **{**fields, "patch_size": fields.get("patch_size") or model.config.patch_size},
        token_drop=NoDrop(),
        fill="none",
    )
    if isinstance(packing.patch_size, PatchSizes):
        raise ValueError(f"patch_size is {packing.patch_size}; evaluation takes one, `patchnpack sweep` several")
    if packing.resolution.draws:
        raise ValueError(f"resolution {packing.resolution} draws sizes; evaluate with one that does not, as fit:256")
    return packing


def _run(model: NaViT, loader: Iterable[PackedBatch], precision: str) -> Iterator[tuple[PackedBatch, torch.Tensor]]:
    """Each batch, and what the model gives for its images, float32 (N, C or D) on the CPU."""
    device = next(model.parameters()).device
    for batch in loader:
        model.check(batch)
        with torch.no_grad(), autocast(device, precision):
            out = model(batch.to(device, non_blocking=True))
        yield batch, out.float().cpu()[batch.image_mask]


def _table(columns: dict[str, list[Any]]) -> pa.Table:
    arrays = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(torch.cat(values).flatten().numpy()), values[0].shape[1])
        if values and isinstance(values[0], torch.Tensor)
        else pa.array(values)
        for name, values in columns.items()
    }
    return pa.table(arrays).sort_by("row")


def predict(model: NaViT, loader: Iterable[PackedBatch], *, precision: str = "auto") -> pa.Table:
    """One row an image, sorted by `row`: key, row, label (null where there is none), prediction, logits (float32, C).

    Raises:
        ValueError: the model has no head.
    """
    if not model.config.num_classes:
        raise ValueError("the model has no classes, so there is nothing to predict; `patchnpack features` it")
    columns: dict[str, list[Any]] = {name: [] for name in ("key", "row", "label", "prediction", "logits")}
    for batch, logits in _run(model.eval(), loader, precision):
        labels = batch.labels[batch.image_mask]
        absent = labels.isnan().any(-1) if labels.is_floating_point() else labels < 0
        columns["label"] += [None if no else label for label, no in zip(labels.tolist(), absent.tolist(), strict=True)]
        columns["key"] += [key for keys in batch.keys for key in keys]
        columns["row"] += batch.rows[batch.image_mask].tolist()
        columns["prediction"] += logits.argmax(-1).tolist()
        columns["logits"].append(logits)
    return _table(columns)


def features(model: NaViT, loader: Iterable[PackedBatch], *, precision: str = "auto") -> pa.Table:
    """One row an image, sorted by `row`: key, row, feature (float32, D), which is what the head is given."""
    model = copy.copy(model.eval())
    model._modules = {**model._modules, "head": nn.Identity()}  # the weights are shared, the model is left as it is
    columns: dict[str, list[Any]] = {name: [] for name in ("key", "row", "feature")}
    for batch, pooled in _run(model, loader, precision):
        columns["key"] += [key for keys in batch.keys for key in keys]
        columns["row"] += batch.rows[batch.image_mask].tolist()
        columns["feature"].append(pooled)
    return _table(columns)


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a parquet file, whole or not at all."""
    atomic_write(path, lambda file: pq.write_table(table, file))


def sweep(
    model: NaViT, index: Index, packings: Iterable[tuple[str, Packing]], *, precision: str = "auto", **options: Any
) -> list[dict[str, Any]]:
    """Evaluates one model under several packings: a row each, with what an image costs and what it brings.

    Args:
        packings: each with a name for its resolution.
        options: of `PackedImageLoader`: batch_size, label, classes.

    Returns:
        patch_size, resolution, tokens (an image, on average), accuracy, loss, images, images_per_second.
    """
    rows = []
    for resolution, packing in packings:
        loader = PackedImageLoader(index, packing, **options)
        metrics, stats = evaluate(model, loader, precision=precision), loader.stats()
        rows.append(
            {
                "patch_size": packing.patch_size,
                "resolution": resolution,
                "tokens": stats["tokens"] / stats["images"],
                "accuracy": metrics["accuracy"],
                "loss": metrics["loss"],
                "images": metrics["images"],
                "images_per_second": metrics["images"] / metrics["seconds"],
            }
        )
    return rows


def write_sweep(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the rows of `sweep` as a CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(path, lambda file: file.write(text.getvalue().encode()))


def plot_sweep(path: Path, rows: list[dict[str, Any]]) -> None:
    """Draws accuracy against tokens an image, a line for each patch size.

    Raises:
        ValueError: matplotlib is not there.
    """
    check_can_plot()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for size in sorted({row["patch_size"] for row in rows}):
        points = sorted((row["tokens"], row["accuracy"]) for row in rows if row["patch_size"] == size)
        axes.plot(*zip(*points, strict=True), marker="o", label=f"patch size {size}")
    axes.set(xscale="log", xlabel="tokens an image", ylabel="accuracy")
    axes.grid(alpha=0.3)
    axes.legend()
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=150))


def check_can_plot() -> None:
    """Raises ValueError where matplotlib is not there."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError("a plot needs the extra `report`: pip install 'patchnpack[report]'") from error
