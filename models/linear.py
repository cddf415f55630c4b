"""Linear layers in float32 on a CPU, by oneDNN: there MKL, torch's own choice, can leave half of the machine unused."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

# T tokens, I features in, O features out

_FEWEST = 256  # tokens from which on the product is worth the packing of its weight
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


class _OneDNN(torch.autograd.Function):
    """The kernel has no gradient of its own: three products of one kind."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.T) if for_x else None,
            _product(grad.T, x.T) if for_weight else None,
            grad.sum(0) if for_bias else None,
        )


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`F.linear` of x (T, I) with weight (O, I) and bias (O,), to (T, O).

    In float32 on a CPU, from 256 tokens on, it runs on oneDNN's kernel, in full float32. On an AMD EPYC 9005 that
    multiplies at 160 to 215 GFLOP/s a core, where MKL, which uses no AVX-512 there, reaches 75 to 100. Everything else,
    compiling and exporting included, is `F.linear`.

    >>> linear(torch.ones(300, 8), torch.ones(4, 8)).shape
    torch.Size([300, 4])
    """
    by_onednn = (
        _ONEDNN
        and not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.ndim == 2
        and len(x) >= _FEWEST
        and not torch.is_autocast_enabled("cpu")
    )
    if not by_onednn:
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
