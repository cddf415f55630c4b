from __future__ import annotations

import dataclasses
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch.nn.functional import scaled_dot_product_attention

from patchnpack.packer import PackedBatch
from tests.packer.batch.batches import (
    EXAMPLE,
    C,
    P,
    Packs,
    draw_image,
    drawn_images,
    example_batch,
    make_batch,
    pack_lists,
)

# The contract


def test_fields_match_the_contract() -> None:
    names = [field.name for field in dataclasses.fields(PackedBatch)]
    assert names == [
        "patches",
        "segment_ids",
        "coords",
        "grids",
        "image_sizes",
        "image_mask",
        "labels",
        "rows",
        "keys",
        "extras",
        "patch_size",
        "step",
        "epoch",
        "position",
        "scaled_decode",
        "samples",
        "frames",
        "cu_seqlens",
        "token_index",
        "lengths",
        "sample_sizes",
        "sample_starts",
        "seqlen_bound",
    ]


def test_a_small_batch_matches_the_contract() -> None:
    batch = example_batch(step=3, epoch=1, position=12, extras={"txt": [["a", "b"], [], ["c"]]})
    assert batch.segment_ids.tolist() == [[1, 1, 2, 2, 2, 0, 0, 0], [0] * 8, [1] + [0] * 7]
    assert batch.coords[0].tolist() == [[0, 0], [1, 0], [0, 0], [2, 0], [2, 1], [0, 0], [0, 0], [0, 0]]
    assert batch.grids.tolist() == [[[2, 1], [3, 2], [0, 0]], [[0, 0]] * 3, [[1, 1], [0, 0], [0, 0]]]
    assert batch.image_mask.tolist() == [[True, True, False], [False] * 3, [True, False, False]]
    assert batch.labels.tolist() == [[0, 1, -100], [-100] * 3, [2, -100, -100]]
    assert batch.rows.tolist() == [[100, 101, -1], [-1] * 3, [102, -1, -1]]
    assert batch.keys == [["image0", "image1"], [], ["image2"]]
    assert (batch.step, batch.epoch, batch.position, batch.patch_size) == (3, 1, 12, P)
    assert batch.cu_seqlens.tolist() == [0, 2, 5, 6]
    assert batch.token_index.tolist() == [0, 1, 2, 3, 4, 16]
    assert batch.lengths == [2, 3, 1]
    assert (batch.num_images, batch.num_tokens, batch.max_seqlen) == (3, 6, 3)
    assert batch.padding_fraction == 1 - 6 / 24


@given(pack_lists())
@settings(max_examples=80, deadline=None)
def test_the_flat_order_holds_each_images_tokens_between_its_cumulative_lengths(packs: Packs) -> None:
    batch, images = make_batch(packs, L=40, K=5), drawn_images(packs)
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.token_index.dtype == torch.int64
    assert batch.cu_seqlens.shape == (len(images) + 1,)
    flat = batch.patches.flatten(0, 1)[batch.token_index]
    bounds = batch.cu_seqlens.tolist()
    assert bounds[0] == 0
    assert bounds[-1] == len(flat) == batch.num_tokens
    for i, image in enumerate(images):
        np.testing.assert_array_equal(flat[bounds[i] : bounds[i + 1]].numpy(), image.patches)


@given(pack_lists())
@settings(max_examples=80, deadline=None)
def test_counts_are_host_ints_and_equal_a_plain_loop(packs: Packs) -> None:
    batch = make_batch(packs, L=40, K=5)
    lengths = [len(image.kept) for image in drawn_images(packs)]
    assert batch.lengths == lengths
    assert batch.num_images == len(lengths)
    assert batch.num_tokens == sum(lengths)
    assert batch.max_seqlen == max(lengths, default=0)
    for count in (batch.num_images, batch.num_tokens, batch.max_seqlen, *batch.lengths):
        assert type(count) is int
    assert batch.padding_fraction == pytest.approx(1 - sum(lengths) / (len(packs) * 40))


def test_tokens_without_an_image_are_refused() -> None:
    batch = example_batch()
    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(PackedBatch) if f.init}
    with pytest.raises(AssertionError, match="an image without tokens, or tokens without an image"):
        PackedBatch(**fields | {"image_mask": torch.zeros_like(batch.image_mask)})
    with pytest.raises(AssertionError, match="an image without tokens"):
        PackedBatch(**fields | {"segment_ids": torch.zeros_like(batch.segment_ids)})


# Attention


@given(pack_lists())
@settings(max_examples=20, deadline=None)
def test_attention_mask_equals_a_plain_loop(packs: Packs) -> None:
    batch = make_batch(packs, L=36, K=5)
    mask = batch.attention_mask()
    assert mask.dtype == torch.bool
    assert mask.shape == (len(packs), 36, 36)
    segments = batch.segment_ids.tolist()
    want = [[[q == k and q > 0 for k in pack] for q in pack] for pack in segments]
    assert mask.tolist() == want


