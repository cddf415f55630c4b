from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from patchnpack.models import onednn
from patchnpack.models.linear import Linear, linear
from tests.closeness import assert_near


@pytest.mark.parametrize("tokens", [0, 1, 255, 256, 700])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("features", [8, 24, 40])
def test_output_and_gradients_equal_those_of_float64(tokens: int, bias: bool, features: int) -> None:
    torch.manual_seed(0)
    layer, wide = Linear(24, features, bias=bias), torch.nn.Linear(24, features, bias=bias)
    wide.load_state_dict(layer.state_dict())
    x = torch.randn(tokens, 24, requires_grad=True)
    x64, wide = x.detach().double().requires_grad_(), wide.double()
    out, expected = layer(x), wide(x64)
    assert_near(out, expected, 1e-5)
    direction = torch.randn(tokens, features)
    ours = torch.autograd.grad(out, [x, *layer.parameters()], direction)
    theirs = torch.autograd.grad(expected, [x64, *wide.parameters()], direction.double())
    assert_near(ours, theirs, 1e-5)


@pytest.mark.skipif(not onednn._AVAILABLE, reason="this torch has no oneDNN")
def test_only_float32_from_256_tokens_on_runs_on_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        calls.append(len(x))
        return F.linear(x, weight, bias)

    monkeypatch.setattr(onednn, "product", product)
    layer = Linear(8, 4)
    for x in (torch.ones(255, 8), torch.ones(2, 300, 8)):
        layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.ones(300, 8)).dtype == torch.bfloat16
    linear(torch.ones(300, 8).double(), layer.weight.double())
    assert calls == []
    layer(torch.ones(300, 8))
    assert calls == [300]
