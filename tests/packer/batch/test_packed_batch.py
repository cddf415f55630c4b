from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from patchnpack.packer import ConstantDrop, Native, PackedBatch, Packing, Rows, _kernels, plan

# B packs, L token slots in a pack, K images in a pack at most, P patch size, C channels, n tokens of an image

P, C = 2, 3


@dataclass(kw_only=True)
class Drawn:
    """One image to be packed, and what must come out again."""

    key: str
    row: int
    label: Any
    grid: tuple[int, int]
    kept: list[int]
    patches: np.ndarray  # uint8 (n, P*P*C)


Packs = Sequence[Sequence[Drawn | int]]


def _draw(number: int, gw: int, gh: int, kept: Sequence[int] | None = None, label: Any = None) -> Drawn:
    kept = list(range(gw * gh)) if kept is None else list(kept)
    pixels = np.random.default_rng(number).integers(0, 256, (len(kept), P * P * C), np.uint8)
    label = number % 7 if label is None else label
    return Drawn(key=f"image{number}", row=100 + number, label=label, grid=(gw, gh), kept=kept, patches=pixels)


def _batch(packs: Packs, *, L: int, K: int, **fields: Any) -> PackedBatch:
    """A batch made slot by slot. A number in a pack stands for an image that failed: so many slots of padding."""
    B = len(packs)
    patches, segment_ids, coords = np.zeros((B, L, P * P * C), np.uint8), np.zeros((B, L)), np.zeros((B, L, 2))
    grids, sizes, rows, mask = np.zeros((B, K, 2)), np.zeros((B, K, 2)), np.full((B, K), -1), np.zeros((B, K), bool)
    labels = torch.full((B, K), -100)
    keys: list[list[str]] = [[] for _ in packs]
    for b, pack in enumerate(packs):
        slot = column = 0
        for image in pack:
            if isinstance(image, int):
                slot += image
                continue
            gw, gh = image.grid
            grids[b, column], sizes[b, column] = image.grid, (gw * P, gh * P)
            rows[b, column], mask[b, column] = image.row, True
            labels[b, column] = image.label
            keys[b].append(image.key)
            column += 1
            for token, pixels in zip(image.kept, image.patches, strict=True):
                patches[b, slot], segment_ids[b, slot], coords[b, slot] = pixels, column, (token % gw, token // gw)
                slot += 1
    return PackedBatch(
        patches=torch.from_numpy(patches),
        segment_ids=torch.from_numpy(segment_ids.astype(np.int32)),
        coords=torch.from_numpy(coords.astype(np.int32)),
        grids=torch.from_numpy(grids.astype(np.int32)),
        image_sizes=torch.from_numpy(sizes.astype(np.int32)),
        image_mask=torch.from_numpy(mask),
        labels=fields.pop("labels", labels),
        rows=torch.from_numpy(rows),
        keys=keys,
        patch_size=P,
        **fields,
    )


def _images(packs: Packs) -> list[Drawn]:
    return [image for pack in packs for image in pack if isinstance(image, Drawn)]


@st.composite
def pack_lists(draw: st.DrawFn) -> Packs:
    """Up to 4 packs of up to 4 images, some with dropped tokens, some failed, some packs empty."""
    packs: list[list[Drawn | int]] = []
    number = 0
    for _ in range(draw(st.integers(1, 4))):
        pack: list[Drawn | int] = []
        for _ in range(draw(st.integers(0, 4))):
            if draw(st.integers(0, 4)) == 0:
                pack.append(draw(st.integers(1, 3)))
                continue
            gw, gh = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
            kept = draw(st.sets(st.integers(0, gw * gh - 1), min_size=1))
            pack.append(_draw(number, gw, gh, sorted(kept)))
            number += 1
        packs.append(pack)
    return packs


EXAMPLE: Packs = [[_draw(0, 2, 1), _draw(1, 3, 2, [0, 2, 5])], [], [_draw(2, 1, 1)]]


def _example(**fields: Any) -> PackedBatch:
    return _batch(EXAMPLE, L=8, K=3, **fields)


# The contract


def test_fields_are_those_of_the_contract() -> None:
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
        "cu_seqlens",
        "token_index",
        "lengths",
    ]


def test_a_small_batch_is_what_the_contract_says() -> None:
    batch = _example(step=3, epoch=1, position=12, extras={"txt": [["a", "b"], [], ["c"]]})
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
    batch, images = _batch(packs, L=40, K=5), _images(packs)
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
def test_counts_are_host_ints_and_those_of_a_plain_loop(packs: Packs) -> None:
    batch = _batch(packs, L=40, K=5)
    lengths = [len(image.kept) for image in _images(packs)]
    assert batch.lengths == lengths
    assert batch.num_images == len(lengths)
    assert batch.num_tokens == sum(lengths)
    assert batch.max_seqlen == max(lengths, default=0)
    for count in (batch.num_images, batch.num_tokens, batch.max_seqlen, *batch.lengths):
        assert type(count) is int
    assert batch.padding_fraction == pytest.approx(1 - sum(lengths) / (len(packs) * 40))


