"""`scores`: accuracy, top-5, F1 and the accuracy of each class, from labels and logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# N images, C classes


class ClassScore(NamedTuple):
    """The scores of one class: its images, and the shares of them (accuracy) and of its predictions that are right."""

    name: str
    images: int
    accuracy: float
    precision: float
    f1: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Scores of a classifier over labelled images.

    Attributes:
        images: number of labelled images, N.
        accuracy: share of images whose highest logit is that of their class.
        top5: share of images whose class is among the five highest logits; None for fewer than six classes.
        macro_f1: mean F1 over the classes that occur among labels or predictions.
        prior: accuracy of always predicting the most frequent class.
        classes: the scores of each of these classes; the accuracy of a class without images is NaN.
    """

    images: int
    accuracy: float
    top5: float | None
    macro_f1: float
    prior: float
    classes: list[ClassScore]


def scores(labels: np.ndarray, logits: np.ndarray, names: Sequence[str] | None = None) -> Scores:
    """Score logits (N, C) against labels (N,), classes from 0 to C - 1; at least one image.

    An image with a logit that is not finite counts as wrong.

    >>> scores(np.array([0, 0, 1]), np.array([[2.0, 1.0], [1.0, 2.0], [0.0, 1.0]])).macro_f1.__round__(3)
    0.667
    """
    N, C = logits.shape
    finite = np.isfinite(logits).all(1)
    predicted = np.where(finite, logits.argmax(1), -1)
    above = (logits > logits[np.arange(N), labels][:, None]).sum(1)
    images = np.bincount(labels, minlength=C)
    guesses = np.bincount(predicted[finite], minlength=C)
    hits = np.bincount(labels[predicted == labels], minlength=C)
    with np.errstate(invalid="ignore"):
        accuracy, precision, f1 = hits / images, hits / guesses, 2 * hits / (images + guesses)
    occur = np.flatnonzero(images + guesses)
    return Scores(
        images=N,
        accuracy=float(hits.sum() / N),
        top5=float((finite & (above < 5)).mean()) if C > 5 else None,
        macro_f1=float(f1[occur].mean()),
        prior=float(images.max() / N),
        classes=[
            ClassScore(
                names[c] if names is not None and c < len(names) else str(c),
                int(images[c]),
                *(float(values[c]) for values in (accuracy, precision, f1)),
            )
            for c in occur.tolist()
        ],
    )
