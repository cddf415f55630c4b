"""Pooling: one vector per image, or sample, from a stream of tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from patchnpack.models.stream import Stream

# T tokens of a stream; N units (images or samples); D width; H heads; E width of a head

POOLINGS = ("attention", "mean", "max", "cls")
GELUS = {"erf": "none", "tanh": "tanh"}  # to the `approximate` argument of `F.gelu`


class AttentionPooling(nn.Module):
    """Multi-head attention pooling (MAP), (T, D) -> (N, D).

    See arXiv 1810.00825, and the MAP head of arXiv 2106.04560.

    A learned query attends to the tokens of each unit; a residual MLP follows. The query is the same for every unit,
    so it needs no projection: `query` (H, E) is already projected.

    >>> pool = AttentionPooling(width=8, heads=2, hidden=16)
    >>> pool(torch.ones(6, 8), Stream.dense(torch.tensor([[1, 1, 2], [1, 1, 1]]), 2)).shape
    torch.Size([4, 8])
    """

    def __init__(
        self, *, width: int, heads: int, hidden: int, bias: bool = False, eps: float = 1e-5, gelu: str = "erf"
    ) -> None:
        super().__init__()
        self.gelu = GELUS[gelu]
        self.query = nn.Parameter(torch.randn(heads, width // heads))
        self.kv = nn.Linear(width, 2 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        self.norm = nn.LayerNorm(width, eps, bias=bias)
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: torch.Tensor, stream: Stream) -> torch.Tensor:
        k_THE, v_THE = self.kv(x).unflatten(-1, (2, *self.query.shape)).unbind(1)
        q_NHE = self.query.to(k_THE.dtype).repeat(stream.columns.shape[0], 1, 1)
        pooled: torch.Tensor = self.out(stream.attend(q_NHE, k_THE, v_THE, one_query=True).flatten(1))
        hidden = F.gelu(self.up(self.norm(pooled)), approximate=self.gelu)
        return pooled + self.down(hidden)


def mean_pool(x: torch.Tensor, stream: Stream) -> torch.Tensor:
    """Mean of each unit's tokens, (T, D) -> (N, D), summed in at least float32; 0 without tokens.

    >>> mean_pool(torch.arange(4.0)[:, None], Stream.dense(torch.tensor([[1, 1, 2, 0]]), 2)).tolist()
    [[0.5], [2.0]]
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    N = stream.columns.shape[0]  # and one more row, for padding
    total = wide.new_zeros(N + 1, x.shape[1]).index_add(0, stream.unit, wide)
    count = wide.new_zeros(N + 1).index_add(0, stream.unit, wide.new_ones(x.shape[0]))
    return (total / count.clamp(min=1)[:, None])[:N].to(x.dtype)


def max_pool(x: torch.Tensor, stream: Stream) -> torch.Tensor:
    """Maximum of each unit's tokens, (T, D) -> (N, D); 0 for a unit without tokens.

    >>> max_pool(torch.arange(4.0)[:, None], Stream.dense(torch.tensor([[1, 1, 2, 0]]), 2)).tolist()
    [[1.0], [2.0]]
    """
    index, N = stream.unit[:, None].expand_as(x), stream.columns.shape[0]
    return x.new_zeros(N + 1, x.shape[1]).scatter_reduce(0, index, x, "amax", include_self=False)[:N]
