"""Rows to plan, and plans to compare."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

from patchnpack.packer import Images, Plan, Rows
from patchnpack.packer.policies.random import Purpose, counter_hash


def rows_of(sizes: list[tuple[int, int]], start: int = 0) -> Rows:
    row = np.arange(start, start + len(sizes))
    width, height = np.array(sizes, np.int32).reshape(-1, 2).T
    # As in a real index, row_id is not a function of the row's number.
    return Rows(
        row=row, row_id=counter_hash(Purpose.TRANSFORM, 9, 9, row.astype(np.uint64)), width=width, height=height
    )


def random_rows(n: int, low: int = 48, high: int = 700, seed: int = 0) -> Rows:
    return rows_of(np.random.default_rng(seed).integers(low, high, (n, 2)).tolist())


def take(rows: Rows, which: Any) -> Rows:
    return rows.take(which)


def joined(parts: list[Plan]) -> Plan:
    sizes = np.concatenate([np.diff(part.offsets) for part in parts])
    return Plan(
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        patch_size=np.concatenate([part.patch_size for part in parts]),
        images=Images.concatenate([part.images for part in parts]),
        skipped=np.concatenate([part.skipped for part in parts]),
        oversize=np.concatenate([part.oversize for part in parts]),
        undersize=np.concatenate([part.undersize for part in parts]),
        algorithm=parts[-1].algorithm,
    )


def assert_same_plan(one: Plan, other: Plan) -> None:
    for name in ("offsets", "patch_size", "skipped", "oversize", "undersize"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for f in fields(Images):
        np.testing.assert_array_equal(getattr(one.images, f.name), getattr(other.images, f.name))
