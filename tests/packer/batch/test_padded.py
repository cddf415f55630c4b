from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.packer.batch.batches import example_batch


def test_padding_repeats_the_last_offset_and_slot_0_and_counts_real_images() -> None:
    batch = example_batch()
    N, T = batch.num_images, batch.num_tokens
    padded = batch.padded(max_images=N + 2, max_tokens=T + 3)
    assert padded.cu_seqlens.tolist() == [*batch.cu_seqlens.tolist(), T, T]
    assert padded.token_index.tolist() == [*batch.token_index.tolist(), 0, 0, 0]
    assert (padded.cu_seqlens.dtype, padded.token_index.dtype) == (torch.int32, torch.int64)
    assert (padded.lengths, padded.num_images, padded.num_tokens) == (batch.lengths, N, T)
    assert padded.max_seqlen == min(batch.segment_ids.shape[1], T + 3)
    assert [image.key for image in padded.images()] == [image.key for image in batch.images()]
    assert batch.max_seqlen == max(batch.lengths), "the batch itself is not changed"


def test_by_default_every_batch_of_these_shapes_fits() -> None:
    batch = example_batch()
    (B, L), K = batch.segment_ids.shape, batch.image_mask.shape[1]
    padded = batch.padded()
    assert (len(padded.cu_seqlens), len(padded.token_index), padded.max_seqlen) == (B * K + 1, B * L, L)


def test_the_samples_of_a_padded_batch_are_padded_and_move_with_it() -> None:
    batch = example_batch()
    samples = torch.where(batch.image_mask, torch.ones_like(batch.samples), 0)
    batch = dataclasses.replace(batch, samples=samples)
    assert batch.sample_starts is not None
    padded = batch.padded()
    units = padded.by_sample().to("meta")
    assert units.cu_seqlens.shape == padded.cu_seqlens.shape
    assert padded.by_sample().cu_seqlens.unique().tolist() == batch.by_sample().cu_seqlens.tolist()
    assert units.max_seqlen == batch.segment_ids.shape[1]


def test_selected_images_of_a_padded_batch_are_those_of_the_batch() -> None:
    batch = example_batch()
    mask = batch.image_mask & (torch.arange(batch.image_mask.shape[1]) > 0)
    selected, padded = batch.select(mask), batch.padded().select(mask)
    assert padded.max_seqlen == selected.max_seqlen == max(selected.lengths)
    assert torch.equal(padded.cu_seqlens, selected.cu_seqlens)
    assert torch.equal(padded.token_index, selected.token_index)


def test_a_batch_that_does_not_fit_is_refused_with_the_number_that_does() -> None:
    batch = example_batch()
    N, T = batch.num_images, batch.num_tokens
    with pytest.raises(
        ValueError, match=rf"max_images is {N - 1}, but the batch holds {N}; give at least {N}, or None"
    ):
        batch.padded(max_images=N - 1)
    with pytest.raises(ValueError, match=rf"max_tokens is 1, but the batch holds {T}"):
        batch.padded(max_tokens=1)
    with pytest.raises(ValueError, match=r"max_images is 0; it must be at least 1"):
        batch.padded(max_images=0)
    with pytest.raises(ValueError, match="padded already"):
        batch.padded().padded()
