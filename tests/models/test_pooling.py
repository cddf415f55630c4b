from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from patchnpack.models.pooling import AttentionPooling
from patchnpack.models.stream import Stream

LENGTHS = [4, 1, 4, 6]


def flat_stream(lengths: list[int]) -> Stream:
    unit = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    starts = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    columns, slots = torch.arange(len(lengths)), torch.arange(sum(lengths))
    return Stream(
        slots=slots, images=unit, columns=columns, unit=unit, lengths=lengths, cu_seqlens=starts, backend="split"
    )


def test_pooling_equals_torch_multi_head_attention_image_by_image() -> None:
    torch.manual_seed(0)
    width, heads = 8, 2
    pool = AttentionPooling(width=width, heads=heads, hidden=16).double()
    theirs = nn.MultiheadAttention(width, heads, bias=False, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([torch.eye(width), pool.kv.weight]))
        theirs.out_proj.weight.copy_(pool.out.weight)
    x = torch.randn(sum(LENGTHS), width, dtype=torch.float64)
    query = pool.query.flatten()[None]
    pooled = torch.cat([theirs(query, tokens, tokens)[0] for tokens in x.split(LENGTHS)])
    expected = pooled + pool.down(F.gelu(pool.up(pool.norm(pooled))))
    torch.testing.assert_close(pool(x, flat_stream(LENGTHS)), expected, rtol=1e-12, atol=1e-12)
