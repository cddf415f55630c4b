"""Calls of kernels that this machine does not run, held against their signatures and a softmax written out.

A recorder takes the place of each kernel. It binds the arguments of every call to the signature, checks the dtypes and
shapes that the kernel documents, and computes the result by hand in float64.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask, flex_attention

from patchnpack.models import NaViT, NaViTConfig
from patchnpack.models import attention as module
from patchnpack.packer.batch.packed_batch import PackedBatch
from tests.closeness import assert_near
from tests.models.conftest import of_samples

Draw = Callable[..., Any]
Pack = Callable[..., Any]
Build = Callable[..., Any]

VARIANTS: dict[str, dict[str, Any]] = {
    "attention pooling": {},
    "class token, rope": {"pooling": "cls", "position": "rope"},
    "samples, registers": {"scope": "sample", "registers": 2, "time": "rope"},
}


def flash_attn_varlen_func(  # the signature of flash-attn 2.8.3
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    max_seqlen_q: Any,
    max_seqlen_k: Any,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Any = None,
) -> None:
    raise NotImplementedError


def kernels() -> dict[str, Callable[..., Any]]:
    varlen = pytest.importorskip("torch.nn.attention.varlen", reason="this torch has no varlen_attn")
    return {"varlen": varlen.varlen_attn, "flash": flash_attn_varlen_func}


def softmax_by_hand(q: Any, k: Any, v: Any, cu_q: torch.Tensor, cu_k: torch.Tensor) -> torch.Tensor:
    """Sequence by sequence; NaN where the kernels write nothing: after the last one, and where there are no keys."""
    parts = []
    for (a, b), (c, d) in zip(itertools.pairwise(cu_q.tolist()), itertools.pairwise(cu_k.tolist()), strict=True):
        scores = torch.einsum("qhe,khe->hqk", q[a:b].double(), k[c:d].double()) * q.shape[-1] ** -0.5
        out = torch.einsum("hqk,khe->qhe", scores.softmax(-1), v[c:d].double())
        parts.append(out if d > c else torch.full_like(out, torch.nan))
    rest = q.new_full((len(q) - int(cu_q[-1]), *q.shape[1:]), torch.nan, dtype=torch.float64)
    return torch.cat([*parts, rest]).to(q.dtype)


def check_varlen(bound: inspect.BoundArguments) -> None:
    q, k, v, cu_q, cu_k, most_q, most_k = itertools.islice(bound.arguments.values(), 7)
    assert q.ndim == k.ndim == 3
    assert k.shape == v.shape
    assert q.shape[1:] == k.shape[1:]
    assert q.shape[2] % 8 == 0
    assert q.dtype == k.dtype == v.dtype == torch.bfloat16
    assert all(x.stride(-1) == 1 for x in (q, k, v))
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert cu_q.shape == cu_k.shape
    for cu, x, most in ((cu_q, q, most_q), (cu_k, k, most_k)):
        assert cu.ndim == 1
        assert cu.is_contiguous()
        assert cu[0] == 0
        assert cu[-1] <= len(x)
        assert cu.diff().min() >= 0
        assert cu.diff().max() <= most
        assert type(most) is int


def make(build: Build, config: NaViTConfig, backend: str, **fields: Any) -> NaViT:
    model: NaViT = build(dataclasses.replace(config, width=48, heads=3, **fields))
    object.__setattr__(model.config, "backend", backend)
    return model


@pytest.fixture
def batch(draw: Draw, pack: Pack) -> PackedBatch:
    """A batch with padding, an empty pack, one that an image fills, and a sample of several images."""
    packs = [[draw(5, 3, 1), draw(3, 5, 2, keep=9), draw(1, 1, 0)], [], [draw(6, 8, 3)]]
    return of_samples(pack(packs), [[2, 1], [], [1]])


@pytest.fixture(autouse=True)
def _as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "attention_backend", lambda device, dtype, name, width: name)
    monkeypatch.setattr("patchnpack.models.navit.attention_backend", lambda device, dtype, name, width: name)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("name", ["varlen", "flash"])
def test_calls_of_varlen_kernels_fit_their_signatures_and_a_softmax_by_hand(
    name: str,
    variant: dict[str, Any],
    padded: bool,
    batch: PackedBatch,
    build: Build,
    config: NaViTConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel, calls = kernels()[name], list[inspect.BoundArguments]()
    signature = inspect.signature(kernel)

    def recorded(*args: Any, **options: Any) -> torch.Tensor:
        calls.append(bound := signature.bind(*args, **options))
        check_varlen(bound)
        assert len(bound.arguments) == 7, "the rest keeps its defaults: no dropout, scale, window or causal mask"
        return softmax_by_hand(*args[:5])

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", recorded)
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=recorded))
    each = batch.padded() if padded else batch
    results = []
    for backend in (name, "split"):
        model = make(build, config, backend, **variant).bfloat16()
        logits = model(each)
        logits.float().square().sum().backward()
        results.append([logits, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(calls) == config.depth + (model.config.pooling == "attention")
    assert_near(results[0], results[1], 0.05)
    assert not any(x.isnan().any() for x in results[0])
    if name == "varlen":  # the operator itself takes these arguments, without values
        for call in calls:
            on_meta = [x.detach().to("meta") if isinstance(x, torch.Tensor) else x for x in call.args]
            out = kernel(*on_meta)
            assert (out.shape, out.dtype) == (call.args[0].shape, torch.bfloat16)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_calls_of_flex_fit_its_signature_and_a_softmax_by_hand(
    variant: dict[str, Any],
    padded: bool,
    batch: PackedBatch,
    build: Build,
    config: NaViTConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls, of_mask, of_flex = 0, inspect.signature(create_block_mask), inspect.signature(flex_attention)

    def make_mask(*args: Any, **options: Any) -> BlockMask:
        bound = of_mask.bind(*args, **options)
        assert bound.arguments["B"] is bound.arguments["H"] is None, "one mask for all heads"
        assert type(bound.arguments["Q_LEN"]) is type(bound.arguments["KV_LEN"]) is int
        return create_block_mask(*args, **options)

    def recorded(*args: Any, **options: Any) -> torch.Tensor:
        nonlocal calls
        bound = of_flex.bind(*args, **options)
        assert set(bound.arguments) == {"query", "key", "value", "block_mask"}
        q, k, v, mask = bound.arguments.values()
        assert q.ndim == k.ndim == 4
        assert k.shape == v.shape
        assert (len(q), *q.shape[1::2]) == (1, *k.shape[1::2])
        assert q.dtype == k.dtype == v.dtype
        assert mask.shape == (1, 1, q.shape[2], k.shape[2])
        allowed = create_mask(mask.mask_mod, 1, 1, q.shape[2], k.shape[2], device="cpu")
        scores = (q.double() @ k.double().mT * q.shape[-1] ** -0.5).masked_fill(~allowed, -torch.inf)
        out = flex_attention(*args, **options)
        assert isinstance(out, torch.Tensor)
        assert_near(out, scores.softmax(-1).nan_to_num() @ v.double(), 1e-5)
        calls += 1
        return out

    monkeypatch.setattr("torch.nn.attention.flex_attention.create_block_mask", make_mask)
    monkeypatch.setattr(module, "_compiled_flex", lambda device: recorded)
    with torch.no_grad():
        flex = make(build, config, "flex", **variant)(batch.padded() if padded else batch)
        split = make(build, config, "split", **variant)(batch)
    assert calls == config.depth + (variant.get("pooling", "attention") == "attention")
    assert_near(flex, split, 1e-4)
