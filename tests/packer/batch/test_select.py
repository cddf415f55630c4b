"""`PackedBatch.select`: the batch of some images, in their slots, as if the others had failed."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchnpack.models import NaViT, NaViTConfig
from patchnpack.packer import PackedBatch
from tests.packer.batch.batches import Drawn, P, Packs, draw_image, example_batch, make_batch
from tests.packer.batch.test_samples import EXAMPLE, Grouped, grouped_batch, grouped_packs


def chosen_columns(batch: PackedBatch, grouped: Grouped, mask: np.ndarray) -> tuple[Packs, dict[str, Any]]:
    """The packs without the images that are not chosen, and the columns of samples and extras by a plain loop."""
    packs, (B, K) = [], mask.shape
    samples, frames = np.zeros((2, B, K), np.int32)
    names: list[list[Any]] = [[] for _ in range(B)]
    for b, pack in enumerate(grouped[0]):
        old = new = previous = number = 0
        kept: list[Drawn | int] = []
        for image in pack:
            if isinstance(image, int):
                kept.append(image)
                continue
            if mask[b, old]:
                sample = int(batch.samples[b, old])
                number += sample != previous
                previous = sample
                samples[b, new], frames[b, new] = number, batch.frames[b, old]
                names[b].append(image.key.upper())
                new += 1
            kept.append(image if mask[b, old] else len(image.kept))
            old += 1
        packs.append(kept)
    columns = {"samples": torch.from_numpy(samples), "frames": torch.from_numpy(frames), "extras": {"name": names}}
    return packs, columns


@given(grouped_packs(), st.integers(0, 2**20 - 1))
@settings(max_examples=80, deadline=None)
def test_selected_images_are_the_batch_made_without_the_others(grouped: Grouped, bits: int) -> None:
    extras = {"name": [[i.key.upper() for i in pack if isinstance(i, Drawn)] for pack in grouped[0]]}
    batch = grouped_batch(grouped, extras=extras, step=3, epoch=1)
    mask = np.array([bits >> i & 1 for i in range(batch.image_mask.numel())], bool).reshape(batch.image_mask.shape)
    found = batch.select(torch.from_numpy(mask))
    packs, columns = chosen_columns(batch, grouped, mask)
    want = make_batch(packs, L=40, K=5, step=3, epoch=1, **columns)
    for field in dataclasses.fields(PackedBatch):
        got, expected = getattr(found, field.name), getattr(want, field.name)
        if isinstance(expected, torch.Tensor):
            assert torch.equal(got, expected), field.name
            assert got.dtype == expected.dtype, field.name
        else:
            assert got == expected, field.name


def test_a_model_gives_selected_images_what_it_gives_them_in_the_whole_batch() -> None:
    batch = grouped_batch(EXAMPLE)
    torch.manual_seed(0)
    model = NaViT(NaViTConfig(num_classes=5, width=24, depth=1, heads=1, patch_size=P)).eval()
    mask = torch.tensor([[True, False, True, True, True], [True] * 5])  # columns without an image do not count
    with torch.no_grad():
        whole, some = model(batch), model(batch.select(mask))
    torch.testing.assert_close(some[0, :2], whole[0, [0, 2]])
    assert not some[0, 2:].any()


def test_soft_labels_are_absent_without_an_image() -> None:
    labels = torch.eye(4)[torch.tensor([[0, 1, 2, 3, 3], [0] * 5])]
    found = grouped_batch(EXAMPLE, labels=labels).select(torch.tensor([[False, True, True, False, False], [False] * 5]))
    assert torch.equal(found.labels[0, :2], torch.eye(4)[1:3])
    assert found.labels[0, 2:].isnan().all()
    assert found.labels[1].isnan().all()


def test_global_views_are_chosen_by_their_frames() -> None:
    packs: Packs = [[draw_image(i, 1, 1) for i in range(6)]]
    columns = {
        "samples": torch.tensor([[1, 1, 1, 2, 2, 2]], dtype=torch.int32),
        "frames": torch.tensor([[0, 1, 2, 0, 1, 2]], dtype=torch.int32),
    }
    batch = make_batch(packs, L=6, K=6, **columns)
    first = batch.select(batch.frames % 3 < 2)
    assert first.keys == [["image0", "image1", "image3", "image4"]]
    assert first.segment_ids.tolist() == [[1, 2, 0, 3, 4, 0]]
    assert (first.samples.tolist(), first.sample_sizes) == ([[1, 1, 2, 2, 0, 0]], [[2, 2]])
    one = batch.select(batch.frames == 2)
    assert (one.samples.tolist(), one.frames.tolist()) == ([[1, 2, 0, 0, 0, 0]], [[2, 2, 0, 0, 0, 0]])
    assert one.sample_sizes is None  # one image per sample is left
    assert one.by_sample() is one


@pytest.mark.parametrize(
    "mask", [torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)]
)
def test_another_shape_or_dtype_is_refused(mask: torch.Tensor) -> None:
    batch = example_batch()
    with pytest.raises(
        ValueError, match=r"mask is \w+ \(.*it must be bool \(3, 3\), one value per column of the batch"
    ):
        batch.select(mask)
