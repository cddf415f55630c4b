"""Linear layers that run on oneDNN where it is faster than torch's default."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from patchnpack.models import onednn

# T tokens, I features in, O features out

_MIN_TOKENS = 256  # from this number of tokens on, packing the weight for the product pays off


class _OneDNN(torch.autograd.Function):
    """The oneDNN product with a gradient, which the kernel itself lacks."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return onednn.product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            onednn.product(grad, weight.T) if for_x else None,
            _outer(grad, x) if for_weight else None,
            grad.sum(0) if for_bias else None,
        )


def _outer(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """grad^T x, (O, I), of grad (T, O) and x (T, I).

    oneDNN copies its first factor, so the smaller one is first.
    """
    if grad.shape[1] <= x.shape[1]:
        return onednn.product(grad.T, x.T)
    return onednn.product(x.T, grad.T).T


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`F.linear` of x (T, I) with weight (O, I) and bias (O,), to (T, O).

    In float32 on a CPU, from 256 tokens on, it runs on oneDNN; everything else, including compiling and exporting, uses
    `F.linear`.

    >>> linear(torch.ones(300, 8), torch.ones(4, 8)).shape
    torch.Size([300, 4])
    """
    if x.ndim != 2 or len(x) < _MIN_TOKENS or not onednn.usable(x, weight):
        return F.linear(x, weight, bias)
    out: torch.Tensor = _OneDNN.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return out


class Linear(nn.Linear):
    """`nn.Linear` that computes with `linear`.

    >>> Linear(8, 4)(torch.ones(300, 8)).shape
    torch.Size([300, 4])
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)
