"""Plans: their parts, and what they cost."""

from __future__ import annotations

import numpy as np

from patchnpack.packer import (
    Packing,
    Plan,
    Rows,
    plan,
)
from tests.packer.planning.plans import samples_of


def test_plans_cut_in_pieces_and_concatenated_are_the_plan() -> None:
    rows = Rows.of_sizes(np.arange(16, 216, 2), np.arange(220, 20, -2))
    made = plan(rows, Packing(seq_len=50, patch_size=16, oversize="skip"))
    assert len(made.skipped)
    pieces = [made.take(0, 1), made.take(1, 1), made.take(1, 7), made.take(7, len(made))]
    assert [len(piece) for piece in pieces] == [1, 0, 6, len(made) - 7]
    assert all(len(piece.skipped) == len(piece.oversize) == 0 for piece in pieces)
    again = Plan.concatenate(pieces)
    assert again.algorithm == made.algorithm
    for name in ("offsets", "patch_size"):
        assert getattr(again, name).tolist() == getattr(made, name).tolist()
    for name in ("row", "key", "box", "size", "grid", "keep"):
        assert getattr(again.images, name).tolist() == getattr(made.images, name).tolist()
    twice = Plan.concatenate([made, made])
    assert twice.skipped.tolist() == made.skipped.tolist() * 2
    assert [twice.pack(len(made) + i).row.tolist() for i in (0, 3)] == [made.pack(i).row.tolist() for i in (0, 3)]


def test_attention_cost_is_that_of_the_scope() -> None:
    rows = samples_of([[(64, 64), (32, 32)], [(16, 16)]])  # 16 + 4 tokens, and 1
    made = plan(rows, Packing())
    assert (made.scope, made.attention_cost().tolist()) == ("image", [16**2 + 4**2 + 1])
    made = plan(rows, Packing(scope="sample"))
    assert (made.scope, made.attention_cost().tolist()) == ("sample", [20**2 + 1])
    assert made.take(0, 1).attention_cost().tolist() == [20**2 + 1]
    assert Plan.concatenate([made, made]).attention_cost().tolist() == [20**2 + 1] * 2
    assert made.model_cost(100)[0] == 21 + 401 / 600
