"""`PackedBatch.padded` in the model: tensors of fixed shapes, the same outputs and gradients."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from patchnpack.models import NaViT, NaViTConfig
from patchnpack.models import attention as module
from patchnpack.packer.batch.packed_batch import PackedBatch
from tests.closeness import assert_near
from tests.models.conftest import of_samples

Draw = Callable[..., Any]
Pack = Callable[..., Any]
Build = Callable[..., Any]

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "mean, rope": {"pooling": "mean", "position": "rope"},
    "max, grid, registers": {"pooling": "max", "position": "grid", "registers": 2},
    "cls, time": {"pooling": "cls", "time": "learned"},
    "sample": {"scope": "sample", "time": "sinusoidal", "registers": 1},
}


class _Careless(torch.autograd.Function):
    """A kernel that, like those on a GPU, computes the sequences and leaves NaN everywhere else, in gradients too."""

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any) -> torch.Tensor:
        ctx.save_for_backward(q, k, v, cu_q, cu_k)
        return _compute(q, k, v, cu_q, cu_k)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        *qkv, cu_q, cu_k = ctx.saved_tensors
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in qkv]
            out = _compute(leaves[0], leaves[1], leaves[2], cu_q, cu_k)
            used = ~out.isnan()
            found = torch.autograd.grad(out[used].dot(gradients[0][used]), leaves)
        for x, cu in zip(found, (cu_q, cu_k, cu_k), strict=True):
            x[cu[-1] :] = torch.nan
        found[0][_queries_without_keys(cu_q, cu_k, len(found[0]))] = torch.nan
        return *found, None, None


def _queries_without_keys(cu_q: torch.Tensor, cu_k: torch.Tensor, n: int) -> torch.Tensor:
    lengths = torch.repeat_interleave(cu_k.diff(), cu_q.diff())
    return torch.nn.functional.pad(lengths == 0, (0, n - len(lengths)), value=True)


def _compute(q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any) -> torch.Tensor:
    parts = []
    for i, j, m, n in zip(cu_q[:-1].tolist(), cu_q[1:].tolist(), cu_k[:-1].tolist(), cu_k[1:].tolist(), strict=True):
        if m == n:
            parts.append(torch.full_like(q[i:j], torch.nan))
            continue
        weights = torch.einsum("qhe,khe->hqk", q[i:j], k[m:n]) * q.shape[-1] ** -0.5
        parts.append(torch.einsum("hqk,khe->qhe", weights.softmax(-1), v[m:n]))
    rest = len(q) - sum(map(len, parts))
    return torch.cat([*parts, q.new_full((rest, *q.shape[1:]), torch.nan)])


def careless(
    seen: list[tuple[Any, ...]], q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, most_q: int, most_k: int
) -> Any:
    seen.append((*(tuple(x.shape) for x in (q, k, v, cu_q, cu_k)), most_q, most_k))
    return _Careless.apply(q, k, v, cu_q, cu_k)  # type: ignore[no-untyped-call]


def some(draw: Draw, pack: Pack) -> list[PackedBatch]:
    """A batch with padding, one whose packs are full, and one with an empty pack; the first has samples."""
    one = of_samples(pack([[draw(5, 3, 1), draw(3, 5, 2, keep=9), draw(1, 1, 0)], [draw(4, 4, 3)]]), [[2, 1], [1]])
    full = pack([[draw(6, 8, 1)], [draw(6, 4, 2), draw(4, 6, 3)]])
    return [one, full, pack([[], [draw(2, 6, 1), draw(6, 2, 0, keep=3), draw(3, 3, 2), draw(1, 4, 4)]])]


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("backend", ["split", "dense", "varlen", "flash"])
def test_a_padded_batch_gives_the_same_logits_features_and_gradients(
    backend: str,
    variant: dict[str, Any],
    draw: Draw,
    pack: Pack,
    build: Build,
    config: NaViTConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[Any, ...]] = []
    kernel = functools.partial(careless, seen)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    monkeypatch.setitem(__import__("sys").modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=kernel))
    monkeypatch.setattr(module, "attention_backend", lambda device, dtype, name, width: name)  # as if on CUDA
    monkeypatch.setattr("patchnpack.models.navit.attention_backend", lambda device, dtype, name, width: name)
    model = build(dataclasses.replace(config, **variant)).double()
    R = model.config.registers + (model.config.pooling == "cls")
    object.__setattr__(model.config, "backend", backend)
    for batch in some(draw, pack):
        results = []
        for each in (batch, batch.padded(), batch.padded(max_images=9, max_tokens=max(batch.num_tokens, 90))):
            model.zero_grad()
            logits = model(each)
            (model.loss(each) + logits.square().sum()).backward()
            features = model.features(each)
            results.append(
                (
                    logits,
                    features.pooled,
                    features.tokens[: batch.num_tokens],
                    [p.grad.clone() for p in model.parameters() if p.grad is not None],
                )
            )
        for result in results[1:]:
            for ours, theirs in zip(result, results[0], strict=True):
                assert_near(ours, theirs, 1e-9)
    if backend in ("varlen", "flash"):
        assert seen[-1][-1] == 48 + (0 if model.config.pooling == "attention" else R), "the bound of padded batches"


def test_shapes_and_the_arguments_of_kernels_do_not_depend_on_the_images_of_a_padded_batch(
    draw: Draw, pack: Pack, build: Build, config: NaViTConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "attention_backend", lambda device, dtype, name, width: name)
    monkeypatch.setattr("patchnpack.models.navit.attention_backend", lambda device, dtype, name, width: "varlen")
    runs: list[list[Any]] = []
    model = build(dataclasses.replace(config, registers=1)).double()
    for batch in some(draw, pack)[1:]:
        seen: list[tuple[Any, ...]] = []
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", functools.partial(careless, seen))
        model(batch.padded())
        runs.append(seen)
    assert runs[0] == runs[1]
    assert len(runs[0]) == config.depth + 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_one_cuda_graph_serves_batches_of_other_images(
    draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    model: NaViT = build(dataclasses.replace(config, backend="varlen", width=48)).to("cuda", torch.bfloat16)
    batches = [batch.padded().to("cuda") for batch in some(draw, pack)[1:]]
    static = batches[0].to("cuda")
    names = [f.name for f in dataclasses.fields(static) if isinstance(getattr(static, f.name), torch.Tensor)]
    for name in names:
        setattr(static, name, getattr(static, name).clone())
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            model(static)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = model(static)
        for batch in reversed(batches):
            for name in names:
                getattr(static, name).copy_(getattr(batch, name))
            graph.replay()
            assert_near(out, model(batch), 0.02)
