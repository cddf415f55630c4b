"""`PackedObjects` in a batch: moved, selected, joined by sample, pickled, and image by image."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchnpack.packer import PackedBatch, PackedObjects
from tests.packer.batch.batches import Drawn, P, example_batch
from tests.packer.batch.test_samples import Grouped, grouped_batch, grouped_packs


def objects_of(batch: PackedBatch, seed: int = 0) -> PackedObjects:
    """Random objects of each image: boxes, and points of which an object may have none."""
    rng = np.random.default_rng(seed)
    counts_list = rng.integers(0, 4, batch.num_images).tolist()
    counts = torch.zeros_like(batch.samples)
    counts[batch.image_mask] = torch.tensor(counts_list, dtype=torch.int32)
    n = sum(counts_list)
    lengths = torch.from_numpy(rng.integers(0, 3, n))
    m = int(lengths.sum())
    return PackedObjects(
        boxes=torch.from_numpy(rng.random((n, 4), np.float32)),
        points=torch.from_numpy(rng.random((m, 2), np.float32)),
        visible=torch.from_numpy(rng.random(m) < 0.5),
        lengths=lengths,
        labels=torch.arange(n),
        index=torch.arange(n) % 5,
        counts=counts,
        counts_list=counts_list,
    )


def assert_equal(one: PackedObjects, other: PackedObjects) -> None:
    for name in ("boxes", "points", "visible", "lengths", "labels", "index", "counts"):
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype, name
        assert torch.equal(a, b), name
    assert (one.counts_list, one.points_list) == (other.counts_list, other.points_list)


def image_by_image(objects: PackedObjects) -> list[tuple[Any, ...]]:
    """The values of each image, by a plain loop over all objects and points."""
    assert objects.boxes is not None
    assert objects.points is not None
    assert objects.lengths is not None
    images, at, point = [], 0, 0
    for count in objects.counts_list:
        lengths = objects.lengths[at : at + count].tolist()
        points = objects.points[point : point + sum(lengths)].tolist()
        images.append((objects.boxes[at : at + count].tolist(), points, objects.labels[at : at + count].tolist()))
        at, point = at + count, point + sum(lengths)
    return images


@given(grouped_packs(), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_the_objects_of_one_image_are_those_of_a_plain_loop(grouped: Grouped, seed: int) -> None:
    objects = objects_of(grouped_batch(grouped), seed)
    for i, (boxes, points, labels) in enumerate(image_by_image(objects)):
        one = objects.of(i)
        assert one.boxes is not None
        assert one.points is not None
        assert (one.boxes.tolist(), one.points.tolist(), one.labels.tolist()) == (boxes, points, labels)
        assert (one.counts.tolist(), len(one)) == ([[len(labels)]], len(labels))


@given(grouped_packs(), st.integers(0, 2**20 - 1), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_selected_images_keep_their_objects_and_the_slots_of_others_are_filled(
    grouped: Grouped, bits: int, seed: int
) -> None:
    batch = grouped_batch(grouped)
    B, L = batch.segment_ids.shape
    batch.targets = {"boxes": objects_of(batch, seed), "mask": torch.arange(B * L).view(B, L, 1) % 200}
    batch.target_fill = {"mask": 255}
    mask = np.array([bits >> i & 1 for i in range(batch.image_mask.numel())], bool).reshape(batch.image_mask.shape)
    found = batch.select(torch.from_numpy(mask))
    kept = torch.from_numpy(mask)[batch.image_mask].tolist()
    objects, before = found.targets["boxes"], batch.targets["boxes"]
    assert isinstance(objects, PackedObjects)
    assert isinstance(before, PackedObjects)
    assert image_by_image(objects) == [
        image for image, stays in zip(image_by_image(before), kept, strict=True) if stays
    ]
    assert objects.counts[found.image_mask].tolist() == objects.counts_list
    assert not objects.counts[~found.image_mask].any()
    stays = found.segment_ids > 0
    dense, all_dense = found.targets["mask"], batch.targets["mask"]
    assert isinstance(dense, torch.Tensor)
    assert isinstance(all_dense, torch.Tensor)
    assert torch.equal(dense[stays], all_dense[stays])
    assert (dense[~stays] == 255).all()


@given(grouped_packs(), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_by_sample_moves_objects_down_with_their_image(grouped: Grouped, seed: int) -> None:
    batch = grouped_batch(grouped)
    batch.targets = {"boxes": objects_of(batch, seed)}
    objects, before = batch.by_sample().targets["boxes"], batch.targets["boxes"]
    assert isinstance(objects, PackedObjects)
    assert isinstance(before, PackedObjects)
    images, want, i = image_by_image(before), [], 0
    for samples in grouped[1]:
        for sample in samples:
            boxes, points, labels, above = [], [], [], 0
            for image in sample:
                assert isinstance(image, Drawn)
                boxes += [[x0, y0 + above, x1, y1 + above] for x0, y0, x1, y1 in images[i][0]]
                points += [[x, y + above] for x, y in images[i][1]]
                labels += images[i][2]
                above, i = above + image.grid[1] * P, i + 1
            want.append((boxes, points, labels))
    for found, expected in zip(image_by_image(objects), want, strict=True):
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
    assert objects.counts[batch.by_sample().image_mask].tolist() == objects.counts_list


def test_targets_move_are_pickled_shown_and_rebuilt_from_a_dict() -> None:
    batch = example_batch()
    objects = objects_of(batch)
    batch.targets = {"mask": torch.zeros(3, 8, 4, dtype=torch.uint8), "boxes": objects}
    for moved in (batch.to("meta"), PackedBatch.from_dict(batch.to("meta").to_dict())):
        found = moved.targets["boxes"]
        assert isinstance(found, PackedObjects)
        assert all(
            getattr(found, name).is_meta for name in ("boxes", "points", "visible", "lengths", "labels", "counts")
        )
        assert (len(found), found.counts_list, found.points_list) == (
            len(objects),
            objects.counts_list,
            objects.points_list,
        )
        assert moved.targets["mask"].is_meta  # type: ignore[union-attr]
    again = pickle.loads(pickle.dumps(batch)).targets["boxes"]  # noqa: S301 - made in this line
    assert_equal(again, objects)
    assert f"targets: mask uint8 (3, 8, 4), boxes {len(objects)} objects" in repr(batch)
    assert "targets" not in repr(example_batch())


def test_objects_without_points_or_boxes() -> None:
    fields: dict[str, Any] = {"labels": torch.tensor([1]), "index": torch.tensor([0]), "counts": torch.tensor([[1]])}
    alone = PackedObjects(**fields, counts_list=[1])
    assert (alone.boxes, alone.points, alone.of(-1).labels.tolist()) == (None, None, [1])
    assert repr(alone) == "PackedObjects(1 object in 1 image: [])"
    with pytest.raises(AssertionError, match="2 objects in counts_list"):
        PackedObjects(**fields, counts_list=[2])
    with pytest.raises(IndexError):
        alone.of(1)
