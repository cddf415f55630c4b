from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from patchnpack.models import attention as module
from patchnpack.models.attention import attention, attention_backend
from tests.closeness import assert_near

LENGTHS = [3, 3, 1, 7, 2, 7, 7]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def runs_here(device: str, dtype: torch.dtype) -> list[str]:
    names = ["auto", "split", "dense"]
    return [*names, "varlen"] if attention_backend(device, dtype) == "varlen" else names


def stream(device: str, dtype: torch.dtype, one_query: bool) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    tokens = sum(LENGTHS)
    shapes = [(len(LENGTHS) if one_query else tokens, 2, 8), (tokens, 2, 8), (tokens, 2, 8)]
    q, k, v = (
        torch.randn(s, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_() for s in shapes
    )
    cu_seqlens = torch.tensor([0, *LENGTHS]).cumsum(0, dtype=torch.int32).to(device)
    return q, k, v, cu_seqlens


def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, one_query: bool) -> torch.Tensor:
    """Attention image by image and head by head, written out."""
    out, start = torch.empty_like(q), 0
    for i, length in enumerate(LENGTHS):
        keys = slice(start, start + length)
        queries = slice(i, i + 1) if one_query else keys
        for h in range(q.shape[1]):
            weights = torch.softmax(q[queries, h] @ k[keys, h].T / q.shape[2] ** 0.5, dim=-1)
            out[queries, h] = weights @ v[keys, h]
        start += length
    return out


@pytest.mark.parametrize("avx512", [False, True])
@pytest.mark.parametrize("one_query", [False, True])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.03)]
)
def test_every_backend_equals_attention_by_hand_in_output_and_gradient(
    device: str, dtype: torch.dtype, tolerance: float, one_query: bool, avx512: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AVX512", avx512)
    q, k, v, cu_seqlens = stream(device, dtype, one_query)
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = by_hand(wide[0], wide[1], wide[2], one_query)
    direction = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64, device=device).view_as(expected)
    gradients = torch.autograd.grad(expected, wide, direction)
    for backend in runs_here(device, dtype):
        out = attention(q, k, v, cu_seqlens=cu_seqlens, lengths=LENGTHS, one_query=one_query, backend=backend)
        assert out.shape == q.shape
        assert out.dtype == dtype
        assert_near(out, expected, tolerance)
        assert_near(torch.autograd.grad(out, (q, k, v), direction.to(dtype)), gradients, tolerance)


