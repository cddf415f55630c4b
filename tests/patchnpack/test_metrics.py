"""Metrics of segmentation and detection, against cases worked out by hand and slow formulas."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from patchnpack.metrics import (
    average_precision,
    box_iou,
    class_iou,
    confusion_matrix,
    generalized_iou,
    mean_average_precision,
    mean_iou,
)


def random_boxes(rng: np.random.Generator, n: int, side: int = 12) -> torch.Tensor:
    corners = np.sort(rng.integers(0, side + 1, (n, 2, 2)), axis=1)
    return torch.from_numpy(corners.reshape(n, 4)).float()


def cells(box: torch.Tensor) -> set[tuple[int, int]]:
    left, top, right, bottom = map(int, box.tolist())
    return set(itertools.product(range(left, right), range(top, bottom)))


def test_confusion_counts_pairs_and_leaves_out_what_is_ignored() -> None:
    rng = np.random.default_rng(0)
    known, found = torch.from_numpy(rng.integers(0, 4, (2, 30, 40)))
    known = known.to(torch.uint8)
    known[rng.random(known.shape) < 0.2] = 255
    matrix = confusion_matrix(known, found, 4)
    for i, j in itertools.product(range(4), range(4)):
        assert matrix[i, j] == ((known == i) & (found == j)).sum()
    assert torch.equal(matrix, confusion_matrix(known[:9], found[:9], 4) + confusion_matrix(known[9:], found[9:], 4))
    union = [((known == c) | ((found == c) & (known != 255))).sum() for c in range(4)]
    hits = [((known == c) & (found == c)).sum() for c in range(4)]
    assert class_iou(matrix).tolist() == pytest.approx([float(h / u) for h, u in zip(hits, union, strict=True)])


def test_mean_iou_is_over_the_classes_that_occur() -> None:
    matrix = torch.tensor([[3, 1, 0, 0], [0, 4, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0]])
    assert class_iou(matrix).tolist() == pytest.approx([3 / 6, 4 / 5, float("nan"), 0.0], nan_ok=True)
    assert mean_iou(matrix) == pytest.approx((3 / 6 + 4 / 5 + 0) / 3)


@pytest.mark.parametrize(
    ("known", "found", "named"), [([4], [0], "known has class 4"), ([0], [-1], "found has class -1")]
)
def test_a_class_out_of_range_raises(known: list[int], found: list[int], named: str) -> None:
    with pytest.raises(ValueError, match=f"{named}, but classes are 0 to 3; give more classes"):
        confusion_matrix(torch.tensor(known), torch.tensor(found), 4)


def test_maps_of_different_shapes_raise() -> None:
    with pytest.raises(ValueError, match=r"known has shape \(2, 3\) and found \(3, 2\)"):
        confusion_matrix(torch.zeros(2, 3), torch.zeros(3, 2), 4)


def test_box_iou_and_generalized_iou_count_cells() -> None:
    rng = np.random.default_rng(1)
    a, b = random_boxes(rng, 60), random_boxes(rng, 50)
    iou, generalized = box_iou(a[:, None], b), generalized_iou(a[:, None], b)
    assert iou.shape == (60, 50)
    for i, j in itertools.product(range(60), range(50)):
        one, other = cells(a[i]), cells(b[j])
        hull = cells(torch.cat([torch.minimum(a[i, :2], b[j, :2]), torch.maximum(a[i, 2:], b[j, 2:])]))
        union = len(one | other)
        share = len(one & other) / union if union else 0.0
        assert float(iou[i, j]) == pytest.approx(share, abs=1e-6)
        less = (len(hull) - union) / len(hull) if hull else 0.0
        assert float(generalized[i, j]) == pytest.approx(share - less, abs=1e-6)


def test_generalized_iou_draws_boxes_together_and_stays_finite() -> None:
    box = torch.tensor([0.0, 0, 1, 1], requires_grad=True)
    generalized_iou(box, torch.tensor([3.0, 0, 4, 1])).backward()
    assert box.grad is not None
    assert box.grad[2] > 0  # its right side grows towards the other box
    point = torch.zeros(4, requires_grad=True)
    value = generalized_iou(point, torch.zeros(4))
    value.backward()
    assert float(value.detach()) == 0
    assert point.grad is not None
    assert point.grad.isfinite().all()


def boxes(*lefts: float) -> torch.Tensor:
    return torch.tensor([[left, 0.0, left + 10, 10] for left in lefts]).reshape(-1, 4)


def test_average_precision_of_a_case_by_hand() -> None:
    zero = torch.zeros(5, dtype=torch.int64)
    known = [(boxes(0, 100), zero[:2]), (boxes(0), zero[:1]), (boxes(), zero[:0])]
    found = [
        # 0.9 is a hit; 0.8 is on the same box as 0.9, so a false positive; 0.3 is a hit.
        (boxes(1, 0, 101), zero[:3], torch.tensor([0.9, 0.8, 0.3])),
        (boxes(50), zero[:1], torch.tensor([0.95])),  # on nothing
        (boxes(), zero[:0], torch.zeros(0)),
    ]
    # By falling score: miss, hit, miss, hit. Precision 0, 1/2, 1/3, 2/4 at recalls 0, 1/3, 1/3, 2/3, so that 1/2 is the
    # highest at recalls 0 to 0.66, which are 67 of the 101, and 0 beyond.
    assert average_precision(found, known) == {0: pytest.approx(67 * 0.5 / 101)}
    # At an IoU of 0.9, only 0.8 is a hit: precision 1/3 at recalls 0 to 0.33.
    assert mean_average_precision(found, known, (0.5, 0.9)) == pytest.approx((67 / 2 + 34 / 3) / 101 / 2)


def test_a_prediction_takes_the_best_box_that_is_free() -> None:
    labels = torch.zeros(2, dtype=torch.int64)
    known = [(boxes(0, 3), labels)]
    found = [(boxes(1, 2), labels, torch.tensor([0.9, 0.8]))]  # both overlap both by more than half
    assert average_precision(found, known) == {0: 1.0}
    crossed = [(boxes(2, 5), labels, torch.tensor([0.9, 0.8]))]  # the first takes the box at 3
    assert average_precision(crossed, known, 0.6) == {0: pytest.approx(51 / 101)}


def test_classes_do_not_mix_and_a_class_without_known_boxes_does_not_count() -> None:
    known = [(boxes(0, 100), torch.tensor([0, 1]))]
    found = [(boxes(0, 100, 0), torch.tensor([1, 1, 2]), torch.tensor([0.9, 0.8, 0.7]))]
    assert average_precision(found, known) == {0: 0.0, 1: pytest.approx(0.5)}
    assert np.isnan(mean_average_precision([], []))


def test_different_numbers_of_images_raise() -> None:
    with pytest.raises(ValueError, match="found has 0 images and known 1"):
        average_precision([], [(boxes(0), torch.tensor([0]))])


def slow_average_precision(found: list, known: list, c: int, iou: float) -> float:  # type: ignore[type-arg]
    """The same over one list of all predictions, with plain loops over recalls."""
    guesses = [
        (float(score), i, box)
        for i, image in enumerate(found)
        for box, label, score in zip(*image, strict=True)
        if label == c
    ]
    free = [[box for box, label in zip(*image, strict=True) if label == c] for image in known]
    total, points, hits = sum(map(len, free)), [], 0
    for n, (_, i, box) in enumerate(sorted(guesses, key=lambda guess: -guess[0]), 1):
        fits = [(float(box_iou(box, true)), k) for k, true in enumerate(free[i])]
        if fits and max(fits)[0] >= iou:
            hits += 1
            free[i].pop(max(fits)[1])
        points.append((hits / total, hits / n))
    recalls = 0.01 * np.arange(101)
    return float(np.mean([max((p for r, p in points if r >= recall), default=0.0) for recall in recalls]))


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_equals_plain_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    known, found = [], []
    for _ in range(8):
        true = random_boxes(rng, int(rng.integers(0, 6)), 40)
        near = (true + torch.from_numpy(rng.normal(0, 2, true.shape)).float()).repeat(2, 1)
        known.append((true, torch.from_numpy(rng.integers(0, 3, len(true)))))
        labels = torch.where(torch.from_numpy(rng.random(len(near)) < 0.8), known[-1][1].repeat(2), 1)
        found.append((near, labels, torch.from_numpy(rng.permutation(1000)[: len(near)] / 1000)))
    for iou in (0.3, 0.5, 0.75):
        for c, value in average_precision(found, known, iou).items():
            assert value == pytest.approx(slow_average_precision(found, known, c, iou))
