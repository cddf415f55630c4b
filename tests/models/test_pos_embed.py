from __future__ import annotations

import pytest
import torch

from patchnpack.models.pos_embed import FactorizedPosEmbed


def test_the_embedding_of_a_token_is_its_column_plus_its_row() -> None:
    embed = FactorizedPosEmbed(4, 8)
    coords = torch.tensor([[0, 0], [3, 1], [1, 3]], dtype=torch.int32)
    torch.testing.assert_close(embed(coords), torch.stack([embed.x[x] + embed.y[y] for x, y in coords.tolist()]))


def test_a_coordinate_beyond_the_table_is_refused_with_value_limit_and_remedy() -> None:
    embed = FactorizedPosEmbed(4, 8)
    embed(torch.tensor([[3, 3]]))
    for coords in ([[4, 0]], [[0, 4]]):
        with pytest.raises(ValueError, match=r"coordinate 4.*ends at 3.*max_grid to at least 5"):
            embed(torch.tensor(coords))


def test_coords_that_are_not_on_the_host_are_not_looked_at() -> None:
    FactorizedPosEmbed(4, 8).check(torch.full((2, 2), 9, device="meta"))
    FactorizedPosEmbed(4, 8).check(torch.empty(0, 2, dtype=torch.int32))
