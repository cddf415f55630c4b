"""Attention pooling: one vector for each image, from a flat stream of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from patchnpack.models.attention import attention

# T valid tokens of all images, end to end; N images; D width; H heads; E width of a head


class AttentionPooling(nn.Module):
    """Multi-head attention pooling, (T, D) -> (N, D) (Lee et al., arXiv 1810.00825; the MAP head of arXiv 2106.04560).

    A learned query attends to the tokens of each image; a residual MLP follows. The query is the same for every image,
    so it needs no projection of its own: `query` (H, E) is the projected one.

    >>> pool = AttentionPooling(width=8, heads=2, hidden=16)
    >>> pool(torch.ones(5, 8), cu_seqlens=torch.tensor([0, 2, 5], dtype=torch.int32), lengths=[2, 3]).shape
    torch.Size([2, 8])
    """

    def __init__(self, *, width: int, heads: int, hidden: int, backend: str = "auto") -> None:
        super().__init__()
        self.backend = backend
        self.query = nn.Parameter(torch.randn(heads, width // heads))
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor, *, cu_seqlens: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        k_THE, v_THE = self.kv(x).unflatten(-1, (2, *self.query.shape)).unbind(1)
        q_NHE = self.query.to(k_THE.dtype).repeat(len(lengths), 1, 1)
        pooled_NHE = attention(
            q_NHE, k_THE, v_THE, cu_seqlens=cu_seqlens, lengths=lengths, one_query=True, backend=self.backend
        )
        pooled: torch.Tensor = self.out(pooled_NHE.flatten(1))
        hidden = F.gelu(self.up(self.norm(pooled)))
        return pooled + self.down(hidden)