def test_sdpa_under_the_mask_equals_each_image_alone_and_has_no_nan_forward_or_backward() -> None:
    torch.manual_seed(0)
    batch = example_batch()
    qkv = torch.randn(3, len(EXAMPLE), 1, 8, 4, requires_grad=True)
    query, key, value = qkv
    out = scaled_dot_product_attention(query, key, value, batch.attention_mask()[:, None])
    flat = out.transpose(1, 2).flatten(0, 1)[batch.token_index]
    for i, slots in enumerate(batch.token_index.split(batch.lengths)):
        alone = qkv.transpose(2, 3).flatten(1, 2)[:, slots].transpose(1, 2)
        want = scaled_dot_product_attention(*alone).transpose(0, 1)
        torch.testing.assert_close(flat[batch.cu_seqlens[i] : batch.cu_seqlens[i + 1]], want)
    padding = (batch.segment_ids == 0)[:, None, :, None].expand_as(out)
    assert (out[padding] == 0).all()
    out.square().sum().backward()
    assert qkv.grad is not None
    assert qkv.grad.isfinite().all()
    assert (qkv.grad[:, padding] == 0).all()
    assert (qkv.grad[:, ~padding] != 0).any()


# Normalisation


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalized_patches_apply_the_mean_and_std_of_each_channel_and_leave_padding_0(dtype: torch.dtype) -> None:
    batch, mean, std = example_batch(), (0.1, 0.4, 0.9), (0.2, 0.5, 0.7)
    found = batch.normalized_patches(mean, std, dtype)
    assert found.dtype == dtype
    assert found.shape == batch.patches.shape
    want = np.zeros(batch.patches.shape)
    for b, slot, value in np.ndindex(*batch.patches.shape):
        if batch.segment_ids[b, slot]:
            channel = value % C
            want[b, slot, value] = (int(batch.patches[b, slot, value]) / 255 - mean[channel]) / std[channel]
    np.testing.assert_allclose(found.numpy(), want, rtol=1e-5, atol=1e-6)
    assert (found[batch.segment_ids == 0] == 0).all()


def test_a_single_mean_and_std_apply_to_every_channel_and_the_defaults_give_minus_one_to_one() -> None:
    batch = example_batch()
    valid = batch.segment_ids > 0
    torch.testing.assert_close(
        batch.normalized_patches(0.3, 0.6), batch.normalized_patches((0.3, 0.3, 0.3), (0.6, 0.6, 0.6))
    )
    batch.patches[0, 0, 0], batch.patches[0, 0, 1] = 0, 255
    found = batch.normalized_patches()
    assert found[0, 0, :2].tolist() == [-1.0, 1.0]
    torch.testing.assert_close(found[valid], batch.patches[valid].float() / 127.5 - 1)


@pytest.mark.parametrize(("name", "values"), [("mean", (0.5, 0.5)), ("std", (0.5, 0.5, 0.5, 0.5))])
def test_a_mean_or_std_of_another_number_of_channels_is_an_error(name: str, values: Any) -> None:
    message = f"{name} has {len(values)} values for 3 channels; give one value, or one per channel"
    with pytest.raises(ValueError, match=message):
        example_batch().normalized_patches(**{name: values})


# A failed image, an empty batch


def test_a_failed_image_leaves_padding_and_no_empty_column() -> None:
    packs: Packs = [[draw_image(0, 2, 1), 2, draw_image(2, 1, 2)]]
    batch = make_batch(packs, L=8, K=3)
    assert batch.segment_ids.tolist() == [[1, 1, 0, 0, 2, 2, 0, 0]]
    assert batch.image_mask.tolist() == [[True, True, False]]
    assert batch.cu_seqlens.tolist() == [0, 2, 4]
    assert batch.token_index.tolist() == [0, 1, 4, 5]
    assert [(image.key, image.label, image.grid) for image in batch.images()] == [
        ("image0", 0, (2, 1)),
        ("image2", 2, (1, 2)),
    ]
    attended = {(q, k) for q, k in product(range(8), range(8)) if batch.attention_mask()[0, q, k]}
    assert attended == {*product((0, 1), repeat=2), *product((4, 5), repeat=2)}


def test_an_empty_batch_has_no_images_and_every_method_works() -> None:
    batch = make_batch([[], []], L=4, K=2)
    assert (batch.num_images, batch.num_tokens, batch.max_seqlen, batch.padding_fraction) == (0, 0, 0, 1.0)
    assert batch.cu_seqlens.tolist() == [0]
    assert batch.token_index.tolist() == []
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.token_index.dtype == torch.int64
    assert list(batch.images()) == []
    assert not batch.attention_mask().any()
    assert not batch.normalized_patches().any()
    assert batch.to("cpu").num_images == 0
