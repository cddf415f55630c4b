"""Targets in pictures of packs: masks are tinted over their pixels, maps beside them, objects drawn in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from patchnpack.packer import PackedBatch
from patchnpack.packer.batch.objects import PackedObjects
from patchnpack.packer.batch.pictures.drawing import draw_html, draw_packs
from patchnpack.packer.batch.pictures.overlays import Overlays, class_colour, overlays_of, thumbs
from tests.images import cut_patches

P = 8
GREY = (200, 200, 200)


def batch_of(grids: Sequence[tuple[int, int]], seq_len: int, dropped: Sequence[int] = ()) -> PackedBatch:
    """A pack of grey images of these grids, without the tokens `dropped` of each."""
    K = len(grids)
    batch: dict[str, Any] = {
        "patches": torch.zeros(1, seq_len, P * P * 3, dtype=torch.uint8),
        "segment_ids": torch.zeros(1, seq_len, dtype=torch.int32),
        "coords": torch.zeros(1, seq_len, 2, dtype=torch.int32),
    }
    used = 0
    for j, (gw, gh) in enumerate(grids):
        kept = np.delete(np.arange(gw * gh), dropped)
        slots = slice(used, used + len(kept))
        batch["patches"][0, slots] = GREY[0]
        batch["segment_ids"][0, slots] = j + 1
        batch["coords"][0, slots] = torch.from_numpy(np.stack([kept % gw, kept // gw], 1).astype(np.int32))
        used += len(kept)
    sizes = torch.tensor([[(gw * P, gh * P) for gw, gh in grids]], dtype=torch.int32)
    return PackedBatch(
        **batch,
        grids=sizes // P,
        image_sizes=sizes,
        image_mask=torch.ones(1, K, dtype=torch.bool),
        labels=torch.zeros(1, K, dtype=torch.int64),
        rows=torch.arange(K)[None],
        keys=[[f"image-{j}" for j in range(K)]],
        patch_size=P,
    )


def with_dense(batch: PackedBatch, name: str, values: Sequence[np.ndarray], fill: float) -> PackedBatch:
    """Add a target whose values (gh*P, gw*P, C), one for each image, are cut to the kept tokens."""
    C = values[0].shape[2]
    target = np.full((batch.segment_ids.shape[1], P * P * C), fill, values[0].dtype)
    end = 0
    for image, each in zip(batch.images(), values, strict=True):
        x, y = image.coords.numpy().T
        target[end : end + len(x)] = cut_patches(each, P)[y * image.grid[0] + x]
        end += len(x)
    batch.targets = {**batch.targets, name: torch.from_numpy(target[None])}
    batch.target_fill = {**batch.target_fill, name: fill}
    return batch


def drawn(batch: PackedBatch, image: int = 0) -> list[np.ndarray]:
    """The pictures of an image, at one drawn pixel per pixel."""
    pairs = list(zip(batch.images(), overlays_of(batch), strict=True))
    return [np.asarray(picture) for picture in thumbs(*pairs[image], P)]


def mixed(colour: tuple[int, int, int], share: float) -> np.ndarray:
    return np.rint(np.array(GREY) * (1 - share) + np.array(colour) * share)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_each_pixel_has_the_tint_of_its_class(dtype: Any) -> None:
    masks = [np.zeros((2 * P, 3 * P, 1), dtype), np.zeros((P, 2 * P, 1), dtype)]
    masks[0][3:5, 9:14] = 2
    masks[0][10:, 20:] = 9
    masks[0][0, :4] = 77
    masks[1][2, 1] = 1
    batch = with_dense(batch_of([(3, 2), (2, 1)], 16, dropped=[1]), "mask", masks, 77)
    for image, mask in enumerate(masks):
        (picture,) = drawn(batch, image)
        wanted = np.full((*mask.shape[:2], 3), GREY, np.float64)
        for value in (1, 2, 9):
            wanted[mask[..., 0] == value] = mixed(class_colour(value), 0.55)
        wanted[mask[..., 0] == 77] = mixed((128, 128, 128), 0.7)
        kept = np.ones(mask.shape[:2], bool)
        kept[:P, P : 2 * P] = False  # the dropped token, which is hatched
        assert np.array_equal(picture[kept], wanted[kept])
        assert not np.array_equal(picture[~kept], wanted[~kept])


def test_values_per_token_colour_whole_patches() -> None:
    batch = batch_of([(2, 1)], 4)
    batch.targets = {"token": torch.tensor([[0, 3, -1, -1]])}
    batch.target_fill = {"token": -1}
    (picture,) = drawn(batch)
    assert np.array_equal(picture[:, :P], np.full((P, P, 3), GREY))
    assert np.array_equal(picture[:, P:], np.broadcast_to(mixed(class_colour(3), 0.55), (P, P, 3)))


def test_second_masks_and_maps_are_pictures_of_their_own() -> None:
    rng = np.random.default_rng(0)
    batch = batch_of([(3, 2)], 8)
    with_dense(batch, "a", [np.zeros((2 * P, 3 * P, 1), np.uint8)], 255)
    with_dense(batch, "b", [np.ones((2 * P, 3 * P, 1), np.uint8)], 255)
    ramp = np.linspace(-5, 5, 2 * P * 3 * P, dtype=np.float32).reshape(2 * P, 3 * P, 1)
    with_dense(batch, "ramp", [ramp], float("nan"))
    with_dense(batch, "counts", [rng.integers(0, 60000, (2 * P, 3 * P, 1)).astype(np.uint16)], 0)
    with_dense(batch, "flow", [rng.normal(size=(2 * P, 3 * P, 5)).astype(np.float32)], 0)
    pictures = drawn(batch)
    assert len(pictures) == 5 == next(overlays_of(batch)).pictures
    assert np.array_equal(pictures[0], np.full((2 * P, 3 * P, 3), GREY))
    assert np.array_equal(pictures[1], np.broadcast_to(mixed(class_colour(1), 0.55), (2 * P, 3 * P, 3)))
    assert (np.diff(pictures[2][..., 0].astype(int), axis=1) >= 0).all()
    assert pictures[2].min() == 0
    assert pictures[2].max() == 255
    assert next(overlays_of(batch)).captions() == ["a", "b", "ramp", "counts", "flow"]
    draw_packs(batch, width=480)


def objects_of(counts: list[int], **fields: Any) -> PackedObjects:
    n = sum(counts)
    return PackedObjects(
        labels=torch.full((n,), 2),
        index=torch.arange(n),
        counts=torch.tensor([counts], dtype=torch.int32),
        counts_list=counts,
        **fields,
    )


def marked(picture: np.ndarray) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the pixels in the colour of class 2."""
    y, x = np.nonzero((picture == class_colour(2)).all(-1))
    return int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1


