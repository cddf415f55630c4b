"""Rows to plan, and plans to compare."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args

import numpy as np
from hypothesis import strategies as st

from patchnpack.packer import (
    BetaDrop,
    ConstantDrop,
    FitTokens,
    Frames,
    Images,
    Native,
    Packing,
    PatchSizes,
    Plan,
    RandomResizedCrop,
    Rows,
    SampleSide,
    Square,
    Views,
)
from patchnpack.packer.binpacking.algorithms import Algorithm
from patchnpack.packer.policies.random import Purpose, counter_hash

ALGORITHMS = get_args(Algorithm)


VIEWS = Views((2, RandomResizedCrop(scale=(0.25, 1), max_tokens=16)), (3, RandomResizedCrop(max_tokens=4)))


sample_sizes = st.lists(
    st.lists(st.tuples(st.integers(10, 200), st.integers(10, 200)), min_size=1, max_size=5), max_size=25
)


@st.composite
def sample_packings(draw: st.DrawFn) -> Packing:
    views = draw(st.sampled_from([None, None, VIEWS]))
    policies = [Native(), FitTokens(20), Square(32), SampleSide(low=16, high=90), RandomResizedCrop(max_tokens=30)]
    patch_sizes: list[int | PatchSizes] = [16, PatchSizes((16, 32))]
    frames = draw(st.sampled_from([None, Frames(2), Frames(3, "random", "repeat"), Frames(2, "first", "skip")]))
    return Packing(
        seq_len=draw(st.integers(60, 150)),
        resolution=Native() if views else draw(st.sampled_from(policies)),
        frames=Frames(1) if views and frames else frames,
        views=views,
        oversize=draw(st.sampled_from(["drop", "skip"] if views else ["shrink", "drop", "skip"])),
        undersize=draw(st.sampled_from(["pad", "skip"])),
        token_drop=draw(st.sampled_from([ConstantDrop(0), BetaDrop(0.5, 0.9)])),
        algorithm=draw(st.sampled_from(ALGORITHMS)),
        lookahead=draw(st.sampled_from([1, 3, 16, 256])),
        max_images=draw(st.sampled_from([5, 12, 64])),
        fill=draw(st.sampled_from(["none", "undrop"])),
        scope=draw(st.sampled_from(["image", "sample"])),
        patch_size=draw(st.sampled_from(patch_sizes)),
    )


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


def images_equal(one: Images, other: Images) -> bool:
    return all(np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(Images))


def assert_same_plan(one: Plan, other: Plan) -> None:
    for name in ("offsets", "patch_size", "skipped", "oversize", "undersize", "few"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for f in fields(Images):
        np.testing.assert_array_equal(getattr(one.images, f.name), getattr(other.images, f.name))


def clip(frames: int, width: int = 320, height: int = 240) -> Rows:
    return samples_of([[(width, height)]], frames=[[frames]])