def test_tokens_without_an_image_are_refused() -> None:
    batch = _example()
    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(PackedBatch) if f.init}
    with pytest.raises(AssertionError, match="an image without tokens, or tokens without an image"):
        PackedBatch(**fields | {"image_mask": torch.zeros_like(batch.image_mask)})
    with pytest.raises(AssertionError, match="an image without tokens"):
        PackedBatch(**fields | {"segment_ids": torch.zeros_like(batch.segment_ids)})


# Attention


@given(pack_lists())
@settings(max_examples=20, deadline=None)
def test_attention_mask_is_that_of_a_plain_loop(packs: Packs) -> None:
    batch = _batch(packs, L=36, K=5)
    mask = batch.attention_mask()
    assert mask.dtype == torch.bool
    assert mask.shape == (len(packs), 36, 36)
    segments = batch.segment_ids.tolist()
    want = [[[q == k and q > 0 for k in pack] for q in pack] for pack in segments]
    assert mask.tolist() == want


def test_sdpa_under_the_mask_equals_each_image_alone_and_has_no_nan_forward_or_backward() -> None:
    torch.manual_seed(0)
    batch = _example()
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
    batch, mean, std = _example(), (0.1, 0.4, 0.9), (0.2, 0.5, 0.7)
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


def test_one_mean_and_std_serve_every_channel_and_the_defaults_give_minus_one_to_one() -> None:
    batch = _example()
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
    message = f"{name} has {len(values)} values for 3 channels; give one, or one a channel"
    with pytest.raises(ValueError, match=message):
        _example().normalized_patches(**{name: values})


# The images again


