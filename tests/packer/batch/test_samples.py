"""Samples of several images in a batch: counts, the batch by samples, and walking them back out."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchnpack.packer import PackedBatch
from tests.images import join_patches
from tests.packer.batch.batches import Drawn, P, Packs, draw_image, example_batch, make_batch, pack_lists

Grouped = tuple[Packs, list[list[list[Drawn]]]]  # packs, and in each the samples, each a list of images


@st.composite
def grouped_packs(draw: st.DrawFn) -> Grouped:
    packs = draw(pack_lists())
    samples: list[list[list[Drawn]]] = []
    for pack in packs:
        groups: list[list[Drawn]] = []
        for image in pack:
            if isinstance(image, int):
                continue
            joined: bool = draw(st.booleans())
            if groups and joined:
                image.label = groups[-1][0].label
                groups[-1].append(image)
            else:
                groups.append([image])
        samples.append(groups)
    return packs, samples


def grouped_batch(grouped: Grouped, **fields: Any) -> PackedBatch:
    packs, groups = grouped
    samples, frames = torch.zeros(2, len(packs), 5, dtype=torch.int32).unbind()
    for b, pack in enumerate(groups):
        column = 0
        for s, group in enumerate(pack, 1):
            for f in range(len(group)):
                samples[b, column], frames[b, column] = s, 2 * f
                column += 1
    return make_batch(packs, L=40, K=5, samples=samples, frames=frames, **fields)


EXAMPLE: Grouped = (
    packs := [[draw_image(0, 2, 2, label=3), draw_image(1, 1, 2, label=3), draw_image(2, 3, 1, [0, 2])], []],
    [[[packs[0][0], packs[0][1]], [packs[0][2]]], []],
)


def test_a_small_batch_by_samples_is_a_batch_of_tall_images() -> None:
    batch = grouped_batch(EXAMPLE, extras={"txt": [["a", "b", "c"], []]})
    assert (batch.num_images, batch.num_samples) == (3, 2)
    assert (batch.sample_sizes, batch.sample_starts.tolist()) == ([[2, 1], []], [0, 2, 3])  # type: ignore[union-attr]
    assert batch.sample_numbers().tolist() == [0, 0, 1]
    units = batch.by_sample()
    assert units.segment_ids[0, :9].tolist() == [1] * 6 + [2] * 2 + [0]
    assert units.coords[0, :8].tolist() == [[0, 0], [1, 0], [0, 1], [1, 1], [0, 2], [0, 3], [0, 0], [2, 0]]
    assert units.grids[0].tolist() == [[2, 4], [3, 1], [0, 0], [0, 0], [0, 0]]
    assert units.image_mask.tolist() == [[True, True, False, False, False], [False] * 5]
    assert units.labels.tolist() == [[3, 2, -100, -100, -100], [-100] * 5]
    assert units.rows.tolist() == [[100, 102, -1, -1, -1], [-1] * 5]
    assert (units.keys, units.extras) == ([["image0", "image2"], []], {"txt": [["a", "c"], []]})
    assert (units.cu_seqlens.tolist(), units.lengths, units.max_seqlen) == ([0, 6, 8], [6, 2], 6)
    assert (units.num_images, units.num_samples, units.num_tokens) == (2, 2, 8)
    assert units.by_sample() is units
    assert "samples: 2, 1 to 2 images each" in repr(batch)


@given(grouped_packs())
@settings(max_examples=80, deadline=None)
def test_by_sample_equals_the_batch_made_of_tall_images(grouped: Grouped) -> None:
    batch, groups = grouped_batch(grouped), grouped[1]
    tall, again = batch.by_sample(), batch.by_sample()
    again.__post_init__()  # counts everything from the fields
    assert (tall.lengths, tall.sample_sizes) == (again.lengths, None)
    assert torch.equal(tall.cu_seqlens, again.cu_seqlens)
    assert torch.equal(tall.token_index, batch.token_index)
    for field in dataclasses.fields(PackedBatch):
        value = getattr(batch, field.name)
        if isinstance(value, torch.Tensor) and field.name != "sample_starts":
            assert getattr(tall, field.name).dtype == value.dtype, field.name
    each = [group for pack in groups for group in pack]
    assert (batch.num_samples, tall.num_images) == (len(each), len(each))
    for found, group in zip(tall.images(), each, strict=True):
        assert (found.key, found.label) == (group[0].key, group[0].label)
        assert found.grid == (max(image.grid[0] for image in group), sum(image.grid[1] for image in group))
        above, pixels = 0, np.zeros((found.grid[1] * P, found.grid[0] * P, 3), np.uint8)
        for image in group:
            coords = np.array([divmod(token, image.grid[0])[::-1] for token in image.kept])
            part = join_patches(image.patches, coords, image.grid, P)
            pixels[above : above + len(part), : part.shape[1]] = part
            above += len(part)
        np.testing.assert_array_equal(found.pixels(), pixels)


@given(grouped_packs())
@settings(max_examples=40, deadline=None)
def test_samples_are_walked_back_out_with_their_images_and_frames(grouped: Grouped) -> None:
    batch = grouped_batch(grouped)
    groups = [group for pack in grouped[1] for group in pack]
    found = list(batch.images_by_sample())
    assert [[image.key for image in sample.images] for sample in found] == [[i.key for i in group] for group in groups]
    for number, (sample, group) in enumerate(zip(found, groups, strict=True)):
        assert (sample.key, sample.label) == (group[0].key, group[0].label)
        assert [image.sample for image in sample.images] == [number] * len(group)
        assert [image.frame for image in sample.images] == list(range(0, 2 * len(group), 2))
    assert batch.sample_numbers().tolist() == [image.sample for image in batch.images()]


@given(grouped_packs())
@settings(max_examples=20, deadline=None)
def test_attention_by_samples_equals_a_plain_loop(grouped: Grouped) -> None:
    batch = grouped_batch(grouped)
    of_column = [[0, *pack] for pack in batch.samples.tolist()]
    sample = [[of_column[b][segment] for segment in pack] for b, pack in enumerate(batch.segment_ids.tolist())]
    want = [[[q == k and q > 0 for k in pack] for q in pack] for pack in sample]
    assert batch.by_sample().attention_mask().tolist() == want


def test_single_images_are_their_own_samples_and_the_batch_is_itself() -> None:
    batch = example_batch()
    assert batch.by_sample() is batch
    assert (batch.sample_sizes, batch.sample_starts, batch.num_samples) == (None, None, 3)
    assert [len(sample.images) for sample in batch.images_by_sample()] == [1, 1, 1]
    assert "samples" not in repr(batch)
    given_samples = make_batch([[draw_image(0, 1, 1)]], L=2, K=2, samples=torch.tensor([[1, 0]], dtype=torch.int32))
    assert given_samples.by_sample() is given_samples


def test_soft_labels_of_samples_are_those_of_their_images() -> None:
    labels = torch.full((2, 5, 4), torch.nan)
    labels[0, :3] = torch.eye(4)[[1, 1, 2]]
    found = grouped_batch(EXAMPLE, labels=labels).by_sample().labels
    assert torch.equal(found[0, :2], torch.eye(4)[1:3])
    assert found[0, 2:].isnan().all()
    assert found[1].isnan().all()


def test_moved_and_rebuilt_batches_keep_their_samples() -> None:
    batch = grouped_batch(EXAMPLE)
    meta = batch.to("meta").by_sample()  # reads no value of a tensor
    units = batch.by_sample()
    assert (meta.lengths, meta.keys, meta.sample_sizes) == (units.lengths, units.keys, None)
    assert meta.segment_ids.shape == units.segment_ids.shape
    again = PackedBatch.from_dict(batch.to_dict()).by_sample()
    assert torch.equal(again.segment_ids, units.segment_ids)
    made = {name: value for name, value in batch.to_dict().items() if not name.startswith("sample_")}
    assert torch.equal(PackedBatch.from_dict(made).by_sample().cu_seqlens, units.cu_seqlens)


@pytest.mark.parametrize("numbers", [[2, 2, 3], [1, 3, 3], [1, 2, 1], [1, 1, 0]])
def test_samples_out_of_order_are_refused(numbers: list[int]) -> None:
    packs: Packs = [[draw_image(i, 1, 1) for i in range(3)]]
    with pytest.raises(AssertionError, match=r"numbered 1, 2, 3 \.\.\., in order|in the same columns"):
        make_batch(packs, L=3, K=3, samples=torch.tensor([numbers], dtype=torch.int32))
