"""Position embedding: one learned table for columns and one for rows, added."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

# T valid tokens, G rows of a table, D width


class FactorizedPosEmbed(nn.Module):
    """Learned factorised absolute position embedding, added: x[column] + y[row] (NaViT, arXiv 2307.06304, section 2.1).

    Indexed by coords alone, so neither the order of tokens nor dropping some of them matters, and an aspect ratio never
    seen in training uses rows and columns that were.

    Args:
        max_grid: G, patches a side at most.
        width: D.

    >>> FactorizedPosEmbed(128, 8)(torch.tensor([[0, 0], [1, 0]], dtype=torch.int32)).shape
    torch.Size([2, 8])
    """

    def __init__(self, max_grid: int, width: int) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.empty(max_grid, width))
        self.y = nn.Parameter(torch.empty(max_grid, width))
        for table in (self.x, self.y):
            nn.init.trunc_normal_(table, std=0.2)  # patches embed with about 0.5: positions must be visible beside them

    def check(self, coords: torch.Tensor) -> None:
        """Raises ValueError if a coordinate lies beyond the tables; does nothing for coords on a device.

        Looking at coords on a GPU would make every step wait for it. There a wrong coordinate trips the look-up's own
        assertion, so check a batch before it moves.
        """
        if coords.device.type != "cpu" or coords.numel() == 0:
            return
        if (largest := int(coords.max())) >= len(self.x):
            raise ValueError(
                f"a token lies at coordinate {largest}, but the position table ends at {len(self.x) - 1}; raise "
                f"max_grid to at least {largest + 1}, or make images smaller or patches larger"
            )

    def forward(self, coords: torch.Tensor) -> torch.Tensor:
        """Coords (T, 2) as (x, y), any integer dtype, to (T, D)."""
        self.check(coords)
        return F.embedding(coords[:, 0], self.x) + F.embedding(coords[:, 1], self.y)