@pytest.mark.parametrize("avx512", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_split_calls_the_kernel_of_torch_except_in_bfloat16_with_avx512(
    dtype: torch.dtype, avx512: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[torch.Tensor] = []
    kernel = F.scaled_dot_product_attention

    def counted(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        calls.append(q)
        return kernel(q, k, v)

    monkeypatch.setattr(module, "_AVX512", avx512)
    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    q, k, v, cu_seqlens = stream("cpu", dtype, one_query=False)
    attention(q, k, v, cu_seqlens=cu_seqlens, lengths=LENGTHS, backend="split")
    runs_of_equal_length = 5
    assert len(calls) == (0 if avx512 and dtype == torch.bfloat16 else runs_of_equal_length)


@pytest.mark.parametrize("lengths", [[1], [255, 256, 257], [400, 400, 30, 500], [700, 700]])
def test_split_equals_float64_for_long_images_in_output_and_gradient(lengths: list[int]) -> None:
    torch.manual_seed(0)
    starts = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    ours = [x.requires_grad_() for x in torch.randn(sum(lengths), 3, 3, 16).unbind(1)]
    exact = [x.detach().double().requires_grad_() for x in ours]
    out = attention(*ours, cu_seqlens=starts, lengths=lengths, backend="split")
    expected = attention(*exact, cu_seqlens=starts, lengths=lengths, backend="dense")
    assert_near(out, expected, 1e-5)
    direction = torch.randn_like(out)
    gradients = torch.autograd.grad(out, ours, direction)
    assert_near(gradients, torch.autograd.grad(expected, exact, direction.double()), 1e-5)


def test_memory_of_split_grows_with_the_tokens_not_with_their_square() -> None:
    def kept(S: int) -> int:
        sizes: list[int] = []

        def keep(x: torch.Tensor) -> torch.Tensor:
            sizes.append(x.numel())
            return x

        q, k, v = (torch.randn(S, 3, 16, requires_grad=True) for _ in range(3))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            attention(q, k, v, cu_seqlens=torch.tensor([0, S], dtype=torch.int32), lengths=[S], backend="split")
        return sum(sizes)

    assert kept(1024) < 2.01 * kept(512)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("one_query", [False, True])
def test_flex_equals_attention_by_hand_and_refuses_gradients_on_a_cpu(one_query: bool) -> None:
    q, k, v, cu_seqlens = stream("cpu", torch.float32, one_query)
    with torch.no_grad():
        out = attention(q, k, v, cu_seqlens=cu_seqlens, lengths=LENGTHS, one_query=one_query, backend="flex")
        assert_near(out, by_hand(q, k, v, one_query), 1e-5)
    with pytest.raises(ValueError, match=r"'flex' has no gradient on a CPU; use backend='auto'"):
        attention(q, k, v, cu_seqlens=cu_seqlens, lengths=LENGTHS, one_query=one_query, backend="flex")


def test_auto_logs_its_choice_once(caplog: pytest.LogCaptureFixture) -> None:
    module._log_once.cache_clear()
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            attention_backend("cpu", torch.float32)
    assert [record.getMessage() for record in caplog.records] == ["attention backend 'split' for cpu, torch.float32"]


def test_auto_chooses_flash_attn_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_has", lambda name: name == "flash_attn")
    assert attention_backend("cuda", torch.bfloat16) == "flash"
    assert attention_backend("cuda", torch.float32) == "dense"
    monkeypatch.setattr(module, "_has", lambda name: False)
    assert attention_backend("cuda", torch.bfloat16) == "dense"
    with pytest.raises(ValueError, match=r"'flash' needs CUDA.*flash_attn.*Use backend='auto'"):
        attention_backend("cuda", torch.bfloat16, "flash")


def test_a_head_width_that_a_kernel_does_not_take_is_refused_and_auto_takes_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_has", lambda name: True)
    chosen = {width: attention_backend("cuda", torch.bfloat16, "auto", width) for width in (8, 12, 256, 264)}
    assert chosen == {8: "flash", 12: "flash", 256: "flash", 264: "dense"}
    monkeypatch.setattr(module, "_has", lambda name: name != "flash_attn")
    chosen = {width: attention_backend("cuda", torch.bfloat16, "auto", width) for width in (8, 12, 256, 264)}
    assert chosen == {8: "varlen", 12: "dense", 256: "varlen", 264: "dense"}
    message = r"up to 256 features per head, a multiple of 8; .* 12 features\. Use backend='auto', or change width"
    with pytest.raises(ValueError, match=message):
        attention_backend("cuda", torch.bfloat16, "varlen", 12)
    q = torch.zeros(2, 1, 12, dtype=torch.bfloat16, device="meta")
    starts = torch.tensor([0, 2], dtype=torch.int32)
    monkeypatch.setattr(torch, "device", lambda _: SimpleNamespace(type="cuda"))  # as if on CUDA
    with pytest.raises(ValueError, match=message):
        attention(q, q, q, cu_seqlens=starts, lengths=[2], backend="varlen")


@pytest.mark.parametrize("backend", ["split", "dense"])
def test_no_images_give_an_empty_output_that_reaches_every_input(backend: str) -> None:
    q, k, v = (torch.zeros(0, 2, 8, requires_grad=True) for _ in range(3))
    out = attention(q, k, v, cu_seqlens=torch.zeros(1, dtype=torch.int32), lengths=[], backend=backend)
    assert out.shape == (0, 2, 8)
    out.sum().backward()
    assert all(x.grad is not None for x in (q, k, v))


def test_auto_is_split_on_cpu_and_never_varlen_in_float32() -> None:
    assert attention_backend("cpu") == "split"
    assert attention_backend("cpu", torch.bfloat16) == "split"
    assert attention_backend("cuda", torch.float32) == "dense"
    assert attention_backend("cuda") in ("flash", "varlen", "dense")
    assert attention_backend("cpu", backend="dense") == "dense"


def test_an_impossible_backend_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"'varlen' needs CUDA.*cpu.*Use backend='auto'"):
        attention_backend("cpu", backend="varlen")
    with pytest.raises(ValueError, match=r"'varlen' needs CUDA.*float32"):
        attention_backend("cuda", torch.float32, "varlen")
    with pytest.raises(ValueError, match=r"'fast' is unknown; choose one of auto, split"):
        attention_backend("cpu", backend="fast")
