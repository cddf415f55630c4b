from __future__ import annotations

import numpy as np
import pytest

from patchnpack.loaders.prepacking.parts import cut
from patchnpack.packer import Packing, Plan, Planner, Rows, plan


@pytest.mark.parametrize("packs", [1, 2, 5, 1000])
@pytest.mark.parametrize("rows_at_a_time", [3, 40])
def test_parts_hold_the_packs_of_all_plans_in_order_and_equally_many_each(packs: int, rows_at_a_time: int) -> None:
    rng = np.random.default_rng(0)
    rows = Rows.of_sizes(*rng.integers(16, 120, (2, 90)))
    packing = Packing(seq_len=64, patch_size=16, algorithm="next_fit")
    planner = Planner(packing)
    plans = [planner.add(rows.take(slice(low, low + rows_at_a_time))) for low in range(0, 90, rows_at_a_time)]
    parts = list(cut([*plans, planner.finish()], packs))
    whole = plan(rows, packing)
    assert {len(part) for part in parts[:-1]} <= {packs}
    assert 1 <= len(parts[-1]) <= packs
    joined = Plan.concatenate(parts)
    assert joined.offsets.tolist() == whole.offsets.tolist()
    assert joined.images.row.tolist() == whole.images.row.tolist()
    assert joined.attention_cost().tolist() == whole.attention_cost().tolist()


def test_plans_without_packs_make_no_part() -> None:
    planner = Planner(Packing(seq_len=64))
    assert list(cut([planner.finish()], 3)) == []
