from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch

from patchnpack.packer import PackedBatch
from tests.packer.batch.batches import (
    example_batch,
)

TENSORS = ("patches", "segment_ids", "coords", "grids", "image_sizes", "image_mask", "labels", "rows", "cu_seqlens",
           "token_index", "samples", "frames", "boxes", "sizes", "flipped")  # fmt: skip


def _assert_same(one: PackedBatch, other: PackedBatch) -> None:
    for field in dataclasses.fields(PackedBatch):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert type(a) is type(b)
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype
            assert torch.equal(a.cpu(), b.cpu())
        else:
            assert a == b


def test_to_cpu_gives_the_same_batch() -> None:
    batch = example_batch(step=3, extras={"txt": [["a", "b"], [], ["c"]]})
    _assert_same(batch.to("cpu", non_blocking=True), batch)


def test_every_tensor_moves_and_counts_need_no_data() -> None:
    # Tensors on the meta device hold no data: code that would synchronise on a GPU fails.
    moved = example_batch(extras={"txt": [["a", "b"], [], ["c"]]}).to("meta")
    for name in TENSORS:
        assert getattr(moved, name).is_meta
    assert (moved.num_images, moved.num_tokens, moved.max_seqlen, moved.lengths) == (3, 6, 3, [2, 3, 1])
    assert moved.padding_fraction == 0.75
    assert moved.attention_mask().shape == (3, 8, 8)
    assert moved.normalized_patches((0.5, 0.4, 0.3), 0.2, torch.bfloat16).shape == (3, 8, 12)
    assert moved.keys == [["image0", "image1"], [], ["image2"]]
    assert moved.extras == {"txt": [["a", "b"], [], ["c"]]}


def test_to_dict_holds_every_field_without_a_copy() -> None:
    batch = example_batch()
    held = batch.to_dict()
    assert list(held) == [field.name for field in dataclasses.fields(PackedBatch)]
    assert all(held[name] is getattr(batch, name) for name in held)
    assert {name for name, value in held.items() if isinstance(value, torch.Tensor)} == set(TENSORS)


def test_a_batch_pickles_to_an_equal_one() -> None:
    batch = example_batch(step=3, epoch=1, position=12)
    _assert_same(pickle.loads(pickle.dumps(batch)), batch)  # noqa: S301 - our own bytes


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs CUDA, which is not available here")
def test_pinned_and_moved_to_a_gpu_a_batch_stays_the_same() -> None:
    batch = example_batch(step=3)
    pinned = batch.pin_memory()
    assert all(getattr(pinned, name).is_pinned() for name in TENSORS)
    moved = pinned.to("cuda", non_blocking=True)
    torch.cuda.synchronize()
    assert all(getattr(moved, name).is_cuda for name in TENSORS)
    for other in (pinned, moved, moved.to("cpu")):
        _assert_same(other, batch)
    for here, there in zip(batch.images(), moved.images(), strict=True):
        np.testing.assert_array_equal(here.pixels(), there.pixels())
