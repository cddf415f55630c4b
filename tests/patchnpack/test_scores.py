from __future__ import annotations

import math

import numpy as np
import pytest

from patchnpack.scores import scores


def test_scores_are_their_formulas() -> None:
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 8, 300), rng.standard_normal((300, 9))
    logits[np.arange(300), labels] += 1
    found = scores(labels, logits, [f"class {c}" for c in range(9)])
    predicted = logits.argmax(1)
    assert found.images == 300
    assert found.accuracy == pytest.approx((predicted == labels).mean())
    assert found.prior == pytest.approx(max((labels == c).mean() for c in range(8)))
    top5 = [label in row.argsort()[-5:] for label, row in zip(labels, logits, strict=True)]
    assert found.top5 == pytest.approx(np.mean(top5))
    f1 = []
    for row in found.classes:
        c = int(row.name.removeprefix("class "))
        right = int(((labels == c) & (predicted == c)).sum())
        recall = right / (labels == c).sum() if (labels == c).any() else math.nan
        precision = right / (predicted == c).sum() if (predicted == c).any() else math.nan
        assert row.images == (labels == c).sum()
        assert row.accuracy == pytest.approx(recall, nan_ok=True)
        assert row.precision == pytest.approx(precision, nan_ok=True)
        f1.append(2 * right / ((labels == c).sum() + (predicted == c).sum()))
        assert row.f1 == pytest.approx(f1[-1])
    assert len(f1) == 9, "the class without images is predicted, so it counts"
    assert found.macro_f1 == pytest.approx(np.mean(f1))


def test_an_image_with_a_logit_that_is_not_finite_is_wrong() -> None:
    logits = np.tile(np.arange(7.0), (3, 1))
    logits[1, 6] = np.nan
    logits[2, 6] = np.inf
    found = scores(np.array([6, 6, 6]), logits)
    assert found.accuracy == found.top5 == pytest.approx(1 / 3)


def test_five_classes_have_no_top_5_and_absent_classes_do_not_count() -> None:
    found = scores(np.array([0, 1]), np.array([[1.0, 0, 0, 0, 0], [1.0, 0, 0, 0, 0]]))
    assert found.top5 is None
    assert [row.name for row in found.classes] == ["0", "1"]
    assert found.macro_f1 == pytest.approx((2 / 3 + 0) / 2)
