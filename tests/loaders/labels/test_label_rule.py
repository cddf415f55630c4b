"""What a value stands for as a label."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from patchnpack.loaders.labels.label_rule import as_label


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.tensor(4), 4),
        (np.array(True), 1),
        (torch.tensor(float("nan"), requires_grad=True), None),
    ],
)
def test_values_of_other_libraries_are_labels(value: Any, expected: int | None) -> None:
    assert as_label(value) == expected


def test_missing_values_of_pandas_are_absent_labels() -> None:
    pandas = pytest.importorskip("pandas")
    assert as_label(pandas.NA) is None
    assert as_label(pandas.NaT) is None


def test_tensor_of_bfloat16_is_a_target() -> None:
    target = as_label(torch.tensor([1.0, 0.5], dtype=torch.bfloat16))
    assert isinstance(target, np.ndarray)
    assert target.dtype == np.float32
    assert target.tolist() == [1.0, 0.5]


@pytest.mark.parametrize("value", [[], np.array([]), 3.0, 2.0**63, float("inf")])
def test_value_that_is_no_label_is_refused_with_the_value(value: Any) -> None:
    with pytest.raises(ValueError, match=r"a label is .*; it must be a whole number of int64 .* at least one number"):
        as_label(value)
