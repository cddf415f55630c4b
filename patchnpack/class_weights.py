"""Class weights: factors of the loss that even out rare and frequent classes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from patchnpack.loaders import PackedImageLoader


def class_counts(loader: PackedImageLoader, num_classes: int) -> np.ndarray:
    """Count the images of each class, or in scope "sample" its samples, int64 (num_classes,), that a loader reads.

    Labels outside the index, such as json:FIELD, are read from their members, without pixels.

    Raises:
        ValueError: the labels are targets, are stored with packs, or are not below `num_classes`.
    """
    labels, used = loader.context.labels, loader.source.rows
    rows = np.flatnonzero(used.heads(loader.index) if loader.packing.scope == "sample" else used.mask)
    if labels.shape or not getattr(labels, "are_indexed", True):
        what = f"targets of {labels.shape[0]} numbers" if labels.shape else "stored with the packs"
        raise ValueError(f"class_weights is 'balanced', but the labels are {what}; give a file with a weight per class")
    known = labels.known(rows)
    values = np.array([labels.of(row) for row in rows.tolist()]) if known is None else known
    values = values[values >= 0]
    if len(values) and values.max() >= num_classes:
        raise ValueError(f"label {values.max()} is not a class from 0 to {num_classes - 1}; set num_classes")
    return np.asarray(np.bincount(values, minlength=num_classes))


def balanced_weights(counts: np.ndarray) -> np.ndarray:
    """Weigh each class by the inverse of its count, so that the mean weight over all images is 1; 0 for a count of 0.

    >>> balanced_weights(np.array([6, 2, 0])).round(3).tolist()
    [0.667, 2.0, 0.0]
    """
    present = np.count_nonzero(counts)
    weights = np.zeros(len(counts))
    np.divide(counts.sum(), present * counts, out=weights, where=counts > 0)
    return weights


def read_weights_file(path: str | Path, num_classes: int, classes: Mapping[str, int] | None = None) -> np.ndarray:
    """Read one weight per class from a text file.

    Args:
        path: a file with one weight per line, in the order of the classes, or with lines NAME WEIGHT or NAME,WEIGHT.
        num_classes: number of classes.
        classes: numbers of the names; a name may also be the number itself.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a weight is not a number, or a class has no weight or two.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"class_weights file {str(path)!r} does not exist; give 'balanced', or a file with one weight per line"
        ) from None
    numbers = dict(classes or {}) | {str(number): number for number in range(num_classes)}
    weights = np.full(num_classes, np.nan)
    for place, line in enumerate(line.strip() for line in text.splitlines() if line.strip()):
        match = re.fullmatch(r"(?:(.*\S)\s*[,\s]\s*)?(\S+)", line)
        assert match is not None
        name, number = match[1], place if match[1] is None else numbers.get(match[1].rstrip(", "))
        if number is None or number >= num_classes:
            which = f"class {name!r}" if name is not None else f"line {place + 1}"
            raise ValueError(f"class_weights file {str(path)!r} has {which}, but there are {num_classes} classes")
        try:
            weight = float(match[2])
        except ValueError:
            raise ValueError(f"class_weights file {str(path)!r} has the weight {match[2]!r}; give a number") from None
        if not np.isnan(weights[number]):
            raise ValueError(f"class_weights file {str(path)!r} has two weights for class {name!r}; give one")
        weights[number] = weight
    if np.isnan(weights).any():
        missing = int(np.isnan(weights).argmax())
        raise ValueError(
            f"class_weights file {str(path)!r} has no weight for class {missing} of {num_classes}; give one per class"
        )
    return weights


def class_weights(given: str, loader: PackedImageLoader, num_classes: int) -> np.ndarray:
    """Return the weights that "balanced" or the name of a file stands for, float64 (num_classes,)."""
    if given == "balanced":
        return balanced_weights(class_counts(loader, num_classes))
    return read_weights_file(given, num_classes, loader.classes)
