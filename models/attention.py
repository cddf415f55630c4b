"""Attention within units, images or samples: one function with several backends, on a flat stream of tokens."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

# T valid tokens of all units, end to end; N units; Q queries (T or N); H heads; E width of a head
# in a run of n consecutive units of equal length: R queries and S tokens per unit

BACKENDS = ("auto", "split", "varlen", "flash", "flex", "dense")
_HALF = (torch.float16, torch.bfloat16)
_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
_LOG = logging.getLogger(__name__)
_has = functools.cache(importlib.util.find_spec)


@functools.cache
def _log_once(chosen: str, device: str, dtype: torch.dtype) -> None:
    _LOG.info("attention backend %r for %s, %s", chosen, device, dtype)


def attention_backend(
    device: torch.device | str, dtype: torch.dtype | None = None, backend: str = "auto", head_width: int = 64
) -> str:
    """The backend that `attention` uses for tensors of `dtype` on `device`, with `head_width` features per head.

    On CUDA in half precision, `auto` chooses `flash` if it is installed, then `varlen`, if they take the head width;
    otherwise `dense` on CUDA and `split` elsewhere. The choice is logged once. `dtype` None means the dtype of
    training: bfloat16 on CUDA, else float32.

    Raises:
        ValueError: the backend is unknown or cannot run on this device, dtype and head width.

    >>> attention_backend("cpu")
    'split'
    """
    if backend not in BACKENDS:
        raise ValueError(f"attention backend {backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
    cuda = torch.device(device).type == "cuda"
    dtype = dtype or (torch.bfloat16 if cuda else torch.float32)
    modules = {"flash": "flash_attn", "varlen": "torch.nn.attention.varlen"}
    widths = {"flash": range(257), "varlen": range(0, 257, 8)}  # flash-attn pads the features of a head itself
    usable = [x for x in modules if cuda and dtype in _HALF and head_width in widths[x] and _has(modules[x])]
    if backend in modules and backend not in usable:
        raise ValueError(
            f"attention backend {backend!r} needs CUDA, float16 or bfloat16, {modules[backend]} and up to 256 features "
            f"per head, a multiple of {widths[backend].step}; this is {device}, {dtype}, torch {torch.__version__}, "
            f"{head_width} features. Use backend='auto', or change width or heads"
        )
    if backend != "auto":
        return backend
    chosen = usable[0] if usable else "dense" if cuda else "split"
    if not torch.compiler.is_compiling():
        _log_once(chosen, torch.device(device).type, dtype)
    return chosen


def unit_of_tokens(cu_seqlens: torch.Tensor, T: int) -> torch.Tensor:
    """Number of the unit of each of T tokens, int64; N for tokens after the last unit."""
    places = torch.arange(T, dtype=cu_seqlens.dtype, device=cu_seqlens.device)
    return torch.searchsorted(cu_seqlens[1:], places, right=True)


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    cu_seqlens: torch.Tensor,
    lengths: Sequence[int],
    one_query: bool = False,
    backend: str = "auto",
    bound: int = 0,
) -> torch.Tensor:
    """Softmax attention of each unit's queries over the tokens of the same unit only.

    Args:
        q: (T, H, E), one query per token, or with `one_query` (N, H, E), one per unit.
        k, v: (T, H, E).
        cu_seqlens: int32 (N + 1,), start of each unit in the stream, on the device of `q`.
        lengths: tokens of each unit as N host ints, so that nothing here waits for a device.
        one_query: whether each unit has a single query (attention pooling).
        backend: "auto", "split" (unit by unit), "varlen" (torch's variable-length kernel), "flash" (the kernel of the
            flash-attn package), "flex" (torch's flex_attention with a block mask; no gradient on a CPU) or "dense" (a
            mask over all tokens, quadratic in T).
        bound: a bound of `lengths`, for streams that end with padding, so that no argument of a kernel varies; else 0.

    Returns:
        A tensor of the shape and dtype of `q`.

    `split` computes consecutive units of equal length as one batch, so a stream sorted by length is faster.

    >>> q = k = v = torch.ones(5, 1, 8)
    >>> attention(q, k, v, cu_seqlens=torch.tensor([0, 2, 5], dtype=torch.int32), lengths=[2, 3]).shape
    torch.Size([5, 1, 8])
    """
    if not lengths:
        return q + 0 * (k + v).sum(0)  # keeps every input in the graph of the loss
    chosen = attention_backend(q.device, q.dtype, backend, q.shape[-1])
    if chosen == "split":
        return _split(q, k, v, lengths, one_query)
    if chosen in ("varlen", "flash"):
        return _varlen(q, k, v, cu_seqlens, bound or max(lengths), one_query, chosen == "flash", bound > 0)
    unit_1T = unit_of_tokens(cu_seqlens, len(k))[None]
    unit_1Q = torch.arange(len(q), device=q.device)[None] if one_query else unit_1T
    return (_flex if chosen == "flex" else masked_attention)(q, k, v, unit_1Q, unit_1T)


def masked_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, unit_BQ: torch.Tensor, unit_BL: torch.Tensor
) -> torch.Tensor:
    """Attention of queries to the tokens with their number, in each of B packs: q (B*Q, H, E), k and v (B*L, H, E)."""
    mask_BQL = unit_BQ[:, :, None] == unit_BL[:, None]
    if unit_BQ is not unit_BL:  # a softmax over no token is NaN, and so is its gradient
        mask_BQL = mask_BQL | ~mask_BQL.any(-1, keepdim=True)
    q_BHQE, k_BHLE, v_BHLE = (x.unflatten(0, (unit_BL.shape[0], -1)).transpose(1, 2) for x in (q, k, v))
    out_BHQE = F.scaled_dot_product_attention(q_BHQE, k_BHLE, v_BHLE, attn_mask=mask_BQL[:, None])
    return out_BHQE.transpose(1, 2).flatten(0, 1)


def _split(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: Sequence[int], one_query: bool) -> torch.Tensor:
    runs = [(length, len(list(run))) for length, run in itertools.groupby(lengths)]
    tokens = [n * length for length, n in runs]
    queries = [n for _, n in runs] if one_query else tokens
    parts, splits = [], [x[: sum(sizes)].split(sizes) for x, sizes in ((q, queries), (k, tokens), (v, tokens))]
    for (_, n), *qkv in zip(runs, *splits, strict=True):
        q_nHRE, k_nHSE, v_nHSE = (x.unflatten(0, (n, -1)).transpose(1, 2) for x in qkv)
        parts.append(_softmax_attention(q_nHRE, k_nHSE, v_nHSE).transpose(1, 2).flatten(0, 1))
    return torch.cat([*parts, 0 * q[sum(queries) :]])


def _softmax_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    if not (_AVX512 and q.dtype == torch.bfloat16 and q.device.type == "cpu"):
        return F.scaled_dot_product_attention(q, k, v)
    # torch's fused kernel takes 1.3 to 3 times as long in bfloat16 (AVX-512 BF16 CPU, 1,024 to 64 tokens).
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
    return torch.matmul(scores.softmax(-1), v)


def _varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    longest: int,
    one_query: bool,
    flash: bool,
    padded: bool,
) -> torch.Tensor:
    cu_q, longest_q = cu_seqlens, longest
    if one_query:
        cu_q, longest_q = torch.arange(len(q) + 1, dtype=torch.int32, device=q.device), 1
    if flash:  # imported here, since either may be missing
        from flash_attn import flash_attn_varlen_func as kernel
    else:
        from torch.nn.attention.varlen import varlen_attn as kernel
    if padded:  # of which kernels leave outputs and gradients as they find them
        after = (torch.arange(len(k), device=k.device) >= cu_seqlens[-1])[:, None, None]
        absent = (cu_seqlens.diff() == 0)[:, None, None] if one_query else after
        q, k, v = q.masked_fill(absent, 0), k.masked_fill(after, 0), v.masked_fill(after, 0)
    out: torch.Tensor = kernel(q, k, v, cu_q, cu_seqlens, longest_q, longest)
    return out.masked_fill(absent, 0) if padded else out


def _flex(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, unit_1Q: torch.Tensor, unit_1T: torch.Tensor
) -> torch.Tensor:
    from torch.nn.attention.flex_attention import create_block_mask

    if q.device.type == "cpu":
        if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
            raise ValueError("attention backend 'flex' has no gradient on a CPU; use backend='auto' or torch.no_grad()")
        q, k, v = (x.detach() for x in (q, k, v))  # flex_attention checks requires_grad even under no_grad

    unit_Q, unit_T = unit_1Q[0], unit_1T[0]

    def same_unit(b: torch.Tensor, h: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return unit_Q[query] == unit_T[key]

    mask = create_block_mask(same_unit, None, None, len(q), len(k), device=q.device)
    q_1HQE, k_1HTE, v_1HTE = (x.transpose(0, 1)[None] for x in (q, k, v))
    out: torch.Tensor = _compiled_flex(q.device.type)(q_1HQE, k_1HTE, v_1HTE, block_mask=mask)
    return out[0].transpose(0, 1)


@functools.cache
def _compiled_flex(device: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention
