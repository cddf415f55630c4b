from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from patchnpack.packer.batch.packed_batch import PackedBatch
from patchnpack.packer.batch.packed_image import PackedImage
from patchnpack.trainer import mix

Draw = Callable[..., Any]
Pack = Callable[..., Any]


@pytest.fixture
def batch(draw: Draw, pack: Pack) -> PackedBatch:
    """Seven images of different grids in two packs, some with dropped tokens; one has no label."""
    grids = [(4, 3), (3, 4), (5, 2), (2, 5), (4, 4), (1, 6), (6, 1)]
    images = [
        draw(gw, gh, label=-100 if i == 4 else i % 5, seed=i, keep=None if i % 2 else gw * gh * 2 // 3)
        for i, (gw, gh) in enumerate(grids)
    ]
    batch: PackedBatch = pack([images[:4], images[4:]])
    return batch


def by_place(image: PackedImage) -> dict[tuple[int, int], np.ndarray]:
    return {(int(x), int(y)): patch.numpy() for (x, y), patch in zip(image.coords, image.patches, strict=True)}


@pytest.mark.parametrize("seed", range(30))
def test_cutmix_copies_a_rectangle_of_another_image_and_mixes_labels_by_its_share_of_tokens(
    seed: int, batch: PackedBatch
) -> None:
    mixed = mix(batch, np.random.default_rng(seed), num_classes=5, cutmix=1.0)
    images, others = list(batch.images()), list(mixed.images())
    changed = 0
    for i, (old, new) in enumerate(zip(images, others, strict=True)):
        before, after = by_place(old), by_place(new)
        assert before.keys() == after.keys()
        replaced = [place for place in before if (before[place] != after[place]).any()]
        label = new.label
        assert isinstance(label, torch.Tensor)
        if old.label == -100:
            assert label.isnan().all()
            assert not replaced
            continue
        fits = []
        for j, source in enumerate(images):
            theirs = by_place(source)
            shifts = {
                (px - x, py - y)
                for (x, y) in replaced[:1]
                for (px, py), patch in theirs.items()
                if (patch == after[x, y]).all()
            }
            fits += [
                j
                for dx, dy in shifts
                if j != i
                and all(
                    (x + dx, y + dy) in theirs and (theirs[x + dx, y + dy] == after[x, y]).all() for x, y in replaced
                )
            ]
        expected = torch.zeros(5)
        share = len(replaced) / len(before)
        expected[int(old.label)] += 1 - share
        if replaced:
            changed += 1
            (j,) = fits
            assert images[j].label != -100
            expected[int(images[j].label)] += share
            xs, ys = zip(*replaced, strict=True)
            covered = [(x, y) for (x, y) in before if min(xs) <= x <= max(xs) and min(ys) <= y <= max(ys)]
            missing = [place for place in covered if place not in replaced]
            theirs = by_place(images[j])
            assert all(place not in theirs or len(theirs) < np.prod(images[j].grid) for place in missing)
        torch.testing.assert_close(label, expected)
    assert seed or changed


@pytest.mark.parametrize("seed", range(10))
def test_mixup_blends_the_patches_that_both_have_at_one_place(seed: int, batch: PackedBatch) -> None:
    mixed = mix(batch, np.random.default_rng(seed), num_classes=5, mixup=0.8)
    images, others = list(batch.images()), list(mixed.images())
    partners = set()
    for i, (old, new) in enumerate(zip(images, others, strict=True)):
        if old.label == -100:
            assert torch.equal(old.patches, new.patches)
            continue
        before, after = by_place(old), by_place(new)
        label = new.label
        assert isinstance(label, torch.Tensor)
        found = []
        for j, source in enumerate(images):
            common = before.keys() & by_place(source).keys()
            if j == i or source.label == -100:
                continue
            theirs = by_place(source)
            ours, its, got = (np.concatenate([d[p] for p in common]).astype(float) for d in (before, theirs, after))
            keep = (got - its) @ (ours - its) / ((ours - its) @ (ours - its))
            elsewhere = all((before[p] == after[p]).all() for p in before.keys() - common)
            if elsewhere and np.abs(keep * ours + (1 - keep) * its - got).max() <= 1:
                found.append((j, (1 - keep) * len(common) / len(before)))
        assert found
        expected = [torch.zeros(5) for _ in found]
        for target, (j, share) in zip(expected, found, strict=True):
            target[int(old.label)] += 1 - share
            target[int(images[j].label)] += share
        assert min(float((target - label).abs().max()) for target in expected) < 0.01
        partners.add(found[0][0])
    assert len(partners) > 1


def test_mixing_modifies_neither_the_batch_nor_other_fields(batch: PackedBatch) -> None:
    patches, labels = batch.patches.clone(), batch.labels.clone()
    mixed = mix(batch, np.random.default_rng(0), num_classes=5, cutmix=1.0)
    assert torch.equal(batch.patches, patches)
    assert torch.equal(batch.labels, labels)
    for name in ("segment_ids", "coords", "grids", "rows", "image_mask", "token_index", "cu_seqlens"):
        assert torch.equal(getattr(mixed, name), getattr(batch, name))
    assert not mixed.patches[batch.segment_ids == 0].any(), "padding stays 0"
    assert torch.allclose(mixed.labels.nansum(-1)[batch.labels >= 0], torch.tensor(1.0))


def test_the_same_generator_mixes_equally_and_another_differently(batch: PackedBatch) -> None:
    first, second, third = (
        mix(batch, np.random.default_rng(seed), num_classes=5, mixup=1.0, cutmix=1.0).patches for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_rectangles_lie_anywhere_in_both_images(draw: Draw, pack: Pack) -> None:
    batch = pack([[draw(4, 3, 0), draw(3, 4, 1, seed=1)]])
    images, corners = list(batch.images()), [set[tuple[int, int]](), set[tuple[int, int]]()]
    theirs = {patch.numpy().tobytes(): place for place, patch in by_place_of(images[1]).items()}
    for seed in range(60):
        new = next(mix(batch, np.random.default_rng(seed), num_classes=2, cutmix=1.0).images())
        sources = {p: theirs[b.numpy().tobytes()] for p, b in by_place_of(new).items() if b.numpy().tobytes() in theirs}
        if sources:
            corners[0].add(min(sources))
            corners[1].add(min(sources.values()))
    assert min(map(len, corners)) > 3


def by_place_of(image: PackedImage) -> dict[tuple[int, int], torch.Tensor]:
    return {(int(x), int(y)): patch for (x, y), patch in zip(image.coords, image.patches, strict=True)}
