"""Attention that never crosses images: one function, several backends, on a flat stream of tokens."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F

# T valid tokens of all images, end to end; N images; Q queries (T or N); H heads; E width of a head
# within a run of n neighbouring images of equal length: R queries and S tokens of each

BACKENDS = ("auto", "split", "varlen", "dense")
_HALF = (torch.float16, torch.bfloat16)
_HAS_VARLEN = importlib.util.find_spec("torch.nn.attention.varlen") is not None


def attention_backend(device: torch.device | str, dtype: torch.dtype | None = None, backend: str = "auto") -> str:
    """The backend that `attention` uses for tensors of `dtype` on `device`: "split", "varlen" or "dense".

    `auto` is `varlen` on CUDA in half precision where this torch has the kernel, `dense` on CUDA otherwise, and `split`
    everywhere else. `dtype` None stands for what training uses there: bfloat16 on CUDA, else float32.

    Raises:
        ValueError: an unknown backend, or `varlen` where it cannot run.

    >>> attention_backend("cpu")
    'split'
    """
    if backend not in BACKENDS:
        raise ValueError(f"attention backend {backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
    cuda = torch.device(device).type == "cuda"
    dtype = dtype or (torch.bfloat16 if cuda else torch.float32)
    can_varlen = cuda and dtype in _HALF and _HAS_VARLEN
    if backend == "varlen" and not can_varlen:
        raise ValueError(
            f"attention backend 'varlen' needs CUDA, float16 or bfloat16, and torch.nn.attention.varlen; this is "
            f"{device}, {dtype}, torch {torch.__version__}. Use 'auto'"
        )
    if backend != "auto":
        return backend
    return "varlen" if can_varlen else "dense" if cuda else "split"


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    cu_seqlens: torch.Tensor,
    lengths: Sequence[int],
    one_query: bool = False,
    backend: str = "auto",
) -> torch.Tensor:
    """Softmax attention of each image's queries over the tokens of the same image only.

    Args:
        q: (T, H, E), a query for each token, or with `one_query` (N, H, E), one for each image.
        k, v: (T, H, E).
        cu_seqlens: int32 (N + 1,), where each image starts in the stream, on the device of `q`.
        lengths: the same as N host ints, so that nothing here waits for a device.
        one_query: whether each image has a single query (attention pooling).
        backend: "auto", "split" (image by image), "varlen" (torch's variable-length kernel) or "dense" (a mask over all
            tokens, quadratic in T).

    Returns:
        The shape and dtype of `q`.

    `split` computes neighbours of equal length as one batch, so a stream sorted by length is faster there.

    >>> q = k = v = torch.ones(5, 1, 8)
    >>> attention(q, k, v, cu_seqlens=torch.tensor([0, 2, 5], dtype=torch.int32), lengths=[2, 3]).shape
    torch.Size([5, 1, 8])
    """
    if not lengths:
        return q + k + v  # nothing to attend to, but each input must still reach the loss
    chosen = attention_backend(q.device, q.dtype, backend)
    if chosen == "split":
        return _split(q, k, v, lengths, one_query)
    if chosen == "varlen":
        return _varlen(q, k, v, cu_seqlens, max(lengths), one_query)
    return _dense(q, k, v, cu_seqlens, one_query)


def _split(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: Sequence[int], one_query: bool) -> torch.Tensor:
    runs = [(length, len(list(run))) for length, run in itertools.groupby(lengths)]
    tokens = [n * length for length, n in runs]
    queries = [n for _, n in runs] if one_query else tokens
    parts = []
    for (_, n), *qkv in zip(runs, torch.split(q, queries), torch.split(k, tokens), torch.split(v, tokens), strict=True):
        q_nHRE, k_nHSE, v_nHSE = (x.unflatten(0, (n, -1)).transpose(1, 2) for x in qkv)
        parts.append(_softmax_attention(q_nHRE, k_nHSE, v_nHSE).transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)


def _softmax_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    if q.dtype not in _HALF:
        return F.scaled_dot_product_attention(q, k, v)
    # torch's fused kernel takes 3.5 to 5 times as long in bfloat16 (measured on an AVX-512 BF16 CPU, 64 to 144 tokens)
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
    return torch.matmul(scores.softmax(-1), v)


def _varlen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor, longest: int, one_query: bool
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn  # here, since older versions of torch do not have it

    cu_q, longest_q = cu_seqlens, longest
    if one_query:
        cu_q, longest_q = torch.arange(len(q) + 1, dtype=torch.int32, device=q.device), 1
    out = varlen_attn(q, k, v, cu_q, cu_seqlens, longest_q, longest)
    assert isinstance(out, torch.Tensor)
    return out


def _dense(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor, one_query: bool
) -> torch.Tensor:
    image_T = torch.repeat_interleave(cu_seqlens.diff(), output_size=len(k))
    image_Q = torch.arange(len(q), device=q.device) if one_query else image_T
    q_1HQE, k_1HTE, v_1HTE = (x.transpose(0, 1)[None] for x in (q, k, v))
    out_1HQE = F.scaled_dot_product_attention(q_1HQE, k_1HTE, v_1HTE, attn_mask=image_Q[:, None] == image_T)
    return out_1HQE[0].transpose(0, 1)
