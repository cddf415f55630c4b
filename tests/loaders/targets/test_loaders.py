"""Targets in loaders and streams: sources of every kind, transforms, views, bad targets, mistakes."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from patchnpack import (
    ConstantDrop,
    Mask,
    Native,
    PackedBatch,
    PackedImageLoader,
    RandomResizedCrop,
    Views,
    pack_stream,
)
from patchnpack.loaders import Objects
from patchnpack.loaders.targets import dense
from tests.loaders.targets.carried import tar_of
from tests.loaders.targets.samples import PACKING, TARGETS, all_of, mirror, objects_of, sample, tensor_of


@pytest.fixture
def tar(tmp_path: Path) -> str:
    return tar_of(tmp_path / "a.tar", [sample(f"k{i}") for i in range(5)])


def test_a_batch_holds_the_targets_of_its_images(tar: str) -> None:
    loader = PackedImageLoader(tar, PACKING, batch_size=2, image="png", targets=TARGETS)
    assert "; targets: seg, token, depth, boxes, points" in repr(loader)
    batch, *_ = loader
    seg, token, depth = (tensor_of(batch, name) for name in ("seg", "token", "depth"))
    assert (seg.dtype, seg.shape) == (torch.uint8, (2, 12, 64))
    assert (token.dtype, token.shape) == (torch.uint8, (2, 12))
    assert (depth.dtype, depth.shape) == (torch.float32, (2, 12, 64))
    # In the middle patch, at x from 8, the left half of the image ends after 4 of 8 pixels.
    assert token[0, :6].tolist() == [1, 1, 2, 1, 1, 2]
    assert seg[0, 1].reshape(8, 8)[3].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
    assert torch.equal(depth[0, :6], seg[0, :6] * 1000.0)
    boxes = objects_of(batch, "boxes")
    assert boxes.of(1).boxes.tolist() == [[0, 0, 12, 16], [12, 0, 24, 16]]  # type: ignore[union-attr]
    assert boxes.of(1).labels.tolist() == [1, 2]
    assert boxes.counts[0].tolist() == [2, 2, 0, 0]
    assert objects_of(batch, "points").of(0).points.tolist() == [[1, 1], [23, 15]]  # type: ignore[union-attr]


def _of_stream(tmp_path: Path, samples: list[dict[str, Any]]) -> Iterable[PackedBatch]:
    return pack_stream(samples, PACKING, batch_size=2, image="png", targets=TARGETS)


def _of_objects(tmp_path: Path, samples: list[dict[str, Any]]) -> Iterable[PackedBatch]:
    items = []
    for each in samples:
        record = json.loads(each["json"])
        items.append(
            {
                "image": each["png"],
                "seg.png": _picture(each["seg.png"]),
                "depth.png": np.asarray(_picture(each["depth.png"])),
                "json": {name: np.array(value) for name, value in record.items()},
            }
        )
    return PackedImageLoader(items, PACKING, batch_size=2, image="image", targets=TARGETS)


def _of_hugging_face(tmp_path: Path, samples: list[dict[str, Any]]) -> Iterable[PackedBatch]:
    datasets = pytest.importorskip("datasets")
    columns = {
        "image": [{"bytes": each["png"], "path": None} for each in samples],
        "seg.png": [{"bytes": each["seg.png"], "path": None} for each in samples],
        "depth.png": [{"bytes": each["depth.png"], "path": None} for each in samples],
        "json": [json.loads(each["json"]) for each in samples],
    }
    dataset = datasets.Dataset.from_dict(columns)
    for name in ("image", "seg.png", "depth.png"):
        dataset = dataset.cast_column(name, datasets.Image())
    return PackedImageLoader(dataset, PACKING, batch_size=2, image="image", targets=TARGETS)


def _picture(data: bytes) -> Image.Image:
    import io

    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("make", [_of_stream, _of_objects, _of_hugging_face])
def test_targets_are_those_of_shards_whatever_the_source(
    make: Callable[[Path, list[dict[str, Any]]], Iterable[PackedBatch]], tmp_path: Path
) -> None:
    samples = [sample(f"k{i}", (24 + 8 * i, 16)) for i in range(4)]
    shards = PackedImageLoader(tar_of(tmp_path / "a.tar", samples), PACKING, batch_size=2, image="png", targets=TARGETS)
    expected = [all_of(batch)[-1] for batch in shards]
    found = [all_of(batch)[-1] for batch in make(tmp_path, samples)]
    assert found == expected
    assert len(found) >= 1


def test_targets_are_the_same_for_any_number_of_threads_and_workers(tar: str) -> None:
    packing = PACKING.replace(flip=0.5, token_drop=ConstantDrop(0.3))

    def loader(threads: int) -> PackedImageLoader:
        return PackedImageLoader(
            tar, packing, batch_size=1, shuffle=True, image="png", targets=TARGETS, num_threads=threads
        )

    expected = [all_of(batch) for batch in loader(1)]
    assert [all_of(batch) for batch in loader(3)] == expected
    batches = DataLoader(loader(1).as_dataset(), batch_size=None, num_workers=2)
    assert [all_of(batch) for batch in batches] == expected
    assert [all_of(batch) for batch in pickle.loads(pickle.dumps(loader(1).as_dataset()))]  # noqa: S301 - our own == expected


def test_views_are_cut_from_one_decoded_target(tar: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    read = dense.read_values

    def counted(reader: Any, member: str, *args: Any, **options: Any) -> Any:
        calls.append(member)
        return read(reader, member, *args, **options)

    monkeypatch.setattr("patchnpack.loaders.targets.mask.read_values", counted)
    views = Views((1, Native(max_tokens=6)), (2, RandomResizedCrop(scale=(0.2, 0.9), max_tokens=3)))
    loader = PackedImageLoader(
        tar, PACKING.replace(views=views), batch_size=8, image="png", targets={"seg": TARGETS["seg"]}
    )
    images = sum(batch.num_images for batch in loader)
    assert (images, len(calls)) == (15, 5)


def test_samples_joined_by_key_have_the_targets_of_each_image(tmp_path: Path) -> None:
    tar = tar_of(tmp_path / "a.tar", [sample(f"{clip}_{i}") for clip in "ab" for i in range(2)])
    loader = PackedImageLoader(
        tar, PACKING, batch_size=2, image="png", sample=r"key:(.)_\d", targets={"boxes": TARGETS["boxes"]}
    )
    (batch,) = loader
    assert batch.samples[batch.image_mask].tolist() == [1, 1, 1, 1]
    assert objects_of(batch, "boxes").counts_list == [2] * 4


def test_a_transform_of_three_arguments_moves_targets_with_its_image(tar: str) -> None:
    mirrored = PackedImageLoader(tar, PACKING, batch_size=2, image="png", targets=TARGETS, transform=mirror)
    flipped = PackedImageLoader(tar, PACKING.replace(flip=1.0), batch_size=2, image="png", targets=TARGETS)
    for one, other in zip(mirrored, flipped, strict=True):
        assert torch.equal(one.patches, other.patches)
        assert all_of(one)[-1] == all_of(other)[-1]


def test_a_transform_of_two_arguments_gets_the_image_alone(tar: str) -> None:
    loader = PackedImageLoader(
        tar, PACKING, batch_size=2, image="png", targets=TARGETS, transform=lambda image, rng: 255 - image
    )
    plain = PackedImageLoader(tar, PACKING, batch_size=2, image="png", targets=TARGETS)
    for one, other in zip(loader, plain, strict=True):
        assert all_of(one)[-1] == all_of(other)[-1]
        assert not torch.equal(one.patches, other.patches)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda image, rng, targets: image, r"returned a ndarray; it must return \(image, targets\)"),
        (lambda image, rng, targets: (image, {}), r"transform returned the targets \[\]; it must return the dict"),
        (
            lambda image, rng, targets: (image, targets | {"seg": targets["seg"][:8]}),
            r"transform returned uint8 \(8, 24\) for target 'seg', which is uint8 \(16, 24\); it must keep type and sh",
        ),
        (
            lambda image, rng, targets: (image, targets | {"boxes": []}),
            "transform returned a list for target 'boxes', not Objects",
        ),
    ],
)
def test_a_transform_that_loses_a_target_is_raised_with_its_image(tar: str, transform: Any, message: str) -> None:
    loader = PackedImageLoader(tar, PACKING, batch_size=2, image="png", targets=TARGETS, transform=transform)
    with pytest.raises(ValueError, match=message) as caught:
        list(loader)
    assert any("raised by transform for the image with key 'k" in note for note in caught.value.__notes__)


def test_what_a_transform_moves_out_of_the_image_is_left_out(tar: str) -> None:
    def away(image: Any, rng: Any, targets: dict[str, Any]) -> tuple[Any, dict[str, Objects]]:
        return image, {"boxes": targets["boxes"].moved(lambda points: points + np.array([12, 0]))}

    loader = PackedImageLoader(
        tar, PACKING, batch_size=2, image="png", targets={"boxes": TARGETS["boxes"]}, transform=away
    )
    batch, *_ = loader
    assert objects_of(batch, "boxes").of(0).boxes.tolist() == [[12, 0, 24, 16]]  # type: ignore[union-attr]


def test_a_table_of_paths_and_a_data_set_name_masks_by_their_paths(tmp_path: Path) -> None:
    for i, each in enumerate(samples := [sample(f"k{i}") for i in range(4)]):
        (tmp_path / f"{i}.png").write_bytes(each["png"])
        (tmp_path / f"m{i}.png").write_bytes(each["seg.png"])
    rows = ["0.png,m0.png", f"1.png,{tmp_path}/m1.png", "2.png,gone.png", "3.png,../m3.png"]
    (tmp_path / "table.csv").write_text("\n".join(["path,mask", *rows]))
    masks = {"seg": Mask("mask")}
    loader = PackedImageLoader(str(tmp_path / "table.csv"), PACKING, batch_size=2, targets=masks)
    (batch,) = loader
    assert batch.keys == [["0.png", "1.png"], []]
    assert tensor_of(batch, "seg")[0, 1].reshape(8, 8)[3].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
    gone, outside = (row["reason"] for row in loader.stats()["bad"])
    assert "target 'seg': its file cannot be read: " in gone
    assert "'../m3.png' leads out of " in outside
    items = [{"image": each["png"], "mask": str(tmp_path / f"m{i}.png")} for i, each in enumerate(samples)]
    batches = list(PackedImageLoader(items, PACKING, batch_size=2, targets=masks))
    assert sum(batch.num_images for batch in batches) == 4
