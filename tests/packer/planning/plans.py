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
    return rows.take(np.array(which, np.int64) if isinstance(which, list) else which)


def samples_of(pages: list[list[tuple[int, int]]], start: int = 0, frames: list[list[int]] | None = None) -> Rows:
    """Samples of several rows each, given the rows' sizes, and how many images each row holds (1 by default)."""
    alone = rows_of([size for sizes in pages for size in sizes], start)
    ends = np.concatenate([[0], np.cumsum([len(sizes) for sizes in pages])]).astype(np.int64)
    held = (
        np.ones(len(alone.row), np.int32)
        if frames is None
        else np.array([each for own in frames for each in own], np.int32)
    )
    columns = {name: getattr(alone, name) for name in ("row", "row_id", "width", "height")}
    return Rows(**columns, page=np.zeros(len(held), np.int32), frames=held, offsets=ends)


def random_samples(n: int, most: int = 9, low: int = 20, high: int = 200, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    return samples_of([rng.integers(low, high, (rng.integers(1, most + 1), 2)).tolist() for _ in range(n)])


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
        few=np.concatenate([part.few for part in parts]),
    )


def assert_same_plan(one: Plan, other: Plan) -> None:
    for name in ("offsets", "patch_size", "skipped", "oversize", "undersize", "few"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for f in fields(Images):
        np.testing.assert_array_equal(getattr(one.images, f.name), getattr(other.images, f.name))
