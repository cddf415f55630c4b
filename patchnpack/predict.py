"""Run a trained model over shards: predictions, features, and accuracy by patch size and resolution."""

from __future__ import annotations

import copy
import csv
import io
import logging
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
from patchnpack.trainer.loader_check import check_loader

_log = logging.getLogger(__name__)

# N images, C classes, D width


def evaluation_packing(model: NaViT, fields: dict[str, Any]) -> Packing:
    """Build a deterministic packing for evaluation: no token drop, no drawn sizes.

    Args:
        model: supplies the scope, and the patch size if `fields` has None.
        fields: fields of `Packing`.

    Raises:
        ValueError: `fields` has several patch sizes, or a resolution that draws sizes.
    """
    packing = Packing(
        **{**fields, "patch_size": fields.get("patch_size") or model.config.patch_size, "scope": model.config.scope},
        token_drop=NoDrop(),
        fill="none",
    )
    if isinstance(packing.patch_size, PatchSizes):
        raise ValueError(
            f"patch_size is {packing.patch_size}; evaluate one, or compare several with `patchnpack sweep`"
        )
    if packing.resolution.draws:
        raise ValueError(
            f"resolution is {packing.resolution}, which draws sizes; use one that does not, such as fit:256"
        )
    return packing


def _run(model: NaViT, loader: Iterable[PackedBatch], precision: str) -> Iterator[tuple[PackedBatch, torch.Tensor]]:
    """Yield each batch, of images or samples by the model's scope, and their outputs, float32 (N, C or D) on the CPU.

    Images whose outputs are not finite are logged as a warning at the end.
    """
    device, images, broken = next(model.parameters()).device, 0, list[str]()
    check_loader(model, loader, labels=False)
    for batch in loader:
        model.check(batch)
        with torch.no_grad(), autocast(device, precision):
            out = model(batch.to(device, non_blocking=True)).float().cpu()
        batch = model.units(batch)
        out = out[batch.image_mask]
        keys = [key for keys in batch.keys for key in keys]
        broken += [keys[i] for i in (~out.isfinite().all(-1)).nonzero().flatten().tolist()]
        images += len(out)
        yield batch, out
    if broken:
        _log.warning(
            "%s of %d %ss have outputs that are not finite, such as %r; try precision 'float32', or another checkpoint",
            len(broken),
            images,
            model.config.scope,
            broken[0],
        )


def _table(columns: dict[str, list[Any]]) -> pa.Table:
    arrays = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(torch.cat(values).flatten().numpy()), values[0].shape[1])
        if values and isinstance(values[0], torch.Tensor)
        else pa.array(values)
        for name, values in columns.items()
    }
    return pa.table(arrays).sort_by("row")


def predict(model: NaViT, loader: Iterable[PackedBatch], *, precision: str = "auto") -> pa.Table:
    """Predict the class of every image, or in scope "sample" of every sample.

    Returns:
        One row per image, or per sample, with key and row of its first image, sorted by `row`: key, row, label (null if
        there is none), prediction (null if a logit is not finite), logits (float32, C). Rows with such logits are
        counted in a warning.

    Raises:
        ValueError: the model has no head.
    """
    if not model.config.num_classes:
        raise ValueError("the model has no classes, so it cannot predict any; use `patchnpack features` instead")
    columns: dict[str, list[Any]] = {name: [] for name in ("key", "row", "label", "prediction", "logits")}
    for batch, logits in _run(model.eval(), loader, precision):
        columns["label"] += _labels(batch)
        columns["key"] += [key for keys in batch.keys for key in keys]
        columns["row"] += batch.rows[batch.image_mask].tolist()
        finite = logits.isfinite().all(-1).tolist()
        columns["prediction"] += [
            best if ok else None for best, ok in zip(logits.argmax(-1).tolist(), finite, strict=True)
        ]
        columns["logits"].append(logits)
    return _table(columns)


def _labels(batch: PackedBatch) -> list[Any]:
    """The label of each image of a batch, None without one."""
    labels = batch.labels[batch.image_mask]
    absent = labels.isnan().any(-1) if labels.is_floating_point() else labels < 0
    return [None if no else label for label, no in zip(labels.tolist(), absent.tolist(), strict=True)]


def features(model: NaViT, loader: Iterable[PackedBatch], *, precision: str = "auto", labels: bool = False) -> pa.Table:
    """Compute the feature of every image, or in scope "sample" of every sample, which is the input of the head.

    Args:
        model: the model.
        loader: yields each image once.
        precision: as in `TrainConfig`.
        labels: whether to return the labels, too.

    Returns:
        One row per image, or sample as in `predict`, sorted by `row`: key, row, label if wanted (null where there is
        none), feature (float32, D).
    """
    model = copy.copy(model.eval())
    model._modules = {**model._modules, "head": nn.Identity()}  # the copy shares the weights; `model` keeps its head
    names = ("key", "row", *(["label"] if labels else []), "feature")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for batch, pooled in _run(model, loader, precision):
        if labels:
            columns["label"] += _labels(batch)
        columns["key"] += [key for keys in batch.keys for key in keys]
        columns["row"] += batch.rows[batch.image_mask].tolist()
        columns["feature"].append(pooled)
    return _table(columns)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table to a Parquet file atomically."""
    atomic_write(path, lambda file: pq.write_table(table, file))


def sweep(
    model: NaViT, index: Index, packings: Iterable[tuple[str, Packing]], *, precision: str = "auto", **options: Any
) -> list[dict[str, Any]]:
    """Evaluate one model under several packings.

    Args:
        model: the model.
        index: the images, with labels.
        packings: pairs of a name for the resolution and a packing.
        precision: as in `TrainConfig`.
        options: options of `PackedImageLoader`, such as batch_size, label and classes.

    Returns:
        For each packing: patch_size, resolution, tokens (mean per image), accuracy, loss, images, images_per_second;
        in scope "sample", the last two count samples.
    """
    rows = []
    for resolution, packing in packings:
        loader = PackedImageLoader(index, packing, **options)
        metrics, stats = evaluate(model, loader, precision=precision), loader.stats()
        count = metrics[f"{model.config.scope}s"]
        rows.append(
            {
                "patch_size": packing.patch_size,
                "resolution": resolution,
                "tokens": stats["tokens"] / stats["images"],
                "accuracy": metrics["accuracy"],
                "loss": metrics["loss"],
                "images": count,
                "images_per_second": count / metrics["seconds"],
            }
        )
    return rows


def write_sweep(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows of `sweep` to a CSV file atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(path, lambda file: file.write(text.getvalue().encode()))


def plot_sweep(path: Path, rows: list[dict[str, Any]]) -> None:
    """Plot accuracy over tokens per image, one line per patch size.

    Raises:
        ValueError: matplotlib is not installed.
    """
    check_can_plot()
    from matplotlib.figure import Figure  # of an optional extra

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for size in sorted({row["patch_size"] for row in rows}):
        points = sorted((row["tokens"], row["accuracy"]) for row in rows if row["patch_size"] == size)
        axes.plot(*zip(*points, strict=True), marker="o", label=f"patch size {size}")
    axes.set(xscale="log", xlabel="tokens per image", ylabel="accuracy")
    axes.grid(alpha=0.3)
    axes.legend()
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=150))


def check_can_plot() -> None:
    """Raise ValueError if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401  # of an optional extra
    except ImportError as error:
        raise ValueError("a plot needs matplotlib; run: pip install 'patchnpack[report]'") from error