def test_boxes_lie_where_they_are_in_each_image() -> None:
    batch = batch_of([(4, 3), (3, 4)], 32)
    boxes = torch.tensor([[5.0, 4, 25, 20], [2, 9, 20, 30]])
    batch.targets = {"boxes": objects_of([1, 1], boxes=boxes)}
    for image, box in enumerate(boxes.int().tolist()):
        assert marked(drawn(batch, image)[0]) == tuple(box)
    twice = thumbs(next(batch.images()), next(overlays_of(batch)), 2 * P)[0]
    assert marked(np.asarray(twice)) == (10, 8, 50, 40)
    assert next(overlays_of(batch)).captions() == ["boxes: 1 object"]


def test_outlines_are_lines_and_points_are_dots() -> None:
    batch = batch_of([(4, 4)], 16)
    ring = torch.tensor([[4.0, 4], [26, 4], [26, 26], [4, 26]])
    fields = {"points": ring, "visible": torch.tensor([True, True, False, True]), "lengths": torch.tensor([4])}
    batch.targets = {"outlines": objects_of([1], **fields, outlines=True)}
    (lines,) = drawn(batch)
    colour = class_colour(2)
    assert all(tuple(lines[y, x]) == colour for x, y in [(15, 4), (26, 15), (15, 26), (4, 15)])
    batch.targets = {"points": objects_of([1], **fields)}
    (dots,) = drawn(batch)
    assert [tuple(dots[y, x]) == colour for x, y in ring.int().tolist()] == [True, True, False, True]
    assert tuple(dots[4, 15]) == GREY


def test_images_without_objects_and_batches_without_targets_are_drawn() -> None:
    batch = batch_of([(2, 2), (2, 2)], 16)
    assert list(overlays_of(batch)) == [Overlays(), Overlays()]
    plain = draw_packs(batch)
    batch.targets = {"boxes": objects_of([0, 1], boxes=torch.tensor([[1.0, 1, 9, 9]]))}
    assert draw_packs(batch).height > plain.height
    assert "boxes 1 object" in draw_html(batch)
