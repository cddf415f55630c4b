"""Metrics of segmentation and detection: mean IoU, generalised IoU of boxes, average precision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

__all__ = [
    "average_precision",
    "box_iou",
    "class_iou",
    "confusion_matrix",
    "generalized_iou",
    "mean_average_precision",
    "mean_iou",
]

# C classes, n boxes of an image; boxes are (..., 4), left, top, right, bottom, in any unit
Known = tuple[torch.Tensor, torch.Tensor]  # boxes float (n, 4) and labels int64 (n,) of an image
Found = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # likewise, and scores float (n,)
_RECALLS = 0.01 * torch.arange(101, dtype=torch.float64)  # where precision is read off; rounded as in pycocotools
_TINY = 1e-30  # in place of an area of 0


def confusion_matrix(known: torch.Tensor, found: torch.Tensor, classes: int, *, ignore: int = 255) -> torch.Tensor:
    """Count pixels by known class (row) and class found (column), int64 (C, C); images add up.

    Args:
        known, found: integer class maps of one shape.
        classes: C.
        ignore: pixels of this known class do not count.

    Raises:
        ValueError: the shapes differ, or a counted pixel has a class outside 0 to C - 1.

    >>> class_iou(confusion_matrix(torch.tensor([0, 0, 1, 255]), torch.tensor([0, 1, 1, 0]), 2)).tolist()
    [0.5, 0.5]
    """
    if known.shape != found.shape:
        raise ValueError(f"known has shape {tuple(known.shape)} and found {tuple(found.shape)}; give one shape")
    counted = known != ignore
    rows, columns = known[counted].long(), found[counted].long()
    for name, values in (("known", rows), ("found", columns)):
        wrong = values[(values < 0) | (values >= classes)]
        if len(wrong):
            remedy = f"give more classes, or mark known pixels that do not count with ignore={ignore}"
            raise ValueError(f"{name} has class {int(wrong[0])}, but classes are 0 to {classes - 1}; {remedy}")
    return torch.bincount(rows * classes + columns, minlength=classes**2).view(classes, classes)


def class_iou(confusion: torch.Tensor) -> torch.Tensor:
    """Intersection over union of each class, float64 (C,); NaN for a class that is neither known nor found."""
    hits = confusion.diagonal().double()
    return hits / (confusion.sum(0) + confusion.sum(1) - hits)


def mean_iou(confusion: torch.Tensor) -> float:
    """Mean of `class_iou` over the classes that occur ("mean IU" in Long et al. 2015, arXiv 1411.4038, section 5)."""
    return float(class_iou(confusion).nanmean())


def box_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Intersection over union of boxes, (...,); the leading dimensions broadcast, and empty pairs give 0.

    `box_iou(a[:, None], b)` compares every box of a with every box of b.

    >>> box_iou(torch.tensor([0.0, 0, 2, 2]), torch.tensor([[1.0, 0, 3, 2], [5, 5, 6, 6]])).tolist()
    [0.3333333432674408, 0.0]
    """
    intersection, union = _overlap(a, b)
    return intersection / union.clamp(min=_TINY)


def generalized_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Generalised IoU of boxes, -1 to 1, (...,): IoU less the share of the common hull that neither covers.

    Rezatofighi et al. 2019, arXiv 1902.09630, algorithm 1. Unlike IoU, it has a gradient where the boxes do not meet.
    Dimensions broadcast as in `box_iou`.

    >>> generalized_iou(torch.tensor([0.0, 0, 1, 1]), torch.tensor([3.0, 0, 4, 1])).item()
    -0.5
    """
    intersection, union = _overlap(a, b)
    hull = _area(torch.cat([torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])], -1))
    return intersection / union.clamp(min=_TINY) - (hull - union) / hull.clamp(min=_TINY)


def _area(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def _overlap(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    intersection = _area(torch.cat([torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])], -1))
    return intersection, _area(a) + _area(b) - intersection


def average_precision(found: Sequence[Found], known: Sequence[Known], iou: float = 0.5) -> dict[int, float]:
    """Average precision of each class that occurs in `known`, as COCO computes it over all areas.

    Predictions are taken by falling score. Each takes the known box of its class and image with which it has the
    highest IoU, among those that are still free and reach `iou`; a prediction without one is a false positive. The
    result is the mean, over the recalls 0, 0.01 ... 1, of the highest precision at that recall or a higher one. COCO
    counts at most 100 predictions per image; here all count.

    Args:
        found: (boxes, labels, scores) of each image, float (n, 4), int64 (n,) and float (n,).
        known: (boxes, labels) of each image, in the same order.
        iou: the IoU with a known box from which on a prediction is a hit.

    Raises:
        ValueError: `found` and `known` have different numbers of images.

    >>> box, labels = torch.tensor([[0.0, 0, 4, 3], [5, 5, 9, 8]]), torch.tensor([0, 0])
    >>> average_precision([(box, labels, torch.tensor([0.8, 0.9]))], [(box[:1], labels[:1])])
    {0: 0.5}
    """
    if len(found) != len(known):
        raise ValueError(f"found has {len(found)} images and known {len(known)}; give both of the same images")
    classes = torch.cat([labels for _, labels in known]).unique().tolist() if known else []
    return {c: _class_precision(found, known, c, iou) for c in classes}


def mean_average_precision(found: Sequence[Found], known: Sequence[Known], ious: Iterable[float] = (0.5,)) -> float:
    """Mean of `average_precision` over classes and `ious`; NaN without a known box.

    COCO's main metric has the `ious` 0.5, 0.55 ... 0.95: `[0.5 + 0.05 * i for i in range(10)]`.
    """
    values = [value for iou in ious for value in average_precision(found, known, iou).values()]
    return sum(values) / len(values) if values else float("nan")


def _class_precision(found: Sequence[Found], known: Sequence[Known], c: int, iou: float) -> float:
    every, hits, total = [], [], 0
    for (boxes, labels, scores), (true, true_labels) in zip(found, known, strict=True):
        order = torch.where(labels == c)[0]
        order = order[scores[order].argsort(descending=True, stable=True)]
        overlap = box_iou(boxes[order, None], true[true_labels == c])
        hit = torch.zeros(len(order))
        for i, row in enumerate(overlap if overlap.shape[1] else ()):
            if row[best := int(row.argmax())] >= iou:
                hit[i] = 1
                overlap[:, best] = -1  # taken
        every.append(scores[order])
        hits.append(hit)
        total += overlap.shape[1]
    hit = torch.cat(hits)[torch.cat(every).argsort(descending=True, stable=True)].double().cumsum(0)
    precision = hit / torch.arange(1, len(hit) + 1)
    highest = torch.cat([precision.flip(0).cummax(0).values.flip(0), precision.new_zeros(1)])
    return float(highest[torch.searchsorted(hit / total, _RECALLS)].mean())