@given(pack_lists())
@settings(max_examples=60, deadline=None)
def test_images_walks_every_image_back_out_in_order(packs: Packs) -> None:
    batch, drawn = _batch(packs, L=40, K=5), _images(packs)
    walked = list(batch.images())
    assert [image.key for image in walked] == [image.key for image in drawn]
    for found, want in zip(walked, drawn, strict=True):
        gw, gh = want.grid
        assert found.grid == want.grid
        assert found.label == want.label
        assert type(found.label) is int
        assert found.patch_size == P
        assert found.coords.tolist() == [[token % gw, token // gw] for token in want.kept]
        np.testing.assert_array_equal(found.patches.numpy(), want.patches)
        canvas = np.zeros((gh * P, gw * P, C), np.uint8)
        for token, pixels in zip(want.kept, want.patches, strict=True):
            y, x = token // gw * P, token % gw * P
            canvas[y : y + P, x : x + P] = pixels.reshape(P, P, C)
        assert found.pixels().dtype == np.uint8
        np.testing.assert_array_equal(found.pixels(), canvas)


def test_soft_labels_come_back_as_tensors() -> None:
    labels = torch.full((3, 3, 4), float("nan"))
    labels[0, 0], labels[0, 1], labels[2, 0] = torch.eye(4)[1], torch.eye(4)[2], torch.eye(4)[3]
    found = [image.label for image in _example(labels=labels).images()]
    assert all(isinstance(label, torch.Tensor) for label in found)
    assert torch.stack([torch.as_tensor(label) for label in found]).tolist() == torch.eye(4)[1:].tolist()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize(("edge", "rate"), [("pad", 0), ("crop", 0), ("pad", 0.6)])
def test_images_planned_and_placed_come_back_pixel_for_pixel(mode: Any, edge: Any, rate: float) -> None:
    packing = Packing(
        seq_len=32,
        patch_size=8,
        resolution=Native(edge=edge),
        token_drop=ConstantDrop(rate),
        fill="none",
        max_images=4,
        image_mode=mode,
    )
    rng = np.random.default_rng(0)
    width, height = rng.integers(8, 41, (2, 12))
    pixels = [rng.integers(1, 256, (h, w, len(mode)), np.uint8) for w, h in zip(width, height, strict=True)]
    packs = plan(Rows.of_sizes(width, height), packing)
    B, L, K = len(packs), packing.seq_len, packing.max_images
    patches, segment_ids = np.zeros((B, L, packing.token_bytes(8)), np.uint8), np.zeros((B, L), np.int32)
    coords, grids, rows = np.zeros((B, L, 2), np.int32), np.zeros((B, K, 2), np.int32), np.full((B, K), -1)
    for b in range(B):
        slot, pack = 0, packs.pack(b)
        for j in range(len(pack)):
            keep, (gw, gh) = int(pack.keep[j]), pack.grid[j].tolist()
            slots = slice(slot, slot + keep)
            _kernels.place_image(
                pixels[pack.row[j]],
                8,
                gw,
                gh,
                _kernels.kept_tokens(pack.key[j], gw * gh, keep),
                j + 1,
                patches[b, slots],
                segment_ids[b, slots],
                coords[b, slots],
            )
            grids[b, j], rows[b, j], slot = (gw, gh), pack.row[j], slot + keep
    batch = PackedBatch(
        patches=torch.from_numpy(patches),
        segment_ids=torch.from_numpy(segment_ids),
        coords=torch.from_numpy(coords),
        grids=torch.from_numpy(grids),
        image_sizes=torch.from_numpy(grids * 8),
        image_mask=torch.from_numpy(rows >= 0),
        labels=torch.full((B, K), -100),
        rows=torch.from_numpy(rows),
        keys=[[str(row) for row in packs.pack(b).row] for b in range(B)],
        patch_size=8,
    )
    assert batch.num_images == 12
    assert batch.num_tokens == packs.images.keep.sum()
    for image in batch.images():
        original, rebuilt = pixels[int(image.key)], image.pixels()
        H, W = rebuilt.shape[:2]
        top, left = max(0, original.shape[0] - H) // 2, max(0, original.shape[1] - W) // 2
        want = np.zeros_like(rebuilt)
        shown = original[top : top + H, left : left + W]
        want[: shown.shape[0], : shown.shape[1]] = shown
        held = np.zeros((image.grid[1], image.grid[0]), bool)
        held[tuple(image.coords.numpy()[:, ::-1].T)] = True
        want[~held.repeat(8, 0).repeat(8, 1)] = 0
        np.testing.assert_array_equal(rebuilt, want)
        assert held.all() == (rate == 0 or held.size == 1)


# A failed image, an empty batch


def test_a_failed_image_leaves_padding_in_place_and_the_columns_close_up() -> None:
    packs: Packs = [[_draw(0, 2, 1), 2, _draw(2, 1, 2)]]
    batch = _batch(packs, L=8, K=3)
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
    batch = _batch([[], []], L=4, K=2)
    assert (batch.num_images, batch.num_tokens, batch.max_seqlen, batch.padding_fraction) == (0, 0, 0, 1.0)
    assert batch.cu_seqlens.tolist() == [0]
    assert batch.token_index.tolist() == []
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.token_index.dtype == torch.int64
    assert list(batch.images()) == []
    assert not batch.attention_mask().any()
    assert not batch.normalized_patches().any()
    assert batch.to("cpu").num_images == 0


# Moving


TENSORS = ("patches", "segment_ids", "coords", "grids", "image_sizes", "image_mask", "labels", "rows", "cu_seqlens",
           "token_index")  # fmt: skip


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
    batch = _example(step=3, extras={"txt": [["a", "b"], [], ["c"]]})
    _assert_same(batch.to("cpu", non_blocking=True), batch)


def test_every_tensor_moves_and_counts_need_no_data() -> None:
    # On the meta device tensors hold nothing, so whatever reads a value fails, as it would wait on a GPU.
    moved = _example(extras={"txt": [["a", "b"], [], ["c"]]}).to("meta")
    for name in TENSORS:
        assert getattr(moved, name).is_meta
    assert (moved.num_images, moved.num_tokens, moved.max_seqlen, moved.lengths) == (3, 6, 3, [2, 3, 1])
    assert moved.padding_fraction == 0.75
    assert moved.attention_mask().shape == (3, 8, 8)
    assert moved.normalized_patches((0.5, 0.4, 0.3), 0.2, torch.bfloat16).shape == (3, 8, 12)
    assert moved.keys == [["image0", "image1"], [], ["image2"]]
    assert moved.extras == {"txt": [["a", "b"], [], ["c"]]}


def test_to_dict_holds_every_field_uncopied() -> None:
    batch = _example()
    held = batch.to_dict()
    assert list(held) == [field.name for field in dataclasses.fields(PackedBatch)]
    assert all(held[name] is getattr(batch, name) for name in held)
    assert {name for name, value in held.items() if isinstance(value, torch.Tensor)} == set(TENSORS)


def test_a_batch_pickles_to_an_equal_one() -> None:
    batch = _example(step=3, epoch=1, position=12)
    _assert_same(pickle.loads(pickle.dumps(batch)), batch)  # noqa: S301 - our own bytes


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs CUDA, which is not available here")
def test_pinned_and_moved_to_a_gpu_a_batch_stays_the_same() -> None:
    batch = _example(step=3)
    pinned = batch.pin_memory()
    assert all(getattr(pinned, name).is_pinned() for name in TENSORS)
    moved = pinned.to("cuda", non_blocking=True)
    torch.cuda.synchronize()
    assert all(getattr(moved, name).is_cuda for name in TENSORS)
    for other in (pinned, moved, moved.to("cpu")):
        _assert_same(other, batch)
    for here, there in zip(batch.images(), moved.images(), strict=True):
        np.testing.assert_array_equal(here.pixels(), there.pixels())
