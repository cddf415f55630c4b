"""Comparison of floats whose limit is the same on every CPU.

BLAS libraries and instruction sets add up in different orders, so results differ by roundings of the values that were
added. A result may be much smaller than those values, or 0 in exact arithmetic and noise in floating point: its own
size is no measure of the error. These functions measure the error against the largest magnitude of all values that
were computed together, and never against less than the roundings of the inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

Values = torch.Tensor | np.ndarray | Sequence[float]


def _tensors(values: Values | Sequence[Values]) -> list[torch.Tensor]:
    if isinstance(values, torch.Tensor | np.ndarray):
        return [torch.as_tensor(values).detach()]
    if all(isinstance(value, float | int) for value in values):
        return [torch.tensor(values, dtype=torch.float64)]
    return [torch.as_tensor(value).detach() for value in values]


def _largest(tensors: list[torch.Tensor]) -> float:
    largest = [tensor.double().abs().max().cpu() for tensor in tensors if tensor.numel()]
    return float(torch.stack(largest).max()) if largest else 0.0  # NaN where any value is, unlike Python's max


def difference(ours: Values | Sequence[Values], theirs: Values | Sequence[Values], *, inputs: float = 1.0) -> float:
    """Return the largest difference of any element, as a fraction of the largest magnitude in `theirs`.

    Both arguments are one tensor or array, or several computed together, such as the gradients of all parameters of a
    model. The magnitude is at least 8 epsilons of the dtype of `ours`, times `inputs`, the magnitude of the values that
    the results were computed from: zeros compare with noise.

    >>> difference(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    0.5
    >>> difference([torch.tensor([3e-17]), torch.tensor([2.0])], [torch.tensor([-5e-17]), torch.tensor([2.0])]) < 1e-16
    True
    """
    mine, others = _tensors(ours), _tensors(theirs)
    assert [tensor.shape for tensor in mine] == [tensor.shape for tensor in others], "the shapes differ"
    gap = _largest([a.double() - b.double() for a, b in zip(mine, others, strict=True)])
    epsilon = max(torch.finfo(tensor.dtype).eps for tensor in mine if tensor.is_floating_point())
    return gap / max(_largest(others), 8 * epsilon * inputs)


def assert_near(
    ours: Values | Sequence[Values], theirs: Values | Sequence[Values], tolerance: float, *, inputs: float = 1.0
) -> None:
    """Check that `difference` is at most `tolerance`.

    >>> assert_near(torch.tensor([1e-9, 1.0]), torch.tensor([0.0, 1.0]), 1e-6)
    >>> assert_near(torch.tensor([1.0]), torch.tensor([1.1]), 1e-6)
    Traceback (most recent call last):
    AssertionError: differs by 9.1e-02 of the largest magnitude 1.1, more than 1e-06
    """
    found = difference(ours, theirs, inputs=inputs)
    if not found <= tolerance:  # NaN fails too
        largest = _largest(_tensors(theirs))
        raise AssertionError(f"differs by {found:.1e} of the largest magnitude {largest:.3g}, more than {tolerance:g}")
