from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from patchnpack.models import blockwise, onednn
from patchnpack.models.attention import attention
from patchnpack.models.blockwise import blockwise_attention, usable
from tests.closeness import assert_near

pytestmark = pytest.mark.skipif(not onednn._AVAILABLE, reason="this torch has no oneDNN")


def heads_of_a_stream(n: int, S: int, H: int = 3, E: int = 16) -> list[torch.Tensor]:
    """q, k, v (n, H, S, E) as a block of the model passes them: views of one tensor."""
    qkv = torch.randn(n, S, 3, H, E)
    return [x.transpose(1, 2).detach().requires_grad_() for x in qkv.unbind(2)]


@pytest.mark.parametrize("S", [1, 255, 256, 257, 512, 700])
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("contiguous", [True, False])
def test_output_and_gradients_equal_those_of_float64(S: int, n: int, contiguous: bool) -> None:
    torch.manual_seed(S)
    ours = heads_of_a_stream(n, S)
    if contiguous:
        ours = [x.detach().contiguous().requires_grad_() for x in ours]
    exact = [x.detach().double().requires_grad_() for x in ours]
    out, expected = blockwise_attention(*ours), F.scaled_dot_product_attention(exact[0], exact[1], exact[2])
    assert_near(out, expected, 1e-5)
    direction = torch.randn(n, S, 3, 16).transpose(1, 2)
    gradients = torch.autograd.grad(out, ours, direction)
    assert_near(gradients, torch.autograd.grad(expected, exact, direction.double()), 1e-5)


def test_large_scores_do_not_overflow() -> None:
    torch.manual_seed(0)
    q, k, v = (100 * x for x in heads_of_a_stream(1, 400))
    out = blockwise_attention(q, k, v)
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    # A score of 4e4 is rounded by up to 2e-3, and a softmax moves by a quarter of that where two scores are equal.
    assert_near(out, expected, 5e-3)


def test_it_is_used_on_one_thread_for_long_images_in_float32_only() -> None:
    long, short = heads_of_a_stream(1, 384), heads_of_a_stream(1, 383)
    assert torch.get_num_threads() == 1
    assert usable(*long)
    assert not usable(*short)
    assert not usable(*[x.double() for x in long])
    assert not usable(long[0][:, :, :1], *long[1:]), "one query an image"
    with torch.autocast("cpu", torch.bfloat16):
        assert not usable(*long)
    torch.set_num_threads(2)  # a fixture restores it
    assert not usable(*long)


def test_attention_uses_it_for_the_long_images_of_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    lengths = [400, 400, 30, 500]
    qkv = [torch.randn(sum(lengths), 2, 8) for _ in range(3)]
    starts = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    calls: list[tuple[int, ...]] = []

    def seen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        calls.append(tuple(q.shape))
        return blockwise_attention(q, k, v)

    monkeypatch.setattr(blockwise, "blockwise_attention", seen)
    out = attention(*qkv, cu_seqlens=starts, lengths=lengths, backend="split")
    assert calls == [(2, 2, 400, 8), (1, 2, 500, 8)]
    dense = attention(*qkv, cu_seqlens=starts, lengths=lengths, backend="dense")
    assert_near(out, dense, 1e-5)


def test_memory_grows_with_the_tokens_not_with_their_square() -> None:
    def kept(S: int) -> int:
        sizes: list[int] = []

        def keep(x: torch.Tensor) -> torch.Tensor:
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            blockwise_attention(*heads_of_a_stream(1, S))
        return sum(sizes)

    assert kept(1024) == 2 * kept(512)
