"""What "auto" stands for, and the prices of "priced", as rows arrive."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from patchnpack.packer import Packing, Planner, Rows, plan
from patchnpack.packer.binpacking.pack_lengths import SAMPLE
from patchnpack.packer.binpacking.pricing.prices import Prices
from patchnpack.packer.planning.decision import decide
from patchnpack.packer.planning.measure import measure
from tests.packer.planning.plans import assert_same_plan, joined, random_rows, take


def test_auto_is_decided_once_by_the_first_rows_however_they_are_split() -> None:
    first, later = random_rows(SAMPLE, 16, 100), random_rows(2000, 100, 110)
    rows = Rows.of_sizes(np.concatenate([first.width, later.width]), np.concatenate([first.height, later.height]))
    packing = Packing(seq_len=64)
    planner = Planner(packing)
    whole = joined([planner.add(rows), planner.finish()])
    assert whole.algorithm == plan(first, packing).algorithm != "auto"
    planner = Planner(packing)
    early = planner.add(take(rows, slice(0, SAMPLE - 1)))
    assert (len(early), early.algorithm) == (0, "auto")
    parts = [early, planner.add(take(rows, slice(SAMPLE - 1, SAMPLE))), planner.add(take(rows, slice(SAMPLE, None)))]
    assert len(parts[1]) > 500
    assert_same_plan(joined([*parts, planner.finish()]), whole)


def test_prices_that_are_given_are_used_and_others_come_from_the_rows() -> None:
    rows = Rows.concatenate([random_rows(SAMPLE, 16, 100), random_rows(9000, 60, 110)])
    rows = Rows.of_sizes(rows.width, rows.height)
    packing = Packing(seq_len=64, algorithm="priced")
    tokens = measure(rows, packing, seed=0, epoch=0)[0].keep
    prices, of_first = (Prices.of_counts(np.bincount(tokens[:count]), 64) for count in (len(rows), SAMPLE))
    assert prices != of_first
    assert_same_plan(plan(rows, packing), plan(rows, packing.replace(prices=(prices,))))
    planner = Planner(packing)
    assert_same_plan(joined([planner.add(rows), planner.finish()]), plan(rows, packing.replace(prices=(of_first,))))
    other = packing.replace(prices=(Prices((1, 40), (1, 1024)),))
    assert plan(rows, packing).images.row.tolist() != plan(rows, other).images.row.tolist()


@pytest.mark.parametrize("algorithm", ["auto", "priced"])
def test_a_planner_may_decide_again_from_more_rows(algorithm: Any) -> None:
    small, large = random_rows(900, 16, 60), random_rows(2100, 60, 128)
    rows = Rows.of_sizes(np.concatenate([small.width, large.width]), np.concatenate([small.height, large.height]))
    planner = Planner(Packing(seq_len=64, algorithm=algorithm), decide_at=[300, 1000])
    parts = [planner.add(take(rows, slice(low, low + 100))) for low in range(0, 3000, 100)]
    assert [len(part) > 0 for part in parts[:4]] == [False, False, True, True]
    whole = joined([*parts, planner.finish()])
    assert sorted(whole.images.row.tolist()) == rows.row.tolist()
    again = Planner(Packing(seq_len=64, algorithm=algorithm), decide_at=[300, 1000])
    assert_same_plan(joined([again.add(rows), again.finish()]), whole)
    once = Planner(Packing(seq_len=64, algorithm=algorithm), decide_at=[300])
    assert joined([once.add(rows), once.finish()]).images.row.tolist() != whole.images.row.tolist()


def test_rows_that_are_all_skipped_decide_nothing() -> None:
    packing = Packing(seq_len=16, oversize="skip", algorithm="priced")
    rows = Rows.of_sizes([160] * 20 + [48, 32] * 40, [160] * 20 + [48, 16] * 40)
    planner = Planner(packing, decide_at=[20])
    assert len(planner.add(rows)) == 0
    made = planner.finish()
    prices = Prices.of_counts(np.bincount([9, 2] * 40), 16)
    expected = plan(rows, packing.replace(prices=(prices,)))
    assert [made.pack(i).row.tolist() for i in range(len(made))] == [
        expected.pack(i).row.tolist() for i in range(len(expected))
    ]


def test_auto_sees_all_images_only_if_these_are_all_and_patterns_can_be_followed() -> None:
    tokens = np.repeat([30, 60], 50)
    counts = np.bincount(tokens)
    for fill, complete, lookahead, expected in (
        ("none", True, 100, "priced"),
        ("none", False, 100, "subset_sum"),
        ("none", True, 99, "subset_sum"),
        ("trim", True, 100, "subset_sum"),
    ):
        packing = Packing(seq_len=90, lookahead=lookahead, fill=fill)  # type: ignore[arg-type]
        decided = decide(packing, [tokens], [counts], complete=complete)
        assert decided.algorithm == expected, (fill, complete, lookahead)
        assert (decided.prices is not None) == (expected == "priced")
